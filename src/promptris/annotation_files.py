"""The predictions of a whole run in one file: a COCO data set, or tasks for Label Studio."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from promptris.finished_items import Item
from promptris.outputs import RUN_FORMATS, write_whole, writing_whole

REFERENT = "referent"
"""The one category where every image has expressions of its own."""
LABELLING_FILE = "labelstudio.xml"
_TAG, _OBJECT = "mask", "image"


def write_run(
    name: str,
    folder: Path,
    items: Callable[[], Iterable[Item]],
    expressions: tuple[str, ...],
    facts: dict[str, Any],
) -> Path:
    """Write one of `RUN_FORMATS`; returns the file. Memory does not grow with the number of images.

    Args:
        name: key of `RUN_FORMATS`.
        folder: where to.
        items: gives all items, again every time it is called.
        expressions: the categories, where all images are asked the same; otherwise empty, and the category of all
            is "referent".
        facts: about the run, such as the model's name.

    Raises:
        InputError: when it cannot be written.
    """
    path = folder / RUN_FORMATS[name]
    if name == "labelstudio":
        labels = tuple(dict.fromkeys(map(_for_xml, expressions))) or (REFERENT,)
        write_whole(folder / LABELLING_FILE, _labelling_config(labels).encode())
        parts = _label_studio(items, labels, str(facts["model"]))
    else:
        parts = _coco(items, tuple(dict.fromkeys(expressions)) or (REFERENT,), facts)
    with writing_whole(path) as partial, partial.open("w", encoding="ascii") as file:
        file.writelines(parts)
    return path


def _label(expression: str, labels: tuple[str, ...]) -> str:
    return expression if expression in labels else labels[0]


def _coco(
    items: Callable[[], Iterable[Item]], labels: tuple[str, ...], facts: dict[str, Any]
) -> Iterator[str]:
    """COCO's data set as JSON text; an image that was asked about several times is listed once."""
    yield f'{{"info": {json.dumps({"description": "predictions of promptris", **facts})},\n"licenses": [],\n'
    categories = [{"id": number, "name": label} for number, label in enumerate(labels, start=1)]
    yield f'"categories": {json.dumps(categories)},\n"images": ['
    numbers: dict[tuple[str, int, int], int] = {}
    for item in items():
        height, width = item.size
        if (item.image, height, width) not in numbers:
            number = numbers[item.image, height, width] = len(numbers) + 1
            image = {"id": number, "file_name": item.image, "height": height, "width": width}
            yield f"{',' if number > 1 else ''}\n{json.dumps(image)}"
    yield '],\n"annotations": ['
    count = 0
    for item in items():
        for record, segmentation in zip(item.records, item.segmentations, strict=True):
            count += 1
            annotation = {
                "id": count,
                "image_id": numbers[item.image, item.size[0], item.size[1]],
                "category_id": labels.index(_label(record["expression"], labels)) + 1,
                "segmentation": segmentation,
                **{name: record[name] for name in ("area", "bbox")},
                "iscrowd": 0,
                **{name: record[name] for name in ("expression", "score")},
            }
            yield f"{',' if count > 1 else ''}\n{json.dumps(annotation)}"
    yield "]}\n"


def _label_studio(items: Callable[[], Iterable[Item]], labels: tuple[str, ...], model: str) -> Iterator[str]:
    """Label Studio's tasks with their predictions as JSON text, one task for each item."""
    from promptris.ops.brush import mask_to_brush
    from promptris.ops.run_lengths import rle_to_mask

    yield "["
    for number, item in enumerate(items()):
        height, width = item.size
        regions = [
            {
                "id": f"mask{place}",
                "type": "brushlabels",
                "from_name": _TAG,
                "to_name": _OBJECT,
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "score": record["score"],
                "meta": {"text": [record["expression"]]},
                "value": {
                    "format": "rle",
                    "rle": mask_to_brush(rle_to_mask(segmentation)),
                    "brushlabels": [_label(_for_xml(record["expression"]), labels)],
                },
            }
            for place, (record, segmentation) in enumerate(
                zip(item.records, item.segmentations, strict=True), start=1
            )
        ]
        scores = [record["score"] for record in item.records]
        task = {
            "data": {"image": _local_file(item.image), "path": item.image},
            "predictions": [
                {"model_version": model, "score": round(sum(scores) / len(scores), 6), "result": regions}
            ],
        }
        yield f"{',' if number else ''}\n{json.dumps(task)}"
    yield "]\n"


def _local_file(image: str) -> str:
    """Where Label Studio serves an image that lies on its own machine; absolute paths are seen from the root."""
    return f"/data/local-files/?d={quote(os.fsencode(Path(image).as_posix().lstrip('/')))}"


def _for_xml(expression: str) -> str:
    """An expression as XML can hold it in an attribute and give it back."""
    return " ".join("".join(c if c.isprintable() else " " for c in expression).split())


def _labelling_config(labels: tuple[str, ...]) -> str:
    choices = "\n".join(f"    <Label value={quoteattr(label)}/>" for label in labels)
    return (
        f'<View>\n  <Image name="{_OBJECT}" value="$image" zoom="true"/>\n'
        f'  <BrushLabels name="{_TAG}" toName="{_OBJECT}">\n{choices}\n  </BrushLabels>\n</View>\n'
    )
