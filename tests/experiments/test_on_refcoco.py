"""The tables on data in exactly RefCOCO's form, through the real command: what someone with the real files types."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from promptris.data.coco import CATEGORIES
from promptris.data.refshapes import Example, WorldOptions, make_example
from promptris.interfaces.cli import main
from promptris.ops.masks import mask_bbox
from promptris.ops.polygons import mask_to_coco_polygons

SPLITS = {
    ("refcoco", "unc"): ("train", "val", "testA", "testB"),
    ("refcoco+", "unc"): ("train", "val", "testA", "testB"),
    ("refcocog", "umd"): ("train", "val", "test"),
    ("refcocog", "google"): ("train", "val"),
}
# COCO's category ids for shapes: person, dog, cup, car, cat, couch, bench, knife; seen and unseen ones.
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "moon", "heart")
CATEGORY = dict(zip(SHAPES, (1, 18, 47, 3, 17, 63, 15, 49), strict=True))
SHRUNK = (
    *("--model.clip_image_size=96", "--model.prompting.num_prompts=2", "--model.prompting.heads=2"),
    *("--model.decoder.dim=32", "--model.decoder.heads=2", "--model.sam_prompts.text_heads=2"),
    *("--train.images_per_step=2", "--train.expressions_per_image=2", "--train.validate_every=0"),
    *("--engine.precision=32", "--engine.workers=0", "--engine.log=[]"),
    "--train.stages=[{epochs: 0.2, sam: false}, {epochs: 0.2, sam: true}]",
)


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root as `promptris data fetch` leaves it, with scenes of shapes for photographs."""
    root = tmp_path_factory.mktemp("coco")
    images = root / "images" / "train2014"
    images.mkdir(parents=True)
    scenes: list[Example] = []
    # Two images for each evaluation split, ten that all data sets train on.
    evaluated = [(key, split) for key, splits in SPLITS.items() for split in splits if split != "train"]
    for number in range(10 + 2 * len(evaluated)):
        scene = make_example(5, number, WorldOptions(categories="all"))
        Image.fromarray(scene.image).save(images / f"COCO_train2014_{number + 1:012d}.jpg", quality=90)
        scenes.append(scene)
    for key, splits in SPLITS.items():
        rows = []
        for split in splits:
            if split == "train":
                numbers = range(10)
            else:
                place = 10 + 2 * evaluated.index((key, split))
                numbers = range(place, place + 2)
            rows += [(split, number, scenes[number]) for number in numbers]
        _write(root / key[0], key[1], rows, scenes)
    return root


def _write(folder: Path, split_by: str, rows: list[tuple[str, int, Example]], scenes: list[Example]) -> None:
    folder.mkdir(exist_ok=True)
    refs: list[dict[str, Any]] = []
    sentences = 0
    for split, number, scene in rows:
        for target, shape in enumerate(scene.scene.objects):
            texts = [d.text for d in scene.descriptions if d.target == target][:2]
            if not texts:
                continue
            sent_ids = list(range(sentences, sentences + len(texts)))
            sentences += len(texts)
            ann_id = 100 * (number + 1) + target
            refs.append(
                {
                    "ref_id": len(refs),
                    "ann_id": ann_id,
                    "image_id": number + 1,
                    "category_id": CATEGORY[shape.category],
                    "split": split,
                    "file_name": f"COCO_train2014_{number + 1:012d}_{ann_id}.jpg",
                    "sent_ids": sent_ids,
                    "sentences": [
                        {"sent_id": k, "sent": text, "raw": text.upper(), "tokens": text.split()}
                        for k, text in zip(sent_ids, texts, strict=True)
                    ],
                }
            )
    (folder / f"refs({split_by}).p").write_bytes(pickle.dumps(refs, protocol=2))
    instances = {
        "images": [
            {"id": k + 1, "file_name": f"COCO_train2014_{k + 1:012d}.jpg", "height": 128, "width": 128}
            for k in range(len(scenes))
        ],
        "annotations": [
            {
                "id": 100 * (k + 1) + target,
                "image_id": k + 1,
                "category_id": CATEGORY[shape.category],
                "segmentation": mask_to_coco_polygons(scene.masks[target]),
                "area": int(scene.masks[target].sum()),
                "bbox": mask_bbox(scene.masks[target]),
                "iscrowd": 0,
            }
            for k, scene in enumerate(scenes)
            for target, shape in enumerate(scene.scene.objects)
        ],
        "categories": [{"id": number, "name": CATEGORIES[number]} for number in CATEGORY.values()],
    }
    (folder / "instances.json").write_text(json.dumps(instances))


@pytest.fixture
def ablate(coco: Path, towers: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def run(recipe: str, *tables: str) -> dict[str, Any]:
        out = tmp_path / "out"
        command = [
            "ablate",
            *tables,
            "--recipe",
            recipe,
            "--seeds",
            "0",
            "--out",
            str(out),
            "--device",
            "cpu",
        ]
        sources = [
            f"--towers.clip={towers / 'clip'}",
            f"--towers.sam={towers / 'sam'}",
            "--towers.preset=refshapes",
        ]
        code = main([*command, "--parallel", "2", f"--data.root={coco}", *sources, *SHRUNK])
        assert code == 0, [path.read_text() for path in out.glob("runs/*/log.txt")]
        return {table: json.loads((out / f"{table}.json").read_text()) for table in tables}

    return run


def test_prompts_on_refcoco_val(ablate: Callable[..., dict[str, Any]]) -> None:
    """One model, trained on the combined set, asked with all subsets of prompts."""
    table = ablate("refcoco-combined", "table5")["table5"]
    assert [split["label"] for split in table["splits"]] == ["refcoco val"]
    assert [row["label"] for row in table["rows"]][:2] == ["no prompt", "mask"]
    assert table["rows"][-1]["paper"]["refcoco val"]["mIoU"] == 78.1
    assert all(0 <= row["figures"]["refcoco val"]["mIoU"]["mean"] <= 1 for row in table["rows"])
    assert table["baselines"]["refcoco val"]["objects"] == "annotations"
    assert len(table["orderings"]) == 10


@pytest.mark.slow
def test_nine_columns_and_the_open_vocabulary(ablate: Callable[..., dict[str, Any]]) -> None:
    table = ablate("refcoco-combined", "table1")["table1"]
    labels = [split["label"] for split in table["splits"]]
    assert labels[:3] == ["refcoco val", "refcoco testA", "refcoco testB"] and len(labels) == 9
    ours = {row["label"]: row for row in table["rows"]}["Prompt-RIS"]
    assert [ours["paper"][label]["mIoU"] for label in labels] == [
        *(78.1, 81.21, 74.64),
        *(71.13, 76.6, 64.25),
        *(69.17, 70.47, 71.29),
    ]
    for row in table["rows"]:
        assert set(row["figures"]) == set(labels)


@pytest.mark.slow
def test_seen_and_unseen_on_refcoco(ablate: Callable[..., dict[str, Any]]) -> None:
    table = ablate("seen", "table2")["table2"]
    labels = [split["label"] for split in table["splits"]]
    assert labels == [f"refcoco {part} {kind}" for part in ("val", "test") for kind in ("seen", "unseen")]
    ours = {row["label"]: row for row in table["rows"]}["Prompt-RIS"]
    assert [ours["paper"][label]["mIoU"] for label in labels] == [78.74, 65.07, 78.15, 62.02]
