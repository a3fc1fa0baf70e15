"""A data set with the layout and the size of RefCOCO, made of random polygons and words; no image files."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np

IMAGES, REFERENTS, SENTENCES = 20_000, 50_000, 142_000
_VOCABULARY = (
    "man woman left right red blue shirt in the with on far closest guy girl pizza horse front back of"
)
_SHARES = (("train", 0.85), ("val", 0.075), ("testA", 0.0375), ("testB", 0.0375))


def write_refcoco_sized(
    root: Path,
    images: int = IMAGES,
    referents: int = REFERENTS,
    sentences: int = SENTENCES,
    name: str = "refcoco",
    split_by: str = "unc",
    seed: int = 0,
) -> None:
    """Write `root/name/refs(split_by).p` and `instances.json`; about 100 MB at full size.

    As in COCO an image has more annotations than are referred to, so `instances.json` holds four per referent.
    """
    rng = np.random.default_rng(seed)
    words = _VOCABULARY.split()
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    ends = np.cumsum([round(share * images) for _, share in _SHARES[:-1]])
    splits = [_SHARES[int(np.searchsorted(ends, k, side="right"))][0] for k in range(images)]
    # Every image is referred to at least once, every referent has a sentence at least.
    owners = np.sort(np.concatenate([np.arange(images), rng.integers(0, images, referents - images)]))
    counts = 1 + np.bincount(rng.integers(0, referents, sentences - referents), minlength=referents)
    annotations: list[dict[str, Any]] = []
    refs: list[dict[str, Any]] = []
    sent_id = 0
    for ref_id, image in enumerate(owners.tolist()):
        for _ in range(4):
            ring = _polygon(rng)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image + 1,
                    "category_id": 1,
                    "iscrowd": 0,
                    "area": 1.0,
                    "bbox": [0.0, 0.0, 1.0, 1.0],
                    "segmentation": [ring],
                }
            )
        texts = [" ".join(rng.choice(words, rng.integers(1, 7))) for _ in range(counts[ref_id])]
        refs.append(
            {
                "ref_id": ref_id,
                "ann_id": len(annotations),
                "image_id": image + 1,
                "category_id": 1,
                "split": splits[image],
                "file_name": f"COCO_train2014_{image + 1:012d}_{ref_id}.jpg",
                "sent_ids": list(range(sent_id, sent_id + len(texts))),
                "sentences": [
                    {"tokens": text.split(), "raw": text, "sent": text, "sent_id": sent_id + k}
                    for k, text in enumerate(texts)
                ],
            }
        )
        sent_id += len(texts)
    instances = {
        "images": [
            {"id": k + 1, "file_name": f"COCO_train2014_{k + 1:012d}.jpg", "height": 480, "width": 640}
            for k in range(images)
        ],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "person", "supercategory": "person"}],
    }
    (folder / f"refs({split_by}).p").write_bytes(pickle.dumps(refs, protocol=2))
    (folder / "instances.json").write_text(json.dumps(instances))


def _polygon(rng: np.random.Generator) -> list[float]:
    """A star-shaped outline of 20 to 40 points within 640 x 480 pixels."""
    points = int(rng.integers(20, 41))
    angles = np.sort(rng.uniform(0, 2 * np.pi, points))
    radii = rng.uniform(20, 110) * rng.uniform(0.7, 1.0, points)
    x = np.clip(rng.uniform(0, 640) + radii * np.cos(angles), 0, 640)
    y = np.clip(rng.uniform(0, 480) + radii * np.sin(angles), 0, 480)
    return [round(float(value), 2) for value in np.stack([x, y], axis=1).ravel()]
