"""A gallery of answers in a folder: the page, and its pictures beside it."""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path

from PIL import Image

from promptris.data.dataset import ReferDataset
from promptris.data.paths import file_names, is_folder
from promptris.data.pictures import load_record
from promptris.errors import InputError
from promptris.experiments.gallery_page import GENERATOR, CasePictures, Picture, render_page
from promptris.experiments.gallery_survey import Case, Progress, Survey
from promptris.ops.run_lengths import rle_to_mask
from promptris.outputs import make_folder, write_whole
from promptris.visualize import comparison_row

PAGE, PICTURES = "index.html", "pictures"
_OWN_PICTURE = re.compile(r"(image|coarse|final|truth)-[0-9-]+-[0-9a-f]{12}\.webp")


def check_gallery_folder(folder: Path) -> None:
    """Make the folder if needed; InputError when it cannot be one, or holds a page that is no gallery of ours."""
    make_folder(folder)
    page = folder / PAGE
    try:
        start = page.read_bytes()[:4096]
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"cannot read {page}: {error.strerror or error}") from error
    if f'content="{GENERATOR}'.encode() not in start:
        raise InputError(f"{page} is not a gallery of promptris: choose another folder for the new one")


def write_gallery(
    survey: Survey, folder: Path, tile_size: int = 384, progress: Progress | None = None
) -> Path:
    """Write the page and its pictures; a gallery that is there already is replaced, once the new one is whole.

    Args:
        survey: what to show.
        folder: gets `index.html` and the folder `pictures`.
        tile_size: longer side of the pictures in pixels.
        progress: called with (cases drawn, cases in all).

    Returns the path of the page. Raises InputError when an image cannot be read or a file cannot be written, or
    when the folder has an `index.html` of another origin.
    """
    check_gallery_folder(folder)
    files = _PictureFiles(folder, survey.dataset, tile_size)
    cases = [case for group in survey.groups.values() for _, _, shown in group.sections() for case in shown]
    pictures: dict[int, CasePictures] = {}
    for done, case in enumerate(cases, start=1):
        pictures[case.number] = files.of(case)
        if progress is not None:
            progress(done, len(cases))
    write_whole(folder / PAGE, render_page(survey, pictures).encode())
    if is_folder(files.folder):
        files.remove_others()
    return folder / PAGE


class _PictureFiles:
    """Draws the pictures of cases and writes them, each once.

    Names end in a digest of the content. So a page that is there already keeps its pictures while a new one is
    made, and the same picture is never stored twice.
    """

    def __init__(self, folder: Path, dataset: ReferDataset, tile_size: int) -> None:
        self.folder, self.dataset, self.tile_size = folder / PICTURES, dataset, tile_size
        self._written: dict[str, Picture] = {}
        self._known: dict[int, CasePictures] = {}

    def of(self, case: Case) -> CasePictures:
        """The pictures of a case."""
        if case.number not in self._known:
            self._known[case.number] = self._draw(case)
        return self._known[case.number]

    def remove_others(self) -> None:
        """Delete the pictures of former galleries in the same folder; other files stay."""
        for name in file_names(self.folder) - set(self._written):
            if _OWN_PICTURE.fullmatch(name):
                (self.folder / name).unlink(missing_ok=True)

    def _draw(self, case: Case) -> CasePictures:
        image_id, sent_id = case.referent.image_id, case.expression.sent_id
        tiles = comparison_row(
            load_record(self.dataset.images[image_id]),
            rle_to_mask(case.coarse),
            case.point,
            rle_to_mask(case.final),
            rle_to_mask(case.truth),
            tile_size=self.tile_size,
        )
        names = (f"image-{image_id}", f"coarse-{sent_id}", f"final-{sent_id}", f"truth-{sent_id}")
        image, coarse, final, truth = (
            self._write(name, tile) for name, (_, tile) in zip(names, tiles, strict=True)
        )
        return image, coarse, final, truth

    def _write(self, stem: str, tile: Image.Image) -> Picture:
        buffer = io.BytesIO()
        tile.save(buffer, format="WEBP", quality=85, method=4)
        content = buffer.getvalue()
        name = f"{stem}-{hashlib.sha256(content).hexdigest()[:12]}.webp"
        if name not in self._written:
            write_whole(self.folder / name, content)
            self._written[name] = Picture(f"{PICTURES}/{name}", tile.width, tile.height)
        return self._written[name]
