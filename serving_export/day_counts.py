"""What happened on some days, counted: events by item, category and type, sessions by length, gaps by size.

Days are read one after the other, sessions a few buckets at a time, and only counts are kept.

Shapes: D days · I items of the catalogue, and behind them one place for all others · K anything that is counted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.sequences import Integers
from pipeline.days import read_days
from pipeline.measures import EVENTS_AT_ONCE
from pipeline.publish import Store
from pipeline.settings import PipelineSite
from pipeline.tables import events_table, sessions_table
from pipeline.terminal import track

Floats = NDArray[np.float64]
GAP_STEPS = 16
"""Gaps are counted to a sixteenth of a doubling: about 4 %."""
MOST_DOUBLINGS = 18
"""Of a second: three days; a session lasts one at most."""


@dataclass(frozen=True)
class DayCounts:
    """Counts of some days, a row each in the order of `days`."""

    days: Sequence[date]
    items_DI: Integers
    categories_DK: Integers
    event_types_DK: Integers
    lengths_DK: Integers
    """Place n: sessions of n events."""
    gaps_DK: Integers
    """Place n: gaps of about 2 ** (n / GAP_STEPS) - 1 seconds."""


def count_days(site: PipelineSite, store: Store, days: Sequence[date], catalogue: pl.DataFrame) -> DayCounts:
    """Count what happened on days; `catalogue` holds one row an item."""
    codes = catalogue.select("item_id", item=pl.int_range(pl.len(), dtype=pl.Int64))
    categories = catalogue["category"].fill_null("").rank("dense").cast(pl.Int64).to_numpy() - 1
    categories_I = np.append(categories, categories.max(initial=-1) + 1)  # what is not in the catalogue has its own
    events = store.scan(events_table(site.source.context)).select("event_date", "item_id", "event_type")
    items_DI = np.zeros((len(days), catalogue.height + 1), np.int64)
    types = []
    for place, day in enumerate(track(list(days), "counting events")):
        counts = events.filter(pl.col("event_date") == day).group_by("item_id", "event_type").agg(n=pl.len())
        told = counts.collect(engine="streaming").join(codes, on="item_id", how="left")
        items_DI[place] = weighted_count(told["item"].fill_null(catalogue.height), told["n"], catalogue.height + 1)
        types.append(told.group_by("event_type").agg(pl.col("n").sum(), place=pl.lit(place)))
    by_category = [np.bincount(categories_I, row, categories_I[-1] + 1).astype(np.int64) for row in items_DI]
    lengths_DK, gaps_DK = count_sessions(site, store, days)
    return DayCounts(days, items_DI, np.stack(by_category), by_type(types, len(days)), lengths_DK, gaps_DK)


def by_type(types: Sequence[pl.DataFrame], num_days: int) -> Integers:
    """(D, K) events by type, the types in order of their names."""
    rows = pl.concat(types).with_columns(kind=pl.col("event_type").rank("dense").cast(pl.Int64) - 1)
    found = np.zeros((num_days, int(rows["kind"].max() or 0) + 1), np.int64)  # type: ignore[arg-type]
    found[rows["place"].to_numpy(), rows["kind"].to_numpy()] = rows["n"].to_numpy()
    return found


def weighted_count(places: pl.Series, counts: pl.Series, size: int) -> Integers:
    """(K) counts added up by place."""
    return np.bincount(places.to_numpy(), counts.to_numpy(), size).astype(np.int64)


def count_sessions(site: PipelineSite, store: Store, days: Sequence[date]) -> tuple[Integers, Integers]:
    """(D, K) sessions by their events, and (D, K) gaps between neighbouring events by size."""
    sessions = store.scan(sessions_table(site.source.context))
    num_events: Mapping[date, int] = dict(read_days(store).select("event_date", "num_events").iter_rows())
    lengths_DK = np.zeros((len(days), site.sessions.max_events + 1), np.int64)
    gaps_DK = np.zeros((len(days), MOST_DOUBLINGS * GAP_STEPS + 1), np.int64)
    for place, day in enumerate(track(list(days), "counting sessions")):
        at_once = max(1, EVENTS_AT_ONCE * site.buckets // max(num_events.get(day) or 0, 1))
        for first in range(0, site.buckets, at_once):
            here = pl.col("user_bucket").is_in(list(range(first, min(first + at_once, site.buckets))))
            offsets = sessions.filter(pl.col("session_date") == day, here).select("offsets_seconds").collect()
            lengths, gaps = lengths_and_gaps(offsets.to_series())
            lengths_DK[place] += np.bincount(
                np.minimum(lengths, lengths_DK.shape[1] - 1), minlength=lengths_DK.shape[1]
            )
            steps = np.rint(np.log2(1 + gaps) * GAP_STEPS).astype(np.int64)
            gaps_DK[place] += np.bincount(np.minimum(steps, gaps_DK.shape[1] - 1), minlength=gaps_DK.shape[1])
    return lengths_DK, gaps_DK


def lengths_and_gaps(offsets: pl.Series) -> tuple[Integers, Floats]:
    """Events of each session, and seconds between neighbours, from lists of seconds since the first event."""
    lengths = offsets.list.len().cast(pl.Int64).to_numpy()
    flat = offsets.explode().drop_nulls().to_numpy()
    is_last = np.zeros(len(flat), bool)
    is_last[np.cumsum(lengths)[lengths > 0] - 1] = True
    return lengths, np.maximum(np.diff(flat)[~is_last[:-1]], 0)
