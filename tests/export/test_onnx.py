"""The built-in model as ONNX, exported once, by the command: graphs, manifest, script without torch."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

import promptris
from promptris.config import PROMPT_NAMES
from promptris.data.refshapes import WorldOptions, make_example
from promptris.errors import ExportError
from promptris.export import onnx as onnx_export
from promptris.export.checking import TOLERANCE, ask_model, compare
from promptris.export.graphs import PROMPTED_CLIP, PROMPTED_DECODER, SAM_ENCODER, SamEncoder, graphs_of
from promptris.export.onnx import export_onnx, onnx_runner
from promptris.interfaces.cli import main
from promptris.modeling.sam_prompts import Corrections
from promptris.structures import ExpressionBatch, ImageBatch

SCRIPT = Path(__file__).parents[2] / "examples" / "onnx_segment.py"


@pytest.fixture(scope="module")
def predictor():
    return promptris.load("tiny", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def exported(tmp_path_factory, without_shape_checks):
    """The folder, and what the command printed."""
    folder = tmp_path_factory.mktemp("onnx") / "tiny"
    out, err = io.StringIO(), io.StringIO()
    with without_shape_checks(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["export", "onnx", "--model", "tiny", "--out", str(folder)])
    assert code == 0, err.getvalue()
    return SimpleNamespace(folder=folder, out=out.getvalue(), err=err.getvalue())


@pytest.fixture(scope="module")
def manifest(exported):
    return json.loads((exported.folder / "export.json").read_text())


@pytest.fixture(scope="module")
def graphs(predictor, exported):
    """Graphs and what runs them, by name."""
    return {
        graph.name: (graph, onnx_runner(exported.folder / f"{graph.name}.onnx"))
        for graph in graphs_of(predictor.model)
    }


def test_the_command_tells_what_it_has_written(exported):
    rows = {row[0]: row[1:] for line in exported.out.splitlines() if len(row := line.split()) == 4}
    for name in (SAM_ENCODER, PROMPTED_CLIP, PROMPTED_DECODER):
        file, size, difference = rows[name]
        assert float(size) == pytest.approx((exported.folder / file).stat().st_size / 1e6, abs=0.05)
        assert 0 < float(difference) < 1e-4
    assert exported.err.splitlines()[-1].startswith(f"promptris: written to {exported.folder}")
    assert all(line.startswith("promptris: ") for line in exported.err.splitlines()), exported.err


def test_the_manifest_describes_the_graphs(exported, manifest):
    assert manifest["runtime"]["opset"] == 18
    types = {
        "tensor(float)": "float32",
        "tensor(int64)": "int64",
        "tensor(bool)": "bool",
        "tensor(uint8)": "uint8",
    }
    for graph in manifest["graphs"].values():
        path = exported.folder / graph["file"]
        onnx.checker.check_model(path)
        assert {entry.domain: entry.version for entry in onnx.load(path).opset_import}[""] == 18
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for told, real in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
            assert graph[told] == [
                {"name": spec.name, "dtype": types[spec.type], "shape": spec.shape} for spec in real
            ]
    assert (manifest["images"]["clip_pixels"]["size"], manifest["images"]["sam_pixels"]["size"]) == (96, 128)
    assert manifest["text"]["context_length"] == 24
    assert manifest["model"]["refine"] is True


def test_the_manifest_tells_every_file(exported, manifest):
    others = {path.name: path for path in exported.folder.iterdir() if path.name != "export.json"}
    assert set(manifest["files"]) == set(others)
    for name, told in manifest["files"].items():
        content = others[name].read_bytes()
        assert told == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


@pytest.mark.parametrize(
    "sizes",
    [(1, 1, 2, 0), (1, 1, 24, 1), (1, 7, 6, 0), (3, 2, 5, 1), (2, 6, 24, 4), (4, 4, 4, 4)],
    ids=lambda sizes: "I{} B{} T{} M{}".format(*sizes),
)
def test_any_sizes(predictor, graphs, sizes):
    named = dict(zip(("images", "expressions", "tokens", "clicks"), sizes, strict=True))
    question = ask_model(predictor.model, named, seed=sum(sizes))
    for graph, run in graphs.values():
        assert compare(graph, run, [question]) < 1e-5


@pytest.mark.parametrize(
    "prompts", [names for count in (1, 2, 3) for names in itertools.combinations(PROMPT_NAMES, count)]
)
def test_any_prompts(predictor, graphs, prompts):
    """Against the whole model, which is told the prompts by name; a box is two clicks with labels of their own."""
    question = ask_model(predictor.model, {"images": 1, "expressions": 2, "tokens": 5, "clicks": 3}, seed=4)
    clip, given = question.inputs[PROMPTED_CLIP], question.inputs[PROMPTED_DECODER]
    corners = np.float32([[[0.2, 0.1], [0.7, 0.6]]]).repeat(2, axis=0)
    click = np.float32([[[0.4, 0.3]]]).repeat(2, axis=0)
    _, run = graphs[PROMPTED_DECODER]
    answers = run(
        given
        | {
            "prompts": np.array([[name in prompts for name in PROMPT_NAMES]] * 2),
            "points": np.concatenate([click, corners], axis=1),
            "labels": np.array([[1, 2, 3]] * 2),
        }
    )
    pixels = ImageBatch(
        torch.from_numpy(clip["clip_pixels"]), torch.from_numpy(question.inputs[SAM_ENCODER]["sam_pixels"])
    )
    about = (torch.from_numpy(clip[name]) for name in ("input_ids", "word_mask", "image_index"))
    with torch.no_grad():
        output = predictor.model(
            predictor.model.encode_image(pixels),
            ExpressionBatch(*about),
            prompts=prompts,
            corrections=Corrections(
                torch.from_numpy(click), torch.ones(2, 1, dtype=torch.long), torch.from_numpy(corners)
            ),
        )
    np.testing.assert_allclose(answers["mask_logits"], output.mask_logits.numpy(), atol=2e-4)
    np.testing.assert_array_equal(answers["point_index"], output.point_index.numpy())


# ------------------------------------------------------------------------------------------------ without torch

BLOCKED = """
import importlib.abc, runpy, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "promptris"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Block())
"""


def run_script(*arguments, code="runpy.run_path(sys.argv[0], run_name='__main__')"):
    program = f"{BLOCKED}\nsys.argv = sys.argv[1:]\n{code}"
    return subprocess.run(
        [sys.executable, "-c", program, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True
    )


def overlap(a, b):
    return float((a & b).sum() / max(1, (a | b).sum()))


def test_the_script_gives_the_masks_of_promptris(predictor, exported, tmp_path):
    """Several scenes, not square, every expression; one process, into which torch cannot be imported."""
    questions = []
    for index in range(4):
        example = make_example(777, index, WorldOptions())
        picture = Image.fromarray(example.image).resize((200 + 40 * index, 150))
        picture.save(tmp_path / f"{index}.png")
        questions.append([f"{index}.png", [description.text for description in example.descriptions[:6]]])
    (tmp_path / "questions.json").write_text(json.dumps(questions))
    code = """
