"""How fast data are opened and made ready on one core, against what a researcher would write without promptris.

**Loading.** Images per second of the whole way from files to tensors: decoding, the 480 and the 1024 square,
four masks per image at 256 x 256 (from polygons; in our case from the run lengths that the index keeps of them),
four expressions as tokens. Against it stand Pillow, transformers' PIL image processors for CLIP and SAM (SAM's
keeps the sides' ratio and pads, which is less work than a full square), pycocotools and the same tokenizer. Theirs
are normalised floats; ours stay uint8 until the device has them, "coco_normalised" makes floats of them here too.
Images, masks and sentences are made here, from a seed. Both sides do the same batches in turns, one thread each;
figures are medians over the rounds.

**Opening.** Seconds and peak memory of a fresh process that opens a data set of RefCOCO's size (20,000 images,
50,000 referents, 142,000 sentences) and looks at one referent: from the index, without an index, and as the REFER
toolkit does it, with pickle, json and dictionaries.

    python benchmarks/data.py [--images 64] [--batch 16] [--rounds 7] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from refcoco_sized import write_refcoco_sized
from rich.console import Console
from rich.table import Table
from transformers import CLIPImageProcessorPil, SamImageProcessorPil

from promptris.images import load_image
from promptris.modeling.tokenizer import build_word_tokenizer
from promptris.ops.resizing import pool_masks
from promptris.ops.run_lengths import rle_to_mask, segmentation_to_run_lengths
from promptris.processing import Processor, normalised

CLIP_SIDE, SAM_SIDE, MASK_SIDE = 480, 1024, 256
PER_IMAGE = 4
COCO_SIZES = ((480, 640), (427, 640), (640, 480), (480, 640), (640, 427), (425, 640), (480, 640), (500, 375))
PHOTO_SIZE = (3000, 4000)
TEXT = (
    "the red blue white small large man woman dog boat car chair on in left right front of behind wearing "
    "holding near furthest second from middle bottom top"
)
WORDS = TEXT.split()


@dataclass
class Sample:
    """An image file with what is said about it."""

    path: Path
    size: tuple[int, int]
    segmentations: list[list[list[float]]]
    run_lengths: list[dict[str, Any]]
    expressions: list[str]


@dataclass
class Ratio:
    """How many times as fast promptris is: the median over the rounds, and the lowest and highest."""

    median: float
    lowest: float
    highest: float


# ------------------------------------------------------------------------------------------------ made-up data


def photograph(size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Soft colours at several scales, shapes with hard edges, sensor noise: compresses like a photograph."""
    height, width = size
    pixels = np.full((height, width, 3), 128, np.float32)
    for cells, strength in ((5, 45), (30, 25), (150, 14), (max(height, width) // 2, 9)):
        for channel in range(3):
            coarse = rng.normal(0, strength, (cells * height // width + 2, cells)).astype(np.float32)
            smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
            pixels[..., channel] += np.asarray(smooth)
    y, x = np.mgrid[:height, :width]
    for _ in range(6):
        centre, radius = rng.uniform(0, 1, 2) * size, rng.uniform(0.05, 0.2) * height
        pixels[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2] += rng.uniform(-90, 90, 3)
    pixels += rng.normal(0, 3, (height, width, 1)).astype(np.float32)
    return pixels.clip(0, 255).astype(np.uint8)


def polygons(size: tuple[int, int], rng: np.random.Generator) -> list[list[float]]:
    """One object's outline as an annotator draws it: 15 to 60 points around a blob, sometimes two parts."""
    height, width = size
    rings = []
    for _ in range(1 + (rng.random() < 0.2)):
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(15, 60)))
        reach = rng.uniform(0.08, 0.3) * min(size) * (1 + 0.2 * np.sin(3 * angles + rng.uniform(0, 6)))
        x = np.clip(rng.uniform(0.2, 0.8) * width + reach * np.cos(angles), 0, width)
        y = np.clip(rng.uniform(0.2, 0.8) * height + reach * np.sin(angles), 0, height)
        rings.append(np.stack([x, y], axis=1).round(2).ravel().tolist())
    return rings


def make_samples(folder: Path, sizes: Sequence[tuple[int, int]], seed: int) -> list[Sample]:
    """Writes one JPEG (quality 90) per size."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    samples = []
    for number, size in enumerate(sizes):
        path = folder / f"{number:06}.jpg"
        Image.fromarray(photograph(size, rng)).save(path, quality=90)
        texts = [" ".join(rng.choice(WORDS, rng.integers(2, 10))) for _ in range(PER_IMAGE)]
        drawn = [polygons(size, rng) for _ in range(PER_IMAGE)]
        indexed = [{"size": [*size], "counts": segmentation_to_run_lengths(s, *size)} for s in drawn]
        samples.append(Sample(path, size, drawn, indexed, texts))
    return samples


# --------------------------------------------------------------------------------------------- the two ways

Stage = Callable[[list[Sample]], Any]


def promptris_stages(tokenizer: Any, reduced: bool, normalise: bool) -> dict[str, Stage]:
    """What `promptris train` does with a batch; it reads photographs reduced, and normalises on the device."""
    processor = Processor(tokenizer, CLIP_SIDE, SAM_SIDE, 77)

    def images(batch: list[Sample]) -> Any:
        at_least = processor.enough() if reduced else None
        made = processor.images([load_image(sample.path, at_least) for sample in batch])
        return normalised(made) if normalise else made

    def masks(batch: list[Sample]) -> torch.Tensor:
        pooled = []
        for sample in batch:
            drawn = np.stack([rle_to_mask(rle) for rle in sample.run_lengths])
            pooled.append(pool_masks(torch.from_numpy(drawn), (MASK_SIDE, MASK_SIDE)))
        return torch.cat(pooled)

    def tokens(batch: list[Sample]) -> Any:
        texts = [text for sample in batch for text in sample.expressions]
        return processor.expressions(texts, np.repeat(np.arange(len(batch)), PER_IMAGE).tolist())

    return {"images": images, "masks": masks, "tokens": tokens}


def usual_stages(tokenizer: Any) -> dict[str, Stage]:
    """Pillow, transformers' PIL processors, pycocotools."""
    clip = CLIPImageProcessorPil(size={"height": CLIP_SIDE, "width": CLIP_SIDE}, do_center_crop=False)
    sam = SamImageProcessorPil(
        size={"longest_edge": SAM_SIDE}, pad_size={"height": SAM_SIDE, "width": SAM_SIDE}
    )

    def images(batch: list[Sample]) -> Any:
        opened = []
        for sample in batch:
            with Image.open(sample.path) as image:
                opened.append(image.convert("RGB"))
        return (
            clip(opened, return_tensors="pt")["pixel_values"],
            sam(opened, return_tensors="pt")["pixel_values"],
        )

    def masks(batch: list[Sample]) -> torch.Tensor:
        pooled = []
        for sample in batch:
            for segmentation in sample.segmentations:
                parts = coco_mask.frPyObjects(segmentation, *sample.size)
                drawn = Image.fromarray(coco_mask.decode(coco_mask.merge(parts)) * np.uint8(255))
                small = drawn.resize((MASK_SIDE, MASK_SIDE), Image.Resampling.BOX)
                pooled.append(torch.from_numpy(np.asarray(small, dtype=np.float32) / 255))
        return torch.stack(pooled)

    def tokens(batch: list[Sample]) -> Any:
        texts = [text for sample in batch for text in sample.expressions]
        return tokenizer(texts, padding=True, return_tensors="pt")

    return {"images": images, "masks": masks, "tokens": tokens}


# ----------------------------------------------------------------------------------------------- measuring


def seconds(stage: Stage, batches: list[list[Sample]]) -> float:
    """Time of one pass over the batches."""
    start = time.perf_counter()
    for batch in batches:
        stage(batch)
    return time.perf_counter() - start


def compare(
    ours: dict[str, Stage], theirs: dict[str, Stage], batches: list[list[Sample]], rounds: int
) -> tuple[Ratio, dict[str, tuple[float, float]]]:
    """The ratio of the whole way, and (ours, theirs) in ms per image for each stage and for the whole."""

    def whole(stages: dict[str, Stage]) -> Stage:
        return lambda batch: [stage(batch) for stage in stages.values()]

    ours, theirs = ours | {"whole": whole(ours)}, theirs | {"whole": whole(theirs)}
    count = sum(map(len, batches))
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ours}
    for name in ours:  # warm up: files in the page cache, allocators filled
        seconds(ours[name], batches[:1])
        seconds(theirs[name], batches[:1])
    for _ in range(rounds):
        for name, measured in times.items():
            measured.append((seconds(ours[name], batches), seconds(theirs[name], batches)))
    stages = {
        name: (
            1000 * statistics.median(a for a, _ in measured) / count,
            1000 * statistics.median(b for _, b in measured) / count,
        )
        for name, measured in times.items()
    }
    return ratio_of(times["whole"]), stages


def loading(options: argparse.Namespace, console: Console) -> dict[str, Ratio]:
    """Files to tensors, on images of COCO's sizes and on photographs of twelve million pixels."""
    tokenizer = build_word_tokenizer(WORDS, 77)
    theirs = usual_stages(tokenizer)
    ratios: dict[str, Ratio] = {}
    table = Table(title=f"Files to tensors, one core, batches of {options.batch}")
    for column in ("images", "stage", "promptris ms", "usual ms", "ratio", "images/s"):
        table.add_column(column, justify="left" if column in ("images", "stage") else "right")
    with tempfile.TemporaryDirectory() as folder:
        few = max(2, options.images // 16)
        sizes = [COCO_SIZES[k % len(COCO_SIZES)] for k in range(options.images)]
        coco = make_samples(Path(folder) / "coco", sizes, seed=1)
        photos = make_samples(Path(folder) / "photos", [PHOTO_SIZE] * few, seed=2)
        for name, samples, reduced, normalise in (
            ("coco", coco, False, False),
            ("coco_normalised", coco, False, True),
            ("photographs", photos, False, False),
            ("photographs_reduced", photos, True, False),
        ):
            batches = [samples[k : k + options.batch] for k in range(0, len(samples), options.batch)]
            ratio, stages = compare(
                promptris_stages(tokenizer, reduced, normalise), theirs, batches, options.rounds
            )
            ratios[name] = ratio
            for stage, (mine, other) in stages.items():
                is_whole = stage == "whole"
                spread = f" ({ratio.lowest:.1f} - {ratio.highest:.1f})" if is_whole else ""
                shown = ratio.median if is_whole else other / mine
                speed = f"{1000 / mine:.0f} / {1000 / other:.0f}" if is_whole else ""
                row = (name, stage, f"{mine:.2f}", f"{other:.2f}", f"{shown:.1f}{spread}", speed)
                table.add_row(*row, style="bold" if is_whole else None, end_section=is_whole)
    console.print(table)
    return ratios


# ------------------------------------------------------------------------------------------------- opening

OURS = """
from promptris.data import index, read_refer
index.WORTH_INDEXING = {worth}
dataset = read_refer({root!r}, "refcoco", require_images=False)
referent = dataset.splits["val"][0]
assert referent.expressions and dataset.run_lengths(referent)
"""
REFER = """
import json, pickle
with open({root!r} + "/refcoco/refs(unc).p", "rb") as file:
    refs = pickle.load(file)
with open({root!r} + "/refcoco/instances.json") as file:
    instances = json.load(file)
annotations = {{a["id"]: a for a in instances["annotations"]}}
images = {{image["id"]: image for image in instances["images"]}}
by_image, by_sentence = {{}}, {{}}
for ref in refs:
    by_image.setdefault(ref["image_id"], []).append(ref)
    for sentence in ref["sentences"]:
        by_sentence[sentence["sent_id"]] = ref
referent = next(ref for ref in refs if ref["split"] == "val")
assert referent["sentences"] and annotations[referent["ann_id"]]["segmentation"]
"""
MEASURED = """
import re, time
from pathlib import Path
start = time.perf_counter()
{code}
took = time.perf_counter() - start
status = Path("/proc/self/status")
peak = re.search(r"VmHWM:\\s*(\\d+)", status.read_text()).group(1) if status.exists() else "nan"
print(took, float(peak) / 1024)
"""


def in_fresh_process(code: str) -> tuple[float, float]:
    """Seconds, imports included, and peak memory in MB."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED.format(code=code)], capture_output=True, text=True, check=True
    )
    took, memory = done.stdout.split()
    return float(took), float(memory)


def opening(options: argparse.Namespace, console: Console) -> dict[str, Ratio]:
    """A data set of RefCOCO's size, opened by a fresh process in three ways, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        write_refcoco_sized(Path(folder))
        ways = {
            "promptris, from the index": OURS.format(worth=0, root=folder),
            "promptris, without an index": OURS.format(worth=1 << 60, root=folder),
            "pickle, json, dictionaries": REFER.format(root=folder),
        }
        first, _ = in_fresh_process(ways["promptris, from the index"])
        runs: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(min(options.rounds, 5)):
            for way, code in ways.items():
                runs[way].append(in_fresh_process(code))
    table = Table(title=f"Opening a data set of RefCOCO's size (building the index once: {first:.1f} s)")
    for column in ("way", "seconds", "peak MB"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for way, measured in runs.items():
        seconds_, memory = (statistics.median(column) for column in zip(*measured, strict=True))
        table.add_row(way, f"{seconds_:.2f}", f"{memory:.0f}")
    console.print(table)
    indexed, plain, usual = runs.values()
    return {
        "opening_vs_refer": ratio_of([(a, b) for (a, _), (b, _) in zip(indexed, usual, strict=True)]),
        "opening_vs_no_index": ratio_of([(a, b) for (a, _), (b, _) in zip(indexed, plain, strict=True)]),
        "opening_memory_vs_refer": ratio_of([(a, b) for (_, a), (_, b) in zip(indexed, usual, strict=True)]),
    }


def ratio_of(pairs: list[tuple[float, float]]) -> Ratio:
    """theirs / ours over the rounds."""
    ratios = [theirs / ours for ours, theirs in pairs]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


SECTIONS: tuple[Callable[[argparse.Namespace, Console], dict[str, Ratio]], ...] = (loading, opening)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=64, help="images of COCO's sizes")
    parser.add_argument("--batch", type=int, default=16, help="images per batch")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    torch.set_num_threads(1)
    console = Console(width=100)
    ratios: dict[str, Ratio] = {}
    for section in SECTIONS:
        ratios |= section(options, console)
    if options.json:
        result = {
            "ratios": {name: round(ratio.median, 2) for name, ratio in ratios.items()},
            "spread": {name: asdict(ratio) for name, ratio in ratios.items()},
            "machine": {
                "processor": platform.processor() or platform.machine(),
                "cores": os.cpu_count(),
                "python": platform.python_version(),
                "torch": torch.__version__,
            },
        }
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
