"""Training batches: a pure function of the step, the same after a resume, and going on past broken images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from promptris.data import ReferDataset, read_refer
from promptris.data.batches import ReferBatches
from promptris.data.pictures import load_record
from promptris.data.refshapes.writer import write_refshapes
from promptris.errors import InputError
from promptris.modeling.tokenizer import build_word_tokenizer
from promptris.ops.resizing import pool_masks
from promptris.processing import Processor
from promptris.structures import TrainingBatch

PROCESSOR = Processor(build_word_tokenizer(["the", "red", "circle"], 40), 24, 32, 40)


@pytest.fixture
def dataset(tmp_path: Path) -> ReferDataset:
    """Eight images of 128 x 128."""
    write_refshapes(tmp_path / "world", {"train": 8, "val": 2}, seed=3)
    return read_refer(tmp_path / "world", "refshapes")


def batches(dataset: ReferDataset, **changes: Any) -> ReferBatches:
    options: dict[str, Any] = {
        "images_per_step": 2,
        "expressions_per_image": 4,
        "word_deletion": 0.15,
        "seed": 0,
        "needs_sam": lambda step: step >= 2,
    }
    return ReferBatches(dataset, "train", PROCESSOR, 16, **(options | changes))


def equal(a: TrainingBatch, b: TrainingBatch) -> bool:
    return (
        a.image_ids == b.image_ids
        and torch.equal(a.images.clip_pixels, b.images.clip_pixels)
        and torch.equal(a.expressions.input_ids, b.expressions.input_ids)
        and torch.equal(a.truth.masks, b.truth.masks)
        and torch.equal(a.truth.instance_id, b.truth.instance_id)
    )


def test_a_batch_holds_what_it_should(dataset: ReferDataset) -> None:
    batch = batches(dataset)[0]
    assert batch.images.clip_pixels.shape == (2, 3, 24, 24)
    assert batch.images.sam_pixels is None
    assert batches(dataset)[2].images.sam_pixels is not None
    assert batch.expressions.image_index.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    by_ann = {r.ann_id: r for r in dataset.splits["train"]}
    for row, ann_id in enumerate(batch.truth.instance_id.tolist()):
        referent = by_ann[ann_id]
        assert referent.image_id == batch.image_ids[row // 4]
        expected = pool_masks(torch.from_numpy(dataset.mask(referent))[None], (16, 16))[0]
        assert torch.equal(batch.truth.masks[row], expected)
    assert batch.skipped == ()


def test_a_step_is_the_same_however_one_comes_to_it(dataset: ReferDataset) -> None:
    fresh = batches(dataset)
    walked = batches(dataset)
    seen = [walked[step] for step in range(6)]
    assert equal(fresh[5], seen[5])
    assert not equal(seen[4], seen[5])
    assert not equal(batches(dataset, seed=1)[5], seen[5])


def test_ranks_of_a_step_see_different_images(dataset: ReferDataset) -> None:
    ranks = [batches(dataset, rank=rank, world_size=2) for rank in range(2)]
    for step in range(4):
        first, second = (set(rank[step].image_ids) for rank in ranks)
        assert not first & second


def spoil(dataset: ReferDataset, image_id: int) -> Path:
    path = dataset.images[image_id].path
    path.write_bytes(path.read_bytes()[:300])
    return path


def test_a_broken_image_stops_training_by_name(dataset: ReferDataset) -> None:
    path = spoil(dataset, batches(dataset)[0].image_ids[1])
    with pytest.raises(InputError, match=rf"{path.name} is damaged or cut off"):
        batches(dataset)[0]


def test_on_request_another_image_stands_in_for_a_broken_one(dataset: ReferDataset) -> None:
    whole = batches(dataset)[0]
    path = spoil(dataset, whole.image_ids[0])
    batch = batches(dataset, skip_broken=True)[0]
    assert len(set(batch.image_ids)) == 2
    assert whole.image_ids[0] not in batch.image_ids
    assert whole.image_ids[1] in batch.image_ids
    (sentence,) = batch.skipped
    assert str(path) in sentence
    assert equal(batch, batches(dataset, skip_broken=True)[0])
    # Steps without the broken image are as they were.
    assert batches(dataset, skip_broken=True)[1].skipped == ()


def test_when_nothing_can_be_read_that_is_said(dataset: ReferDataset) -> None:
    for image_id in dataset.image_ids("train"):
        spoil(dataset, image_id)
    with pytest.raises(InputError, match="too few images can be read"):
        batches(dataset, skip_broken=True)[0]


def test_the_wrong_image_is_noticed_at_full_and_at_reduced_size(
    tmp_path: Path, dataset: ReferDataset
) -> None:
    record = next(iter(dataset.images.values()))
    Image.new("RGB", (640, 480)).save(tmp_path / "photo.jpg")
    photo = replace(record, path=tmp_path / "photo.jpg", height=480, width=640)
    assert load_record(photo).shape == (480, 640, 3)
    assert load_record(photo, at_least=100).shape == (120, 160, 3)
    for other in (replace(photo, height=470), replace(photo, height=640, width=480)):
        for at_least in (None, 100):
            with pytest.raises(InputError, match="640 x 480 pixels, its annotations are for"):
                load_record(other, at_least)
    # Decoded at a quarter, the photo has the size that half of this record would have.
    with pytest.raises(InputError, match="annotations are for 320 x 240"):
        load_record(replace(photo, height=240, width=320))
