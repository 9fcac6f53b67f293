"""How far a day is from the days before it, and how far is usual.

    item_shift, category_shift, event_type_shift    Jensen-Shannon distance, base 2: 0 for equal shares, 1 for shares
                                                    that have nothing in common (Lin 1991; scipy.spatial.distance)
    session_length_shift, gap_shift                 Wasserstein distance of the base-2 logarithms: how many doublings
                                                    a session's length or a gap has moved, a mean (scipy.stats)

Each of these is above 0 on every day, for days differ by chance and by weekday, the more the more items there are. So
the days of the window are measured in the same way, each against its own days before, and the largest but one of these
is what is usual: of two days of a weekend the other one is left, and a single odd day hides no other.

Shapes: D days · K anything that is counted.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import date
from typing import NamedTuple

import numpy as np
from scipy.spatial.distance import jensenshannon
from scipy.stats import wasserstein_distance

from features.sequences import Integers
from pipeline.dates import ONE_DAY
from pipeline.measures import FEWEST_TRAILING_DAYS
from serving_export.day_counts import GAP_STEPS, DayCounts

Distance = Callable[[Integers, Integers], float]


FEW_DAYS = 5
"""With fewer, none of them can be left out as odd."""


class Shift(NamedTuple):
    """How far a day is from the ones before it."""

    value: float | None
    """None where there is nothing to compare."""
    usual: float | None
    """The largest but one of the days before, of few the largest; None where these are too few to tell."""


def shares_apart(one_K: Integers, other_K: Integers) -> float:
    """The Jensen-Shannon distance of shares."""
    return float(jensenshannon(one_K, other_K, base=2))


def lengths_apart(one_K: Integers, other_K: Integers) -> float:
    """How many doublings lengths are apart; place n counts the sessions of n events."""
    values_K = np.log2(np.maximum(np.arange(len(one_K)), 1))
    return float(wasserstein_distance(values_K, values_K, one_K, other_K))


def gaps_apart(one_K: Integers, other_K: Integers) -> float:
    """How many doublings gaps are apart; place n counts those of 2 ** (n / GAP_STEPS) - 1 seconds."""
    values_K = np.arange(len(one_K)) / GAP_STEPS
    return float(wasserstein_distance(values_K, values_K, one_K, other_K))


def measure_shifts(counts: DayCounts, day: date, num_days: int) -> dict[str, Shift]:
    """The shift of `day` by measure; each day is held against those counted of the `num_days` before it."""
    measured: Mapping[str, tuple[Integers, Distance]] = {
        "item_shift": (counts.items_DI, shares_apart),
        "category_shift": (counts.categories_DK, shares_apart),
        "event_type_shift": (counts.event_types_DK, shares_apart),
        "session_length_shift": (counts.lengths_DK, lengths_apart),
        "gap_shift": (counts.gaps_DK, gaps_apart),
    }
    return {
        name: shift(counts_DK, counts.days, day, num_days, distance) for name, (counts_DK, distance) in measured.items()
    }


def shift(counts_DK: Integers, days: Sequence[date], day: date, num_days: int, distance: Distance) -> Shift:
    """How far a day is from those before it, and how far those are, as a rule, from the ones before them."""
    fewest = min(FEWEST_TRAILING_DAYS, num_days)
    before = days_before(days, day, num_days)
    usual = [
        apart(counts_DK, days, earlier, trailing, distance)
        for earlier in before
        if len(trailing := days_before(days, earlier, num_days)) >= fewest
    ]
    told = sorted(value for value in usual if value is not None)
    value = apart(counts_DK, days, day, before, distance)
    return Shift(value, (told[-1] if len(told) < FEW_DAYS else told[-2]) if len(told) >= fewest else None)


def days_before(days: Sequence[date], day: date, num_days: int) -> list[date]:
    """Those of the `num_days` before a day."""
    return [other for other in days if day - num_days * ONE_DAY <= other < day]


def apart(
    counts_DK: Integers, days: Sequence[date], day: date, before: Sequence[date], distance: Distance
) -> float | None:
    """The distance of a day from others together; None if either has nothing to count."""
    today_K = counts_DK[list(days).index(day)]
    before_K = counts_DK[[list(days).index(other) for other in before]].sum(0)
    if not today_K.any() or not before_K.any():
        return None
    return round(distance(today_K, before_K), 6)
