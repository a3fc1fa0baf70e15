"""A filled-in table for people: Markdown, and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from promptris.experiments.results import Judged, TableResult
from promptris.experiments.statistics import Spread


def to_markdown(result: TableResult) -> str:
    """The table with the paper's numbers beside ours, what became of its claims and others, baselines and notes."""
    table = result.table
    lines = [f"# {table.title}", "", _origin(result), ""]
    for split in result.splits:
        if len(result.splits) > 1:
            lines += [f"## {split.label}", ""]
        lines += _figures(result, split.label)
        if split.label in result.baselines:
            lines += ["", *_baselines(result, split.label)]
        lines += [""]
        if any(split.label in tags for tags in result.by_tag.values()):
            lines += [*_by_tag(result, split.label), ""]
    for title, told in (("The paper's orderings", True), ("Other comparisons", False)):
        judged = [one for one in result.judged if table.claimed_by_paper(one.ordering) is told]
        if judged:
            lines += [f"## {title}", "", *_orderings(judged, len(result.splits) > 1), ""]
    lines += [f"- {note}" for note in (*_protocol(result), *table.notes)]
    return "\n".join(lines).rstrip() + "\n"


def _origin(result: TableResult) -> str:
    facts = result.facts
    seeds = ", ".join(str(seed) for seed in facts["seeds"])
    return (
        f"`{facts['command']}`: recipe {facts['recipe']}, training seeds {seeds}, commit {facts['commit']}, "
        f"{facts['hardware']}, {facts['minutes']:.0f} minutes of computing: towers, training of its rows, and "
        "measuring them."
    )


def _figures(result: TableResult, split: str) -> list[str]:
    metrics = result.table.metrics
    with_paper = any(result.paper[row.label][split] for row in result.table.rows)
    header = ["in percent", *metrics, *(f"paper {metric}" for metric in metrics if with_paper)]
    rows = [header]
    for row in result.table.rows:
        ours = [_spread(result.figures[row.label][split][metric]) for metric in metrics]
        theirs = [
            f"{value:.2f}" if (value := result.paper[row.label][split].get(metric)) is not None else "–"
            for metric in metrics
            if with_paper
        ]
        rows.append([row.label, *ours, *theirs])
    return _grid(rows)


def _baselines(result: TableResult, split: str) -> list[str]:
    metrics = result.table.metrics
    baselines = result.baselines[split]
    rows = [[f"without a model (objects: {baselines.objects})", *metrics]]
    for name, scores in baselines.trivial.items():
        rows.append([name, *(f"{100 * scores[metric]:.1f}" for metric in metrics)])
    for grid, scores in baselines.oracle.items():
        rows.append([f"oracle on {grid} × {grid}", *(f"{100 * scores[metric]:.1f}" for metric in metrics)])
    return _grid(rows)


def _by_tag(result: TableResult, split: str) -> list[str]:
    labels = [row.label for row in result.table.rows]
    rows = [["mIoU by tag", "expressions", *labels]]
    for tag in result.table.tags:
        for value, score in result.by_tag[labels[0]][split][tag].items():
            scores = [_spread(result.by_tag[label][split][tag][value].miou) for label in labels]
            rows.append([f"{tag}: {value}", str(score.expressions), *scores])
    return _grid(rows)


def _orderings(judged: Sequence[Judged], with_split: bool) -> list[str]:
    header = ["claim", "by", "here: points [95 % interval]", "per seed", "paper: points", "verdict"]
    rows = [[*(["split"] if with_split else []), *header]]
    for one in judged:
        difference = one.difference
        cells = [
            f"{one.ordering.worse} < {one.ordering.better}",
            one.ordering.metric,
            f"{100 * difference.mean:+.1f} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]",
            " ".join(f"{100 * value:+.1f}" for value in difference.per_seed),
            "–" if one.paper is None else f"{one.paper:+.2f}",
            one.verdict,
        ]
        rows.append([*([one.split] if with_split else []), *cells])
    return _grid(rows)


def _protocol(result: TableResult) -> list[str]:
    seeds = len(result.facts["seeds"])
    notes = [
        "Protocol: every (referent, sentence) pair once, masks at the image's own size, probability above 0.5.",
        (f"± is the standard deviation over {seeds} training seeds. " if seeds > 1 else "")
        + "Intervals are for other images and other training seeds: the variance from drawing images again, the same "
        "for both rows, plus that of the seeds' differences. A claim is seen, or not seen, where the interval leaves "
        "out 0 and all seeds agree; a single seed decides nothing, and its interval is for other images alone.",
    ]
    beside_paper = [
        split
        for split in result.splits
        if any(result.paper[row.label][split.label] for row in result.table.rows)
    ]
    if any(split.name == "refshapes" for split in beside_paper):
        notes.append(
            "The paper's numbers are those of RefCOCO with the full-size towers; on RefShapes only the orderings can "
            "be compared."
        )
    notes += [
        f"The paper trains on RefCOCO, RefCOCO+ and RefCOCOg together, these rows on {training}: part of the "
        "distance from its numbers is the training set's."
        for training in dict.fromkeys(split.other_training for split in beside_paper)
        if training
    ]
    return notes


def _spread(value: Spread) -> str:
    if len(value.values) < 2:
        return f"{100 * value.mean:.1f}"
    return f"{100 * value.mean:.1f} ± {100 * value.std:.1f}"


def _grid(rows: Sequence[Sequence[str]]) -> list[str]:
    header, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return [header, "|" + " --- |" * len(rows[0]), *body]


def plot(result: TableResult, path: Path) -> None:
    """Bars of our figures with their spread, the paper's as marks beside them; one panel per split and metric."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metrics, labels = result.table.metrics, [row.label for row in result.table.rows]
    across, down = len(metrics), len(result.splits)
    figure = Figure(
        figsize=(1.6 + 2.2 * across, 0.9 + (0.7 + 0.3 * len(labels)) * down), layout="constrained"
    )
    FigureCanvasAgg(figure)
    grid = figure.subplots(down, across, squeeze=False, sharey=True)
    for line, split in zip(grid, result.splits, strict=True):
        for axes, metric in zip(line, metrics, strict=True):
            values = [result.figures[label][split.label][metric] for label in labels]
            places = range(len(labels))
            axes.barh(
                places,
                [100 * value.mean for value in values],
                xerr=[100 * value.std for value in values],
                color="#4c78a8",
                ecolor="#222222",
                height=0.62,
                label="here",
            )
            theirs = [result.paper[label][split.label].get(metric) for label in labels]
            told = [(place, value) for place, value in zip(places, theirs, strict=True) if value is not None]
            if told:
                axes.scatter(
                    [value for _, value in told],
                    [place for place, _ in told],
                    marker="D",
                    s=22,
                    color="#f58518",
                    edgecolor="white",
                    zorder=3,
                    label="paper, RefCOCO",
                )
            axes.set_yticks(list(places), labels)
            axes.set_xlim(0, 100)
            axes.set_xlabel(metric if len(result.splits) == 1 else f"{metric}, {split.label}")
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="x", alpha=0.25)
    grid[0][0].invert_yaxis()  # that of all panels, which share it
    handles, names = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower right", ncols=2, frameon=False)
    figure.suptitle(f"{result.table.title} (percent)", x=0.01, ha="left", fontsize=11)
    figure.savefig(path, dpi=150)
