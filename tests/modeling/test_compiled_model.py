"""A model whose layers were compiled says what it said before.

In a process of its own: the tests' type checks would be compiled too.
"""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import torch
from promptris.modeling.build import build_random
from promptris.structures import ExpressionBatch, ImageBatch

torch.manual_seed(0)
model = build_random("refshapes").eval()
side, clip_side = model.sam.image_size, model.config.clip_image_size
images = ImageBatch(*(torch.randint(256, (2, 3, s, s), dtype=torch.uint8) for s in (clip_side, side)))
words = torch.ones(3, 6, dtype=torch.bool)
expressions = ExpressionBatch(torch.randint(99, (3, 6)), words, torch.tensor([0, 1, 1]))
graphs = []


def backend(graph, inputs):
    graphs.append(graph)
    return graph


with torch.inference_mode():
    expected = model(model.encode_image(images), expressions)
    model.compile_layers(backend=backend, fullgraph=True)
    for _ in range(2):
        answer = model(model.encode_image(images), expressions)
        for name in ("coarse_logits", "mask_logits", "predicted_iou"):
            torch.testing.assert_close(getattr(answer, name), getattr(expected, name), atol=1e-4, rtol=1e-4)
        print(len(graphs))
"""


def test_compiled_layers_say_the_same():
    """Everything is compiled in one piece, once."""
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    first, second = map(int, run.stdout.split())
    assert first == second
    # Layers of both towers, generators of both directions, decoder, SAM's encoder, its decoder.
    assert first >= 9