import json, numpy
from pathlib import Path
from PIL import Image
script = runpy.run_path(sys.argv[0])
folder = Path(sys.argv[2])
segmenter = script["Segmenter"](Path(sys.argv[1]))
answers = []
for name, texts in json.loads((folder / "questions.json").read_text()):
    segmenter.set_image(Image.open(folder / name))
    answers += segmenter.segment(texts)
    answers += segmenter.segment(texts[:1], clicks=[(20, 30, 1), (5, 5, 0)])
numpy.savez(folder / "answers.npz", *[mask for mask, _ in answers], scores=[score for _, score in answers])
assert "torch" not in sys.modules
"""
    done = run_script(exported.folder, tmp_path, code=code)
    assert done.returncode == 0, done.stderr
    answers = np.load(tmp_path / "answers.npz")
    masks = [answers[name] for name in answers.files if name != "scores"]
    wanted = []
    for name, texts in questions:
        with_image = predictor.set_image(tmp_path / name)
        wanted += [*with_image.predict(texts), with_image.predict(texts[0], points=[(20, 30, 1), (5, 5, 0)])]
    assert len(masks) == len(wanted) > 20
    ious = [overlap(mask, prediction.mask) for mask, prediction in zip(masks, wanted, strict=True)]
    assert min(ious) >= 0.99
    np.testing.assert_allclose(answers["scores"], [prediction.score for prediction in wanted], atol=5e-3)


def test_the_script_as_a_command(predictor, exported, tmp_path):
    example = make_example(777, 5, WorldOptions())
    Image.fromarray(example.image).save(tmp_path / "scene.png")
    text = example.descriptions[0].text
    done = run_script(exported.folder, tmp_path / "scene.png", text, "--out", tmp_path / "mask.png")
    assert done.returncode == 0, done.stderr
    prediction = predictor.set_image(example.image).predict(text)
    with Image.open(tmp_path / "mask.png") as mask:
        assert mask.mode == "1"
        assert overlap(np.asarray(mask), prediction.mask) >= 0.99
    assert json.loads(done.stdout)["score"] == pytest.approx(prediction.score, abs=5e-3)


@pytest.mark.parametrize(
    ("image", "expression", "word"),
    [
        ("scene.png", " ", "empty"),
        ("nothing.png", "the star", "nothing.png"),
        ("text.png", "the star", "text.png"),
    ],
)
def test_the_script_says_what_is_wrong(exported, tmp_path, image, expression, word):
    Image.new("RGB", (8, 8)).save(tmp_path / "scene.png")
    (tmp_path / "text.png").write_text("no picture")
    done = run_script(exported.folder, tmp_path / image, expression)
    assert done.returncode == 2
    assert word in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_its_tokens_are_the_processors(predictor, exported, manifest):
    code = """
