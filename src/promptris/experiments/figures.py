"""The paper's Fig. 4 for any model and data set: image, coarse mask, final mask and truth, a row per expression."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from string import ascii_lowercase

from PIL import Image

from promptris.config import PromptName
from promptris.data.dataset import ReferDataset
from promptris.data.pictures import load_record
from promptris.data.records import Expression, ImageRecord, Referent
from promptris.errors import InputError
from promptris.evaluation.protocol import Scored, Segmenter
from promptris.ops.masks import mask_iou
from promptris.outputs import write_whole
from promptris.visualize import Tile, comparison_row, panel

FIGURE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".pdf": "PDF"}
"""How a figure may be written, by the ending of its name."""

_PRINT_DPI = 200
_WEBP_LIMIT = 16383


def random_sentences(
    dataset: ReferDataset, split: str, count: int, seed: int = 0
) -> list[tuple[Referent, Expression]]:
    """`count` sentences drawn with a seed, all of different images while there are enough of those.

    Fewer are returned when the split has no more. Raises InputError for an unknown or empty split, or a count
    below 1.
    """
    if count < 1:
        raise InputError(f"{count} expressions make no figure: ask for at least 1")
    samples = dataset.samples(split)
    if not samples:
        raise InputError(f"{dataset.name} has no expression to show in {split!r}")
    order = random.Random(seed).sample(range(len(samples)), len(samples))
    chosen: list[tuple[Referent, Expression]] = []
    passed_over: list[int] = []
    seen: set[int] = set()
    for number in order:
        if len(chosen) == count:
            break
        pair = samples[number]
        if pair[0].image_id in seen:
            passed_over.append(number)
        else:
            seen.add(pair[0].image_id)
            chosen.append(pair)
    return chosen + [samples[number] for number in passed_over[: count - len(chosen)]]


def named_sentences(
    dataset: ReferDataset, split: str, sent_ids: Sequence[int]
) -> list[tuple[Referent, Expression]]:
    """The sentences with these ids, in the order of the ids; where an id comes several times, all of them.

    Raises InputError naming the ids that the split does not have.
    """
    wanted = list(dict.fromkeys(sent_ids))
    found: dict[int, list[tuple[Referent, Expression]]] = {sent_id: [] for sent_id in wanted}
    for referent, expression in dataset.samples(split):
        if expression.sent_id in found:
            found[expression.sent_id].append((referent, expression))
    if missing := [str(sent_id) for sent_id, pairs in found.items() if not pairs]:
        raise InputError(
            f"{dataset.name} has no sentence {', '.join(missing)} in {split!r}: predictions.jsonl of promptris "
            "evaluate lists the sent_id of every sentence"
        )
    return [pair for pairs in found.values() for pair in pairs]


def score_sentences(
    segmenter: Segmenter,
    dataset: ReferDataset,
    sentences: Sequence[tuple[Referent, Expression]],
    prompts: tuple[PromptName, ...] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Scored]:
    """Predictions for some sentences beside their truth, in the given order.

    `prompts` are the SAM prompts to use, None means the model's own; `progress` is called with (done, in all).
    """
    for number, (referent, expression) in enumerate(sentences):
        image = load_record(dataset.images[referent.image_id])
        (prediction,) = segmenter.answer_images([image], [expression.text], [0], prompts)
        yield Scored(referent, expression, prediction, dataset.mask(referent), number)
        if progress is not None:
            progress(number + 1, len(sentences))


def draw_figure(
    scored: Sequence[Scored],
    images: Mapping[int, ImageRecord],
    tile_size: int = 256,
    font_path: str | Path | None = None,
) -> Image.Image:
    """Rows of image, coarse mask with the point, final mask and truth, the expression above each (Fig. 4).

    Args:
        scored: one row each; their letters (a), (b) ... are those of the paper's figure.
        images: the record of each image by id, as `ReferDataset.images`.
        tile_size: longer side of each picture in pixels.
        font_path: a TrueType font for expressions in scripts that the built-in Latin one has no letters for.

    Returns an RGB image. Raises InputError for no rows, or an image or font that cannot be read.
    """
    rows = [_row(one, images[one.referent.image_id], tile_size) for one in scored]
    titles = [f"({_letter(number)}) {one.expression.text}" for number, one in enumerate(scored)]
    return panel(rows, titles, tile_size, font_path)


def coarse_iou(scored: Scored) -> float:
    """IoU of the coarse mask with the truth, in [0, 1]."""
    return mask_iou(scored.prediction.coarse_mask, scored.truth)


def check_figure_path(path: Path) -> str:
    """Pillow's name of the format that the path's ending asks for; InputError naming the endings there are."""
    try:
        return FIGURE_FORMATS[path.suffix.lower()]
    except KeyError:
        endings = ", ".join(FIGURE_FORMATS)
        raise InputError(f"{path} has no ending of a picture: name a file that ends in {endings}") from None


def write_figure(picture: Image.Image, path: Path) -> None:
    """Write a figure in the format of its ending, whole or not at all; InputError when that is impossible."""
    name = check_figure_path(path)
    if name == "WEBP" and max(picture.size) > _WEBP_LIMIT:
        raise InputError(
            f"{path}: WebP holds {_WEBP_LIMIT} pixels a side and the figure is {picture.width} x "
            f"{picture.height}, so write PNG or fewer rows"
        )
    buffer = io.BytesIO()
    if name == "PDF":
        # Without these two times the same figure would not give the same bytes.
        picture.save(buffer, format=name, resolution=_PRINT_DPI, creationDate=None, modDate=None)
    elif name == "PNG":
        picture.save(buffer, format=name, optimize=True)
    else:
        picture.save(buffer, format=name, quality=92)
    write_whole(path, buffer.getvalue())


def _row(scored: Scored, record: ImageRecord, tile_size: int) -> list[Tile]:
    answer = scored.prediction
    tiles = comparison_row(
        load_record(record), answer.coarse_mask, answer.point, answer.mask, scored.truth, tile_size=tile_size
    )
    captions = (
        "image",
        f"coarse mask and point, IoU {coarse_iou(scored):.2f}",
        f"final mask, IoU {scored.iou:.2f}",
        "ground truth",
    )
    return [(caption, tile) for caption, (_, tile) in zip(captions, tiles, strict=True)]


def _letter(number: int) -> str:
    """a to z, then aa, ab ..."""
    head, last = divmod(number, len(ascii_lowercase))
    return (_letter(head - 1) if head else "") + ascii_lowercase[last]
