"""Pictures of what lists show, beside what people act on."""

from collections.abc import Mapping

import numpy as np
import polars as pl

from training.pictures import COLOURS, GREYS, as_png, canvas, name_ends

PARTS = ("top 1 %", "to 10 %", "to 50 %", "others")
BOUNDS = (0.01, 0.1, 0.5)


def share_of_items(listed: pl.DataFrame, popularity: pl.DataFrame, num_items: int) -> bytes:
    """Share of all rows that the most listed items fill: a line a channel, and one for a week's events."""
    figure, axes = canvas(
        "How many items fill the lists", "items of the catalogue, the most listed first", "share of rows"
    )
    ends = []
    lines = {name: rows["lists"] for name, rows in by_channel(listed).items()}
    for number, (name, counts) in enumerate([*lines.items(), ("events of a week", popularity["events"])]):
        is_events = name not in lines
        colour = GREYS[0] if is_events else COLOURS[number % len(COLOURS)]
        shares = np.cumsum(np.sort(counts.to_numpy())[::-1]) / max(int(counts.sum()), 1)
        places = np.arange(1, len(shares) + 1) / max(num_items, 1)
        axes.plot(
            np.concatenate([[0], places, [1]]),
            np.concatenate([[0], shares, shares[-1:]]),
            color=colour,
            linestyle="--" if is_events else "-",
        )
        middle = int(np.searchsorted(shares, 0.5)) + 1
        ends.append((1 - 0.09 * number, f"{name}: {middle:,} items\nfill half", colour))
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    name_ends(axes, [(value - 0.06 * place, name, colour) for place, (value, name, colour) in enumerate(ends)])
    return as_png(figure)


def popularity_of_lists(listed: pl.DataFrame, popularity: pl.DataFrame) -> bytes:
    """Share of rows by how popular their item was in a week's events: the head, the middle, the tail."""
    figure, axes = canvas(
        "Popular and rare items in lists", "items by their events of a week, the most first", "share of rows"
    )
    ranked = popularity.sort("events", "item_id", descending=[True, False]).with_columns(
        place=pl.int_range(1, pl.len() + 1) / pl.len()
    )
    shown = {name: rows.select("item_id", n="lists") for name, rows in by_channel(listed).items()}
    shown["events"] = popularity.select("item_id", n="events")
    width = 0.8 / len(shown)
    for number, (name, rows) in enumerate(shown.items()):
        parts = rows.join(ranked, on="item_id", how="left")["place"].fill_null(1.0).to_numpy()
        which = np.searchsorted(BOUNDS, parts, side="left")
        shares = np.bincount(which, rows["n"].to_numpy(), minlength=len(PARTS)) / max(int(rows["n"].sum()), 1)
        colour = GREYS[2] if name == "events" else COLOURS[number % len(COLOURS)]
        places = np.arange(len(PARTS)) - 0.4 + width * (number + 0.5)
        bars = axes.bar(places, shares, width * 0.92, color=colour, label=name)
        axes.bar_label(bars, [f"{share:.0%}" for share in shares], fontsize=8, padding=2)
    axes.set_xticks(range(len(PARTS)), PARTS)
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.grid(visible=False, axis="x")
    axes.legend(frameon=False, fontsize=9, ncols=len(shown))
    axes.margins(y=0.18)
    return as_png(figure)


def by_channel(listed: pl.DataFrame) -> Mapping[str, pl.DataFrame]:
    """Rows of each channel, in order of their names."""
    return {str(name): rows for (name,), rows in listed.sort("channel").partition_by("channel", as_dict=True).items()}
