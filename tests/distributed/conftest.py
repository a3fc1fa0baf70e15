"""Scenes, questions about them, what the predictor of this process answers, and a Ray of two cores."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"
# Ray's workers step back behind everything else on a machine, and would starve on a busy one.
os.environ.setdefault("RAY_worker_niceness", "0")

pytest.importorskip("ray")


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Twelve scenes as files, each with three expressions about it."""
    from PIL import Image

    from promptris.data.refshapes import make_example

    folder = tmp_path_factory.mktemp("scenes")
    expressions = {}
    for index in range(12):
        example = make_example(seed=31, index=index)
        path = folder / f"scene {index}.png"
        Image.fromarray(example.image).save(path)
        texts = [description.text for description in example.descriptions]
        expressions[str(path)] = list(dict.fromkeys(texts))[:3]
    return expressions


@pytest.fixture(scope="session")
def tiny() -> Any:
    """The predictor that the workers' answers are compared with."""
    from promptris.predictor import load

    return load("tiny", device="cpu")


@pytest.fixture(scope="session")
def expected(scenes: dict[str, list[str]], tiny: Any) -> dict[tuple[str, str], Any]:
    """Predictions by (image, expression)."""
    return {
        (image, text): prediction
        for image, texts in scenes.items()
        for text, prediction in zip(texts, tiny.set_image(image).predict(texts), strict=True)
    }


@pytest.fixture(scope="session")
def write_lines() -> Callable[..., Path]:
    """Writes rows as JSON lines; text stays as it is."""

    def write(path: Path, rows: list[Any]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """Two cores of this machine, for the tests of a session."""
    import ray

    for tries in range(3):
        try:
            ray.init(
                "local",
                num_cpus=2,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="error",
                object_store_memory=100 << 20,
            )
            break
        except Exception:  # on a busy machine it does not come up within its 30 seconds
            ray.shutdown()
            if tries == 2:
                raise
    yield
    ray.shutdown()
