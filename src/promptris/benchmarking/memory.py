"""Resident memory of encoding an image, measured in a process of its own.

python -m promptris.benchmarking.memory MODEL WAY DTYPE    prints one JSON object
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Way = Literal["ours", "transformers"]
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Memory:
    """Megabytes (10^6 bytes) of resident memory.

    Attributes:
        before: with the model in memory, ready to work.
        peak: the most while an image was encoded.
        after: once it was, and an expression was answered.
    """

    before: float
    peak: float
    after: float

    @property
    def transient(self) -> float:
        """What encoding took on top, and gave back or kept."""
        return self.peak - self.before


def measure_memory(model: str, way: Way, dtype: str, random: bool) -> Memory | None:
    """Memory of one way; None where the system does not tell (anything but Linux)."""
    if not CLEAR_REFS.exists():
        return None
    arguments = [model, way, dtype, "random" if random else "trained"]
    done = subprocess.run(
        [sys.executable, "-m", "promptris.benchmarking.memory", *arguments],
        check=True,
        capture_output=True,
        text=True,
    )
    return Memory(**json.loads(done.stdout.splitlines()[-1]))


def _resident(key: str) -> float:
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(key + ":"))


def _measure(model: str, way: Way, dtype: str, random: bool) -> Memory:
    import numpy as np
    import torch

    from promptris.benchmarking.subjects import load_subject
    from promptris.modeling.plain import PlainPromptRIS
    from promptris.predictor import Predictor

    predictor = Predictor(load_subject(model, random, "cpu", dtype), remembered_images=0)
    pixels = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
    plain = PlainPromptRIS(predictor.model, "sdpa") if way == "transformers" else None
    gc.collect()
    # What was only needed to build the model goes back to the system, and the peak begins anew.
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR_REFS.write_text("5")
    before = _resident("VmRSS")
    if plain is None:
        with_image = predictor.set_image(pixels)
        peak = _resident("VmHWM")
        with_image.predict("the dog on the left")
    else:
        with torch.inference_mode():
            features = plain.encode_image(predictor.processor.images([pixels]))
            peak = _resident("VmHWM")
            plain(features, predictor.processor.expressions(["the dog on the left"]))
    return Memory(round(before, 1), round(peak, 1), round(_resident("VmRSS"), 1))


if __name__ == "__main__":
    name, how, kind, weights = sys.argv[1:5]
    print(json.dumps(asdict(_measure(name, how, kind, weights == "random"))))  # type: ignore[arg-type]
