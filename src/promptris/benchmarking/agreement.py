"""How far the fast ways are from the plain ones."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from promptris.data.refshapes import WorldOptions, make_example
from promptris.modeling.plain import PlainPromptRIS
from promptris.placement import place
from promptris.predictor import Predictor, load

SEED, SCENES = 777, 20


def relative_error(found: Tensor, expected: Tensor) -> float:
    """||found - expected|| / ||expected||."""
    difference = (found.float() - expected.float()).norm() / expected.float().norm()
    return float(f"{float(difference):.3g}")


def mask_agreement(device: str) -> dict[str, float]:
    """Masks of the built-in model on RefShapes scenes it has never seen: mean IoU with the plain way's in float32."""
    exact = load("tiny", device, "float32")
    half = Predictor(place(load("tiny", device).model, device, "bfloat16"))
    plain = PlainPromptRIS(exact.model, "sdpa")
    ious: dict[str, list[float]] = {"final_fp32": [], "final_bf16": [], "coarse_fp32": [], "coarse_bf16": []}
    for index in range(SCENES):
        scene = make_example(SEED, index, WorldOptions())
        texts = [description.text for description in scene.descriptions]
        size = scene.image.shape[:2]
        with torch.inference_mode():
            features = plain.encode_image(exact.processor.images([scene.image]).to(device))
            output = plain(features, exact.processor.expressions(texts).to(device))
            assert output.mask_logits is not None
            final = (exact.processor.restore(output.mask_logits, size).sigmoid() > 0.5).cpu().numpy()
            coarse = (exact.processor.restore(output.coarse_logits_hr, size).sigmoid() > 0.5).cpu().numpy()
        for name, predictor in (("fp32", exact), ("bf16", half)):
            answers = predictor.set_image(scene.image).predict(texts)
            ious[f"final_{name}"] += [_iou(a.mask, b) for a, b in zip(answers, final, strict=True)]
            ious[f"coarse_{name}"] += [_iou(a.coarse_mask, b) for a, b in zip(answers, coarse, strict=True)]
    return {
        f"{name}_mask_iou_on_refshapes": round(float(np.mean(values)), 5) for name, values in ious.items()
    }


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 1.0
