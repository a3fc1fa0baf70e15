"""The graphs as programs of torch.export, and compiled."""

from __future__ import annotations

import json
import shutil

import pytest

import promptris
from promptris.errors import ExportError
from promptris.export.checking import ask_model, compare
from promptris.export.graphs import SAM_ENCODER, SamEncoder, graphs_of
from promptris.export.torch_export import _write, export_torch, torch_runner


def test_a_program_is_saved_loaded_and_run_at_any_size(small_model, tmp_path, without_shape_checks):
    graph = next(graph for graph in graphs_of(small_model) if graph.name == SAM_ENCODER)
    with without_shape_checks():
        _write(graph, tmp_path / "graph.pt2", compiled=False)
    weights = 4 * sum(weight.numel() for weight in small_model.sam.sam.vision_encoder.parameters())
    assert (tmp_path / "graph.pt2").stat().st_size < 1.5 * weights + 1_000_000
    run = torch_runner(graph, tmp_path / "graph.pt2", compiled=False)
    for images in (1, 3):
        sizes = {"images": images, "expressions": 1, "tokens": 3, "clicks": 0}
        assert compare(graph, run, [ask_model(small_model, sizes, seed=images)]) < 1e-5


def test_what_cannot_be_recorded_is_one_sentence(small_model, tmp_path, monkeypatch):
    def fail(self, pixels):
        raise RuntimeError("no such operation\nand many more lines")

    monkeypatch.setattr(SamEncoder, "forward", fail)
    with pytest.raises(ExportError, match=r"sam_encoder cannot be recorded: no such operation$"):
        export_torch(small_model, tmp_path / "export", "small")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
def test_the_built_in_model(tmp_path, without_shape_checks, compiled):
    if compiled and shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    model = promptris.load("tiny", device="cpu", dtype="float32").model
    with without_shape_checks():
        written = export_torch(model, tmp_path / "tiny", "tiny", compiled)
    assert max(one.difference for one in written) < 1e-4
    manifest = json.loads((tmp_path / "tiny" / "export.json").read_text())
    assert manifest["runtime"]["format"] == ("aotinductor" if compiled else "torch.export")
    graphs = {graph.name: graph for graph in graphs_of(model)}
    assert manifest["runtime"]["fewest_clicks"] == int(compiled)
    sizes = {"images": 3, "expressions": 4, "tokens": 2, "clicks": int(compiled)}
    question = ask_model(model, sizes, seed=9)
    for name, told in manifest["graphs"].items():
        run = torch_runner(graphs[name], tmp_path / "tiny" / told["file"], compiled)
        assert compare(graphs[name], run, [question]) < 1e-4