import json
from pathlib import Path
segmenter = runpy.run_path(sys.argv[0])["Segmenter"](Path(sys.argv[1]))
for texts in json.loads(sys.argv[2]):
    ids, there = segmenter.tokens(texts)
    print(json.dumps([ids.tolist(), there.tolist()]))
"""
    batches = [
        ["the red circle"],
        ["a", "the Star left of the small blue square!", "ÄÖ 星 🙂"],
        ["word " * 80, "the ring"],
    ]
    done = run_script(exported.folder, json.dumps(batches), code=code)
    assert done.returncode == 0, done.stderr
    for texts, line in zip(batches, done.stdout.splitlines(), strict=True):
        with pytest.warns(UserWarning) if "word" in texts[0] else contextlib.nullcontext():
            wanted = predictor.processor.expressions(texts)
        assert json.loads(line) == [wanted.input_ids.tolist(), wanted.word_mask.tolist()]


# ------------------------------------------------------------------------------------------- what can go wrong


@pytest.mark.slow
def test_relative_positions_and_windows_that_stick_out(
    make_model, make_sam, tmp_path, without_shape_checks, monkeypatch
):
    """As SAM's published encoders have them: queries in several parts, weights in a file of their own."""
    from promptris.modeling import relative_attention

    monkeypatch.setattr(relative_attention, "PLAIN_ROWS", 24)
    monkeypatch.setattr(onnx_export, "IN_ONE_FILE", 0)
    sam = make_sam(use_rel_pos=True)
    for layer in sam.vision_encoder.layers:
        if layer.window_size:
            layer.window_size = 3
            side = torch.randn(5, layer.attn.rel_pos_h.shape[1], generator=torch.Generator().manual_seed(1))
            layer.attn.rel_pos_h.data, layer.attn.rel_pos_w.data = side, side.flip(0)
    model = make_model(sam=sam)
    graph = graphs_of(model)[0]
    assert isinstance(graph.module, SamEncoder)
    with without_shape_checks():
        onnx_export._write(graph, tmp_path / "graph.onnx", 18)
    weights = 4 * sum(weight.numel() for weight in sam.vision_encoder.parameters())
    assert (tmp_path / "graph.onnx.data").stat().st_size > 0.9 * weights
    question = ask_model(model, {"images": 3, "expressions": 1, "tokens": 3, "clicks": 0}, seed=0)
    assert compare(graph, onnx_runner(tmp_path / "graph.onnx"), [question]) < 1e-5


def test_graphs_that_differ_are_not_kept(small_model, tmp_path, monkeypatch):
    def copy(graph, path, opset):
        path.write_bytes(b"")

    def wrong(path):
        return lambda inputs: {
            "sam_embeddings": np.zeros((len(inputs["sam_pixels"]), 64, 16, 16), np.float32)
        }

    monkeypatch.setattr(onnx_export, "write_graph", copy)
    monkeypatch.setattr(onnx_export, "onnx_runner", wrong)
    with pytest.raises(ExportError, match="sam_encoder does not compute what the model does"):
        export_onnx(small_model, tmp_path / "export", "small")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_recorded_is_one_sentence(small_model, tmp_path, monkeypatch):
    def fail(self, pixels):
        raise RuntimeError("no such operator\nand many more lines")

    monkeypatch.setattr(SamEncoder, "forward", fail)
    with pytest.raises(ExportError, match=r"sam_encoder cannot be made an ONNX graph: no such operator$"):
        export_onnx(small_model, tmp_path / "export", "small")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("opset", [20, 22])
def test_other_opsets(small_model, tmp_path, without_shape_checks, opset):
    with without_shape_checks():
        written = export_onnx(small_model, tmp_path / "export", "small", opset)
    assert max(one.difference for one in written) < TOLERANCE
    assert onnx.load(tmp_path / "export" / "sam_encoder.onnx").opset_import[0].version == opset


@pytest.mark.slow
def test_full_size(tmp_path):
    """The paper's size with random weights, in a process of its own: 1.1 GB of weights."""
    command = ["export", "onnx", "--model", "vit-b", "--random-weights", "--out", str(tmp_path / "vit-b")]
    program = f"from promptris.interfaces.cli import main; raise SystemExit(main({command!r}))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "vit-b" / "export.json").read_text())
    assert manifest["images"]["sam_pixels"]["size"] == 1024
    assert max(graph["largest_difference"] for graph in manifest["graphs"].values()) < TOLERANCE
    assert sum(told["bytes"] for told in manifest["files"].values()) > 1.1e9
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 9e6
