"""How the measures of drift went over the last days: a small plot each."""

from datetime import date

import polars as pl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.figure import Figure

from serving_export.drift import ALL, MEASURES
from training.pictures import COLOURS, DOTS_PER_INCH, GREYS, as_png

NUM_COLUMNS = 4
TOO_FAR = "#b3261e"


def drift_picture(rows: pl.DataFrame, first: date, last: date) -> bytes:
    """Values of `drift` from `first` to `last`, the limit dashed, what was beyond it as a red dot."""
    figure = Figure(figsize=(13, 4.4), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    plots = figure.subplots(-(-len(MEASURES) // NUM_COLUMNS), NUM_COLUMNS, sharex=True).ravel()
    told = rows.filter(pl.col("event_date").is_between(first, last), pl.col("value").is_not_null())
    days = told["event_date"].to_list() or [first]
    for axes, measure in zip(plots, MEASURES, strict=True):
        of_measure = told.filter(pl.col("measure") == measure).sort("event_date")
        draw(axes, measure, of_measure)
        axes.set_xlim(date2num(min(days)) - 0.5, date2num(last) + 0.5)
    return as_png(figure)


def draw(axes: Axes, measure: str, rows: pl.DataFrame) -> None:
    """One measure: a line a part."""
    axes.set_title(measure.replace("_", " "), loc="left", fontsize=10)
    for number, ((part,), line) in enumerate(rows.partition_by("part", as_dict=True).items()):
        colour, days = COLOURS[number % len(COLOURS)], line["event_date"].to_list()
        name = None if part == ALL else str(part)
        axes.plot(days, line["value"].to_list(), color=colour, marker="o", markersize=3.5, label=name)
        limits = line.select(limit=pl.coalesce("low", "high"))["limit"].to_list()
        if number == 0:
            axes.plot(days, limits, color=GREYS[1], linestyle="--", linewidth=1)
        broken = line.filter(~pl.col("held"))
        axes.plot(broken["event_date"].to_list(), broken["value"].to_list(), "o", color=TOO_FAR, markersize=6)
    if rows.is_empty():
        axes.annotate("nothing measured", (0.5, 0.5), xycoords="axes fraction", ha="center", color=GREYS[2], fontsize=9)
    elif rows["part"].n_unique() > 1:
        axes.legend(frameon=False, fontsize=8)
    axes.set_ylim(bottom=0)
    axes.margins(y=0.15)
    axes.grid(visible=True, color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    locator = AutoDateLocator(maxticks=5)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
