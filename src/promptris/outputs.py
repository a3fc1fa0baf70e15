"""Predictions as files: 1-bit masks, overlays, explanations, run lengths, polygons, JSON."""

from __future__ import annotations

import hashlib
import io
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptris.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from promptris.prediction import Explanation, Prediction

FORMATS = {
    "mask": "mask.png",
    "overlay": "overlay.png",
    "explain": "explain.png",
    "rle": "rle.json",
    "polygon": "polygon.json",
    "json": "prediction.json",
}
"""What a prediction can be written as, and how such a file's name ends."""
RUN_FORMATS = {"coco": "coco.json", "labelstudio": "labelstudio.json"}
"""What all predictions of a run can be written as, one file for all."""

_SLUG_LENGTH, _STEM_BYTES = 40, 100


def parse_formats(text: str) -> tuple[str, ...]:
    """Formats from a comma list, each once; InputError naming one that does not exist."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    choices = ", ".join((*FORMATS, *RUN_FORMATS))
    if not names:
        raise InputError(f"no format is given: choose from {choices}")
    for name in names:
        if name not in FORMATS and name not in RUN_FORMATS:
            raise InputError(f"unknown format {name!r}: choose from {choices}")
    return names


def told(prediction: Prediction) -> dict[str, Any]:
    """A prediction in a few numbers: expression, score in [0, 1], area, bbox, point (in pixels)."""
    return {
        "expression": prediction.expression,
        "score": round(prediction.score, 6),
        "area": prediction.area,
        "bbox": prediction.bbox,
        "point": list(prediction.point),
    }


class PredictionWriter:
    """Writes predictions into one folder, never two of them under one name.

    Files are called <image's stem>_<number>_<expression>_<format>: short, and made of characters that every
    file system takes. Each appears whole or not at all; one that is there already is replaced.

    Args:
        folder: made when the first file is written.
        formats: keys of `FORMATS`; those of `RUN_FORMATS` are left to `annotation_files`.
        facts: written into every "json" file, such as the model's name.
        note: a warning about the masks; it is drawn below overlays and put into masks and JSON.
    """

    def __init__(
        self,
        folder: Path,
        formats: Sequence[str],
        facts: dict[str, Any] | None = None,
        note: str | None = None,
    ) -> None:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file: give a folder for the results")
        self.folder, self.note = folder, note
        self.formats = tuple(name for name in formats if name in FORMATS)
        self.facts = {**(facts or {}), **({} if note is None else {"note": note})}
        self._stems: set[str] = set()

    def write(
        self,
        image: str,
        pixels: NDArray[np.uint8],
        predictions: Sequence[Prediction],
        explanations: Sequence[Explanation] = (),
    ) -> list[list[Path]]:
        """Write the predictions of one image under a stem of its own; returns the files of each.

        Args:
            image: the image's path, as the user gave it.
            pixels: uint8 RGB [H, W, 3].
            predictions: of this image.
            explanations: of the predictions; needed for the format "explain".

        Raises:
            InputError: when a file cannot be written.
        """
        files = self.names(self.claim(image), [prediction.expression for prediction in predictions])
        self.fill(files, image, pixels, predictions, explanations)
        return files

    def claim(self, image: str, known: Mapping[str, str] | None = None) -> str:
        """A stem for the files of an image, which no other image of this run has; case does not tell them apart.

        Args:
            image: its path.
            known: stems that are in the folder already, in lower case, with the image that each belongs to; those of
                other images are avoided.
        """
        stem = safe_stem(Path(image).stem)
        free, count, known = stem, 1, known or {}
        while free.casefold() in self._stems or known.get(free.casefold(), image) != image:
            count += 1
            free = f"{stem}-{count}"
        self.keep(free)
        return free

    def keep(self, stem: str) -> None:
        """Give a stem to no other image of this run."""
        self._stems.add(stem.casefold())

    def names(self, stem: str, expressions: Sequence[str]) -> list[list[Path]]:
        """The files of every expression about the image with this stem."""
        starts = [f"{stem}_{number:02d}_{slug(text)}" for number, text in enumerate(expressions, start=1)]
        return [[self.folder / f"{start}_{FORMATS[name]}" for name in self.formats] for start in starts]

    def fill(
        self,
        files: Sequence[Sequence[Path]],
        image: str,
        pixels: NDArray[np.uint8],
        predictions: Sequence[Prediction],
        explanations: Sequence[Explanation] = (),
    ) -> None:
        """Write files of `names`; the other arguments are those of `write`."""
        for number, (prediction, paths) in enumerate(zip(predictions, files, strict=True)):
            for name, path in zip(self.formats, paths, strict=True):
                if name == "explain":
                    content = self._picture(explanations[number].picture(pixels))
                else:
                    content = self._content(name, image, pixels, prediction)
                write_whole(path, content)

    def _content(self, name: str, image: str, pixels: NDArray[np.uint8], prediction: Prediction) -> bytes:
        if name == "mask":
            from promptris.visualize import mask_image

            return _png(mask_image(prediction.mask), self.note)
        if name == "overlay":
            return self._picture(prediction.overlay(pixels))
        height, width = prediction.mask.shape
        if name == "rle":
            return _json({**prediction.to_rle(), **self._noted()})
        if name == "polygon":
            regions = prediction.to_polygons()
            # COCO's lists of rings know no holes; "regions" keeps them.
            outer = [region[0] for region in regions]
            return _json(
                {"size": [height, width], "segmentation": outer, "regions": regions, **self._noted()}
            )
        return _json(
            {
                "image": image,
                **told(prediction),
                "size": [height, width],
                "segmentation": prediction.to_rle(),
                **self.facts,
            }
        )

    def _picture(self, picture: Image.Image) -> bytes:
        """A picture as PNG, with the note below it."""
        if self.note is not None:
            from promptris.visualize import panel

            picture = panel([[(self.note, picture)]], tile_size=max(64, *picture.size))
        return _png(picture, self.note)

    def _noted(self) -> dict[str, str]:
        return {} if self.note is None else {"note": self.note}


def slug(expression: str) -> str:
    """An expression as part of a file name: lower-case ASCII letters and digits joined by hyphens.

    Where that loses something (a long expression, another script) a short digest of the text keeps different
    expressions apart.
    """
    plain = unicodedata.normalize("NFKD", expression).casefold()
    kept = "".join(c for c in plain if not unicodedata.combining(c))
    lost = any(c.isalnum() and not c.isascii() for c in kept) or not re.search("[a-z0-9]", kept)
    words = "-".join(re.findall("[a-z0-9]+", kept))
    short = words[:_SLUG_LENGTH].rstrip("-")
    if not lost and short == words:
        return words
    digest = hashlib.sha256(expression.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{short}-{digest}" if short else digest


def safe_stem(stem: str) -> str:
    """An image's name without its ending, cut to a safe length, odd characters turned into "_"."""
    kept = "".join(c if c.isalnum() or c in "-_." else "_" for c in stem).lstrip(".-")
    return kept.encode("utf-8", "ignore")[:_STEM_BYTES].decode("utf-8", "ignore") or "image"


def make_folder(folder: Path) -> Path:
    """The folder, made if needed; InputError when that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{folder} cannot be a folder: a file is in its place") from None
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    return folder


@contextmanager
def writing_whole(path: Path) -> Iterator[Path]:
    """Another name to write a file under; it is renamed in the end, so that half a file is never seen.

    Raises:
        InputError: when it cannot be written.
    """
    make_folder(path.parent)
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that half of it is never seen; see `writing_whole`.

    Raises:
        InputError: when it cannot be written.
    """
    with writing_whole(path) as partial:
        partial.write_bytes(content)


def _png(picture: Image.Image, note: str | None) -> bytes:
    from PIL.PngImagePlugin import PngInfo

    info, buffer = PngInfo(), io.BytesIO()
    if note is not None:
        info.add_text("Comment", note)
    picture.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content) + "\n").encode("ascii")
