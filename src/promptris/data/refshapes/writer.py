"""Writing RefShapes to disk in the layout of the REFER benchmarks, so that one reader serves all."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from promptris.data.refshapes import Example, make_example
from promptris.data.refshapes.card import card
from promptris.data.refshapes.scene import WorldOptions
from promptris.data.refshapes.tags import Tag, expression_tags
from promptris.data.refshapes.words import CATEGORIES
from promptris.errors import InputError

NAME = "refshapes"
SPLIT_BY = "unc"
DEFAULT_SPLITS: dict[str, int] = {"train": 2000, "val": 200, "test": 200}
CATEGORY_IDS: dict[str, int] = {name: i + 1 for i, name in enumerate(CATEGORIES)}
FORMAT_VERSION = 3
"""Stands in world.json; raised whenever the same arguments give other files than before."""

_STAGE_PREFIX = ".refshapes-writing-"
_IMAGE_NAME = re.compile(r"refshapes_\d{12}\.jpg")
_SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True, slots=True)
class SplitCounts:
    """How much one split holds."""

    images: int
    referents: int
    expressions: int


@dataclass(frozen=True, slots=True)
class WriteSummary:
    """What `write_refshapes` has written, and where."""

    directory: Path
    seed: int
    options: WorldOptions
    splits: dict[str, SplitCounts]


def split_seed(seed: int, split: str) -> int:
    """The world of one split: 63 bits drawn from both, so that splits and data-set seeds share no scene."""
    digest = hashlib.sha256(f"refshapes/{seed}/{split}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def write_refshapes(
    directory: str | Path,
    splits: Mapping[str, int] | None = None,
    seed: int = 0,
    options: WorldOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
    train_categories: str = "seen",
) -> WriteSummary:
    """Write a REFER-format data set of fresh scenes; the same arguments give the same bytes.

    Layout below `directory`: images/ (JPEG), refshapes/refs(unc).p, refshapes/instances.json,
    refshapes/tags.json ({sent_id: tags as in `tags.TAGS`}), refshapes/world.json (seed, options, splits) and
    refshapes/README.md, a card for people.

    splits: scenes per split, default 2000 train, 200 val, 200 test. options: size, level and categories;
    splits whose name starts with "train" take `train_categories` instead of `options.categories`, so that
    unseen categories stay unseen. progress: called with (scenes done, scenes in all) after every scene.

    Everything is written into a hidden folder first and moved in place at the end. A RefShapes data set that
    is already there is replaced. InputError if the directory holds anything else or cannot be written, or if
    a split, the seed or an option is wrong.
    """
    options = options or WorldOptions()
    train_options = replace(options, categories=train_categories)
    counts = _checked_splits(DEFAULT_SPLITS if splits is None else splits)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"RefShapes seed {seed!r} is not a whole number from 0 up")
    target = Path(directory)
    _check_target(target)
    created = not target.exists()
    stage: Path | None = None
    try:
        target.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=_STAGE_PREFIX, dir=target))
        collected = _Collector(stage)
        done, total = 0, sum(counts.values())
        for split, count in counts.items():
            world = split_seed(seed, split)
            used = train_options if split.startswith("train") else options
            for index in range(count):
                collected.add(split, make_example(world, index, used))
                done += 1
                if progress is not None:
                    progress(done, total)
        world_facts = {
            "format": FORMAT_VERSION,
            "seed": seed,
            "options": asdict(options),
            "train_categories": train_categories,
            "splits": counts,
        }
        collected.finish(world_facts)
        _move_in_place(stage, target)
    except OSError as error:
        raise InputError(f"cannot write RefShapes to {target}: {error}") from error
    finally:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)
        if created and target.is_dir() and not any(target.iterdir()):
            target.rmdir()
    return WriteSummary(target, seed, options, {name: collected.counts(name) for name in counts})


class _Collector:
    """Writes images as they come and keeps the records for the files that are written last."""

    def __init__(self, folder: Path) -> None:
        # Imported here: the in-memory world needs no more than numpy and Pillow.
        from promptris.ops.masks import mask_bbox
        from promptris.ops.polygons import mask_to_coco_polygons

        self._polygons, self._bbox = mask_to_coco_polygons, mask_bbox
        self._folder = folder
        (folder / "images").mkdir()
        (folder / NAME).mkdir()
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._refs: list[dict[str, Any]] = []
        self._tags: dict[str, dict[str, Tag]] = {}
        self._images_per_split: dict[str, int] = {}

    def add(self, split: str, example: Example) -> None:
        image_id = len(self._images) + 1
        stem = f"refshapes_{image_id:012d}"
        height, width = example.image.shape[:2]
        Image.fromarray(example.image).save(
            self._folder / "images" / f"{stem}.jpg", format="JPEG", quality=95, subsampling=0
        )
        self._images.append({"id": image_id, "file_name": f"{stem}.jpg", "height": height, "width": width})
        self._images_per_split[split] = self._images_per_split.get(split, 0) + 1
        for number, (shape, mask) in enumerate(zip(example.scene.objects, example.masks, strict=True)):
            ann_id = len(self._annotations) + 1
            self._annotations.append(
                {
                    "id": ann_id,
                    "image_id": image_id,
                    "category_id": CATEGORY_IDS[shape.category],
                    "area": int(mask.sum()),
                    "bbox": self._bbox(mask),
                    "iscrowd": 0,
                    # Polygons and not run lengths, which the REFER toolkit cannot read; they fill the same pixels.
                    "segmentation": self._polygons(mask),
                }
            )
            sentences = []
            for description in example.descriptions:
                if description.target != number:
                    continue
                sent_id = len(self._tags) + 1
                self._tags[str(sent_id)] = expression_tags(example.scene, example.masks, description)
                text = description.text
                sentences.append({"tokens": text.split(), "raw": text, "sent": text, "sent_id": sent_id})
            if sentences:
                self._refs.append(
                    {
                        "ref_id": len(self._refs) + 1,
                        "ann_id": ann_id,
                        "image_id": image_id,
                        "category_id": CATEGORY_IDS[shape.category],
                        "split": split,
                        # As in the benchmarks, this name carries a suffix and is no file.
                        "file_name": f"{stem}_{ann_id}.jpg",
                        "sent_ids": [sentence["sent_id"] for sentence in sentences],
                        "sentences": sentences,
                    }
                )

    def finish(self, world: dict[str, Any]) -> None:
        folder = self._folder / NAME
        instances = {
            "info": {"description": "RefShapes: synthetic shapes with referring expressions"},
            "licenses": [],
            "images": self._images,
            "annotations": self._annotations,
            "categories": [
                {"id": number, "name": name, "supercategory": "shape"}
                for name, number in CATEGORY_IDS.items()
            ],
        }
        # Pickle notes which strings are one object; a trip through JSON makes that a matter of content alone.
        plain = json.loads(json.dumps(self._refs))
        (folder / f"refs({SPLIT_BY}).p").write_bytes(pickle.dumps(plain, protocol=2))
        for name, content in (("instances", instances), ("tags", self._tags), ("world", world)):
            (folder / f"{name}.json").write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")
        counts = {split: astuple(self.counts(split)) for split in world["splits"]}
        # As bytes, so that the ends of lines are the same everywhere.
        (folder / "README.md").write_bytes(card(world, counts).encode())

    def counts(self, split: str) -> SplitCounts:
        refs = [ref for ref in self._refs if ref["split"] == split]
        return SplitCounts(
            self._images_per_split.get(split, 0), len(refs), sum(len(ref["sentences"]) for ref in refs)
        )


def _checked_splits(splits: Mapping[str, int]) -> dict[str, int]:
    for name, count in splits.items():
        if not isinstance(name, str) or not _SPLIT_NAME.fullmatch(name):
            raise InputError(f"RefShapes split name {name!r} may only have letters, digits, '_' and '-'")
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise InputError(f"RefShapes split {name!r} has {count!r} scenes; give a whole number from 0 up")
    if not any(splits.values()):
        raise InputError(
            "RefShapes has no scene to write; give at least one split a number of scenes above 0"
        )
    return dict(splits)


def _check_target(target: Path) -> None:
    """Allow a new or empty directory, or one that holds a RefShapes data set and nothing else."""
    if not target.exists():
        return
    if not target.is_dir():
        raise InputError(f"{target} is a file; give RefShapes a directory to write to")
    entries = {entry.name for entry in target.iterdir() if not entry.name.startswith(_STAGE_PREFIX)}
    if not entries:
        return
    advice = "give a new or empty directory"
    if not (target / NAME / "world.json").is_file():
        raise InputError(f"{target} is not empty and holds no RefShapes data set; {advice}")
    strangers = sorted(entries - {"images", NAME})
    if not strangers and (target / "images").is_dir():
        strangers = [
            entry.name for entry in (target / "images").iterdir() if not _IMAGE_NAME.fullmatch(entry.name)
        ]
    if strangers:
        raise InputError(f"{target} holds {strangers[0]!r} besides a RefShapes data set; {advice}")


def _move_in_place(stage: Path, target: Path) -> None:
    """Swap the new folders in by renames; annotations leave first and come last."""
    for leftover in target.glob(f"{_STAGE_PREFIX}*"):
        if leftover != stage:
            shutil.rmtree(leftover, ignore_errors=True)
    for name in (NAME, "images"):
        if (target / name).exists():
            (target / name).replace(stage / f"old-{name}")
    for name in ("images", NAME):
        (stage / name).replace(target / name)
