"""The graphs' modules: what they hold, and what they leave alone."""

from __future__ import annotations

from promptris.export.graphs import graphs_of


def weights(module):
    return {weight.data_ptr(): weight.numel() for weight in module.parameters()}


def test_each_graph_holds_its_own_weights_and_no_others(small_model):
    """CLIP's projections and temperature have no part in any answer."""
    held = [weights(graph.module) for graph in graphs_of(small_model)]
    whole = weights(small_model)
    assert set().union(*held) < set(whole)
    assert not (set(held[0]) & set(held[1]) or set(held[0]) & set(held[2]) or set(held[1]) & set(held[2]))
    clip = small_model.clip.clip
    unused = clip.visual_projection.weight.numel() + clip.text_projection.weight.numel()
    assert sum(whole.values()) - sum(sum(part.values()) for part in held) == unused


def test_the_model_stays_whole(small_model):
    before = dict(small_model.named_parameters())
    graphs_of(small_model)
    after = dict(small_model.named_parameters())
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)


def test_shapes_that_are_chosen_at_every_call(small_model):
    graphs = {graph.name: graph for graph in graphs_of(small_model)}
    shapes = graphs["prompted_decoder"].dynamic_shapes()
    names = [{axis: dim.__name__ for axis, dim in one.items()} for one in shapes]
    assert names == [
        {0: "images"},
        {0: "expressions"},
        {0: "expressions", 1: "tokens"},
        {0: "expressions", 1: "tokens"},
        {0: "expressions"},
        {0: "expressions"},
        {0: "expressions", 1: "clicks"},
        {0: "expressions", 1: "clicks"},
    ]
    assert shapes[2][1].max == small_model.processor().context_length
