"""Pictures of what models did on a day, as PNG; every line and dot is named where it ends.

Colours: Okabe & Ito (2008), which people with any colour vision tell apart; baselines are grey and dashed.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREYS = ("#333333", "#777777", "#a0a0a0")
DASHES = ("--", ":", "-.")
DOTS_PER_INCH = 110
LEAST_GAP = 0.055
"""Between two names at the ends of lines, as a share of the picture's height."""


@dataclass(frozen=True)
class Drawn:
    """A model as pictures show it."""

    name: str
    is_baseline: bool
    numbers: Mapping[str, float]
    """Metrics by name, `…_low` and `…_high` among them."""


def learning_curve(losses: Sequence[tuple[int, float]], name: str) -> bytes:
    """The mean loss of each epoch."""
    figure, axes = canvas(f"Training loss of {name}", "epoch", "mean loss of the epoch")
    epochs, values = zip(*losses, strict=True)
    axes.plot(epochs, values, color=COLOURS[0], marker="o", markersize=4)
    axes.set_xticks(sorted({round(epoch) for epoch in np.linspace(epochs[0], epochs[-1], min(len(epochs), 10))}))
    axes.annotate(f"{values[-1]:.3f}", (epochs[-1], values[-1]), (6, 4), textcoords="offset points", fontsize=9)
    axes.margins(x=0.08)
    return as_png(figure)


def recall_by_k(models: Sequence[Drawn], ks: Sequence[int], protocol: str = "all") -> bytes:
    """Recall against the length of the list, a line a model, a band its 95 % interval."""
    figure, axes = canvas(f"Recall@k of the next item, protocol {protocol}", "length of the list, k", "recall@k")
    names = [f"{protocol}/next_recall_at_{k}" for k in ks]
    ends = []
    for model, colour, dash in styled(models):
        values = [model.numbers.get(name, np.nan) for name in names]
        axes.plot(ks, values, color=colour, linestyle=dash, marker="o", markersize=4)
        if not model.is_baseline:
            low, high = ([model.numbers.get(f"{name}_{bound}", np.nan) for name in names] for bound in ("low", "high"))
            axes.fill_between(ks, low, high, color=colour, alpha=0.15, linewidth=0)
        ends.append((values[-1], model.name, colour))
    axes.set_xticks(ks)
    axes.set_ylim(bottom=0)
    name_ends(axes, ends)
    return as_png(figure)


def recall_by_slice(models: Sequence[Drawn], kind: str, k: int) -> bytes:
    """Recall in each slice of a kind, dots with 95 % intervals beside each other."""
    titles = {"all_by_length": "events in the session", "all_by_popularity": "popularity of the item to be found"}
    figure, axes = canvas(f"Recall@{k} by {titles[kind]}", titles[kind], f"recall@{k}")
    slices = {"all_by_length": ("2", "3_to_4", "5_to_9", "10_up"), "all_by_popularity": ("head", "middle", "tail")}[
        kind
    ]
    places = np.arange(len(slices))
    names = [f"{kind}/{each}/next_recall_at_{k}" for each in slices]
    ends = []
    shifts = np.linspace(-0.12, 0.12, len(models)) if len(models) > 1 else [0.0]
    for (model, colour, dash), shift in zip(styled(models), shifts, strict=True):
        values, low, high = (
            np.array([model.numbers.get(f"{name}{bound}", np.nan) for name in names]) for bound in ("", "_low", "_high")
        )
        axes.errorbar(
            places + shift,
            values,
            [np.maximum(values - low, 0), np.maximum(high - values, 0)],
            color=colour,
            linestyle=dash,
            marker="o",
            markersize=4,
            linewidth=1,
            elinewidth=1,
        )
        last = values[np.isfinite(values)]
        ends.append((last[-1] if len(last) else 0.0, model.name, colour))
    axes.set_xticks(places, [in_words(each) for each in slices])
    axes.set_ylim(bottom=0)
    name_ends(axes, ends)
    return as_png(figure)


def models_beside_each_other(models: Sequence[Drawn], metric: str) -> bytes:
    """One metric of every model with its 95 % interval, the best on top, the best baseline as a line."""
    ordered = sorted(models, key=lambda model: model.numbers.get(metric, 0.0))
    figure, axes = canvas(f"{metric} with 95 % intervals over visitors", metric, "", 1.2 + 0.34 * len(ordered))
    for place, model in enumerate(ordered):
        value = model.numbers.get(metric, 0.0)
        low, high = (model.numbers.get(f"{metric}_{bound}", value) for bound in ("low", "high"))
        colour = GREYS[0] if model.is_baseline else COLOURS[0]
        bars = [[max(value - low, 0)], [max(high - value, 0)]]
        axes.errorbar([value], [place], xerr=bars, fmt="s" if model.is_baseline else "o", color=colour, capsize=3)
        axes.annotate(
            f"{value:.4f}", (value, place), (0, 6), textcoords="offset points", ha="center", fontsize=8, color=colour
        )
    axes.set_yticks(range(len(ordered)), [model.name for model in ordered])
    axes.set_ylim(-0.6, len(ordered) - 0.3)
    baselines = [model.numbers.get(metric, 0.0) for model in ordered if model.is_baseline]
    if baselines:
        axes.axvline(max(baselines), color=GREYS[1], linestyle=":", linewidth=1)
        axes.annotate("best baseline ", (max(baselines), -0.55), ha="right", va="bottom", fontsize=8, color=GREYS[0])
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.12)
    return as_png(figure)


def canvas(title: str, x: str, y: str, height: float = 3.8) -> tuple[Figure, Axes]:
    """An empty picture with labelled axes."""
    figure = Figure(figsize=(7.2, height), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11, parse_math=False)
    axes.set_xlabel(x, parse_math=False)
    axes.set_ylabel(y, parse_math=False)
    axes.grid(visible=True, color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def styled(models: Sequence[Drawn]) -> list[tuple[Drawn, str, str]]:
    """Each model with its colour and dash."""
    counts = {True: 0, False: 0}
    found = []
    for model in models:
        number, counts[model.is_baseline] = counts[model.is_baseline], counts[model.is_baseline] + 1
        grey = GREYS[number % len(GREYS)], DASHES[number % len(DASHES)]
        found.append((model, *(grey if model.is_baseline else (COLOURS[number % len(COLOURS)], "-"))))
    return found


def name_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write names right of the plot, each at the height of its line's end, none over another."""
    bottom, top = axes.get_ylim()
    gap = LEAST_GAP * (top - bottom)
    highest = np.inf
    for value, name, colour in sorted(ends, key=lambda end: -np.nan_to_num(end[0])):
        highest = min(float(np.nan_to_num(value)), highest - gap)
        axes.annotate(
            name,
            (1.02, highest),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=9,
            color=colour,
            annotation_clip=False,
            parse_math=False,
        )


def in_words(name: str) -> str:
    """`3_to_4` as `3 to 4`, `10_up` as `10 or more`."""
    return name.replace("_up", " or more").replace("_", " ")


def as_png(figure: Figure) -> bytes:
    """The picture as a file's content."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()
