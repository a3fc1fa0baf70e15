"""Differences between a graph and the model are found."""

from __future__ import annotations

import numpy as np
import pytest

from promptris.errors import ExportError
from promptris.export.checking import ask_model, check_sizes, compare
from promptris.export.graphs import PROMPTED_DECODER, SAM_ENCODER, graphs_of


@pytest.fixture(scope="module")
def graphs(small_model):
    return {graph.name: graph for graph in graphs_of(small_model)}


@pytest.fixture(scope="module")
def questions(small_model, graphs):
    sizes = check_sizes(graphs[SAM_ENCODER].longest)
    return [ask_model(small_model, one, seed) for seed, one in enumerate(sizes)]


def answering(questions, graph, change=lambda name, value: value):
    """Runs that give the model's own outputs, changed."""

    def run(inputs):
        (question,) = [q for q in questions if q.inputs[graph.name] is inputs]
        return {name: change(name, value) for name, value in question.outputs[graph.name].items()}

    return run


def test_questions_have_the_shapes_that_the_graphs_tell(graphs, questions):
    for sizes, question in zip(check_sizes(graphs[SAM_ENCODER].longest), questions, strict=True):
        for graph in graphs.values():
            for specs, arrays in ((graph.inputs, question.inputs), (graph.outputs, question.outputs)):
                assert list(arrays[graph.name]) == [spec.name for spec in specs]
                for spec in specs:
                    array = arrays[graph.name][spec.name]
                    assert array.dtype == spec.dtype
                    assert array.shape == tuple(sizes.get(size, size) for size in spec.shape)


def test_the_model_agrees_with_itself(graphs, questions):
    for graph in graphs.values():
        assert compare(graph, answering(questions, graph), questions) == 0


def test_small_differences_are_told_and_large_ones_refused(graphs, questions):
    graph = graphs[PROMPTED_DECODER]

    def off_by(share):
        def change(name, value):
            return value + np.float32(share) * np.abs(value).max() if name == "mask_logits" else value

        return answering(questions, graph, change)

    assert compare(graph, off_by(1e-4), questions) == pytest.approx(1e-4, rel=0.05)
    with pytest.raises(
        ExportError, match=r"prompted_decoder does not compute .* mask_logits is off by 0.01 "
    ):
        compare(graph, off_by(1e-2), questions)
    with pytest.raises(ExportError, match="mask_logits is off by nan"):
        compare(graph, off_by(np.nan), questions)


def test_another_point_is_refused(graphs, questions):
    graph = graphs[PROMPTED_DECODER]
    run = answering(questions, graph, lambda name, value: value + (name == "point_index"))
    with pytest.raises(ExportError, match="point_index"):
        compare(graph, run, questions)


def test_another_shape_is_refused(graphs, questions):
    graph = graphs[SAM_ENCODER]
    with pytest.raises(ExportError, match="gives sam_embeddings as float32"):
        compare(graph, answering(questions, graph, lambda name, value: value[..., :-1]), questions)


def test_a_graph_that_does_not_run_is_one_sentence(graphs, questions):
    def run(inputs):
        raise RuntimeError("no kernel for Attention\nand many more lines")

    with pytest.raises(ExportError, match=r"sam_encoder does not run: no kernel for Attention$"):
        compare(graphs[SAM_ENCODER], run, questions)
