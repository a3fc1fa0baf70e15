"""Segment what an expression refers to with exported ONNX graphs, without torch.

Needs numpy, Pillow, onnxruntime and tokenizers.

promptris export onnx --model tiny --out tiny-onnx
python examples/onnx_segment.py tiny-onnx scene.png "the red circle" --out mask.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from tokenizers import Tokenizer


class Segmenter:
    """The graphs of an export folder; `set_image` once, `segment` any number of times."""

    def __init__(self, folder: Path) -> None:
        self.manifest = json.loads((folder / "export.json").read_text(encoding="utf-8"))
        self.tokenizer = Tokenizer.from_file(str(folder / self.manifest["text"]["tokenizer"]))
        self.sessions = {
            name: onnxruntime.InferenceSession(
                str(folder / graph["file"]), providers=["CPUExecutionProvider"]
            )
            for name, graph in self.manifest["graphs"].items()
        }

    def set_image(self, image: Image.Image) -> None:
        """Encode an image."""
        image = upright_rgb(image)
        self.size = image.height, image.width
        self.clip_pixels = self.square(image, "clip_pixels")
        if self.manifest["model"]["refine"]:
            pixels = self.square(image, "sam_pixels")
            (self.sam_embeddings,) = self.run("sam_encoder", sam_pixels=pixels)

    def segment(
        self, expressions: list[str], clicks: list[tuple[float, float, int]] | None = None
    ) -> list[tuple[np.ndarray, float]]:
        """A mask (bool, the image's own size) and a score for each expression.

        Clicks are (x, y, label) in pixels: 1 on the referent, 0 beside it.
        """
        ids, words_there = self.tokens(expressions)
        rows = len(expressions)
        index = np.zeros(rows, np.int64)
        _, coarse, words = self.run(
            "prompted_clip",
            clip_pixels=self.clip_pixels,
            input_ids=ids,
            word_mask=words_there,
            image_index=index,
        )
        if not self.manifest["model"]["refine"]:
            # A model that was trained without SAM: the score is the mean probability inside the mask.
            probabilities = [1 / (1 + np.exp(-enlarge(logits, self.size))) for logits in coarse]
            return [(p > 0.5, float(p[p > 0.5].mean()) if (p > 0.5).any() else 0.0) for p in probabilities]
        prompts = self.manifest["prompts"]
        given = np.array([[name in prompts["enabled"] for name in prompts["order"]]] * rows)
        height, width = self.size
        marks = np.array(clicks or [], np.float32).reshape(1, -1, 3).repeat(rows, axis=0)
        logits, scores, _ = self.run(
            "prompted_decoder",
            sam_embeddings=self.sam_embeddings,
            coarse_logits_hr=coarse,
            words=words,
            word_mask=words_there,
            image_index=index,
            prompts=given,
            points=((marks[..., :2] + 0.5) / np.float32([width, height])).astype(np.float32),
            labels=marks[..., 2].astype(np.int64),
        )
        masks = [enlarge(one, self.size) > 0 for one in logits]
        return list(zip(masks, scores.clip(0, 1).tolist(), strict=True))

    def run(self, graph: str, **inputs: np.ndarray) -> list[np.ndarray]:
        """A graph's outputs in their order."""
        return self.sessions[graph].run(None, inputs)

    def square(self, image: Image.Image, name: str) -> np.ndarray:
        """The image stretched to a tower's square: uint8 [1, 3, side, side]."""
        wanted = self.manifest["images"][name]
        how = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[wanted["resample"]]
        square = image.resize((wanted["size"], wanted["size"]), how)
        return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1)[None])

    def tokens(self, expressions: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids [B, T], padded on the right, and which of them are there."""
        text = self.manifest["text"]
        sentences = [self.tokenizer.encode(expression).ids for expression in expressions]
        limit = text["context_length"]
        sentences = [ids if len(ids) <= limit else [*ids[: limit - 1], text["end"]] for ids in sentences]
        longest = max(map(len, sentences))
        ids = np.array([[*ids, *[text["padding"]] * (longest - len(ids))] for ids in sentences], np.int64)
        return ids, np.arange(longest) < np.array([[len(ids)] for ids in sentences])


def upright_rgb(image: Image.Image) -> Image.Image:
    """The right way up, transparency laid on white."""
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def enlarge(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Logits [h, w] at (height, width): bilinear, pixel areas aligned, as torch's align_corners=False."""
    for axis, length in enumerate(size):
        have = logits.shape[axis]
        centre = ((np.arange(length) + 0.5) * have / length - 0.5).clip(0, have - 1)
        low = np.floor(centre).astype(int)
        high = np.minimum(low + 1, have - 1)
        share = (centre - low).astype(np.float32)
        share = share[:, None] if axis == 0 else share
        logits = logits.take(low, axis) * (1 - share) + logits.take(high, axis) * share
    return logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("export", type=Path, help="folder written by promptris export onnx")
    parser.add_argument("image", type=Path)
    parser.add_argument("expression")
    parser.add_argument("--out", type=Path, default=Path("mask.png"), help="mask as a 1-bit PNG")
    arguments = parser.parse_args()
    if not arguments.expression.strip():
        parser.error("the expression is empty: describe what to segment")
    try:
        segmenter = Segmenter(arguments.export)
        with Image.open(arguments.image) as image:
            segmenter.set_image(image)
    except OSError as error:
        parser.error(str(error))
    ((mask, score),) = segmenter.segment([arguments.expression])
    Image.fromarray(mask).save(arguments.out)
    print(json.dumps({"score": round(score, 4), "area": int(mask.sum()), "mask": str(arguments.out)}))


if __name__ == "__main__":
    main()
