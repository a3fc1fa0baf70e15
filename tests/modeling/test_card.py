"""Cards that the hub can read, and that say no more than is known."""

from __future__ import annotations

import yaml
from huggingface_hub import EvalResult, ModelCard

from promptris.builtin_models import builtin_folder
from promptris.modeling.card import CARD_FILE, card_head, with_license

SOURCES = {
    "clip": {"source": "openai/clip-vit-base-patch16", "format": "transformers", "sha256": "0" * 64},
    "sam": {"source": "/weights/sam_vit_b_01ec64.pth", "format": "meta", "sha256": "1" * 64},
}


def read(head: str) -> dict:
    """The metadata as the hub's own client reads it, which raises on results that are not well formed."""
    return ModelCard(head + "# Title\n", ignore_metadata_errors=False).data.to_dict()


def test_head_of_a_card():
    head = read(card_head(SOURCES))
    assert head["library_name"] == "promptris" and head["pipeline_tag"] == "image-segmentation"
    assert "referring-image-segmentation" in head["tags"]
    assert head["base_model"] == ["openai/clip-vit-base-patch16"]
    assert "license" not in head and "model-index" not in head


def test_the_task_is_one_that_the_hub_knows():
    from transformers.pipelines import get_supported_tasks

    assert read(card_head({}))["pipeline_tag"] in get_supported_tasks()


def test_results_are_read_back():
    result = EvalResult(
        task_type="image-segmentation",
        dataset_type="refcoco",
        dataset_name="refcoco",
        dataset_split="testA",
        metric_type="mean_iou",
        metric_name="mIoU",
        metric_value=12.5,
    )
    head = card_head({}, "apache-2.0", "Prompt-RIS", [result])
    assert ModelCard(head).data.eval_results == [result]
    assert read(head)["license"] == "apache-2.0"


def test_a_licence_is_added_where_there_is_no_head():
    card = with_license("# Plain\n\nText.\n", "mit")
    assert yaml.safe_load(card.split("---")[1])["license"] == "mit"
    assert card.endswith("# Plain\n\nText.\n")


def test_a_head_without_a_licence_gets_one_and_keeps_the_rest():
    card = card_head(SOURCES) + "# Title\n\n---\n\nText.\n"
    again = with_license(card, "mit")
    assert again.split("# Title")[1] == card.split("# Title")[1]
    assert read(again) == read(card_head(SOURCES)) | {"license": "mit"}


def test_the_built_in_model_has_a_card_for_the_hub():
    folder = builtin_folder("tiny")
    assert folder is not None
    head = ModelCard((folder / CARD_FILE).read_text(), ignore_metadata_errors=False).data.to_dict()
    assert head["license"] == "apache-2.0" and head["pipeline_tag"] == "image-segmentation"
