"""Cut a day's events into sessions.

A run is a visitor's events (of one given session id, where the log has them) without a silence longer than the gap.
Runs are cut further, greedily from their first event: an event that would make its session last `max_duration`, touch a
third day, or hold more than `max_events`, opens the next one. So a session depends on the one before it alone.

Events are ordered by time, then by event_id: a total order, so the order of input never matters.
A session that is open at midnight is carried into the next day as one row that stands for all of its events.

Legend: R rows (events, and carried sessions), S sessions.
"""

from dataclasses import dataclass
from datetime import date, datetime

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.dates import ONE_DAY, day_end
from pipeline.ids import stable_id
from pipeline.settings import PipelineSite
from pipeline.tables import OPEN_SESSIONS, sessions_table

RUN_OF = ("visitor", "given_session_id")
KIND = ("item_id", "event_type")
Flags = NDArray[np.bool_]
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class CutDay:
    """What the events of a day, and those after it that go on with its sessions, came to."""

    sessions: pl.DataFrame
    """Sessions that start on the day."""
    still_open: pl.DataFrame
    """Those of them that may go on after midnight, as they stand then."""
    num_tied: int
    """Events of the day that share their instant with another one of their run."""
    num_repeats: int
    """Events that these sessions leave out, because they repeat the one before."""
    last_event_at: datetime | None
    """The newest event of these sessions."""


def cut_day(opened: pl.DataFrame, events: pl.DataFrame, site: PipelineSite, day: date) -> CutDay:
    """The sessions of `day`, from those left open by the day before, and the events of `day` and of the day after."""
    rows = pl.concat([as_rows(opened), events.with_columns(is_carried=pl.lit(False))], how="diagonal_relaxed")
    if rows.is_empty():
        return CutDay(sessions_table(site.source.context).empty(), OPEN_SESSIONS.empty(), 0, 0, None)
    rows = mark_rows(in_order(rows), site)
    is_start_R = cut_runs(rows, site.sessions.max_events)
    is_kept_R = is_start_R | ~rows["is_repeat"].to_numpy()
    is_on_day_R = (rows["event_date"] == day).to_numpy() & ~rows["is_carried"].to_numpy()

    start_S = np.flatnonzero(is_start_R)
    num_rows_S = np.diff(start_S, append=rows.height)
    is_of_day_S = is_on_day_R[start_S]
    is_of_day_R = np.repeat(is_of_day_S, num_rows_S)

    num_kept_S = count_by_session(is_kept_R, start_S)[is_of_day_S]
    ended_at_S = rows["occurred_at"][(start_S + num_rows_S - 1)[is_of_day_S]]
    num_rows_by_midnight_S = count_by_session(is_on_day_R, start_S)[is_of_day_S]
    num_kept_by_midnight_S = count_by_session(is_kept_R & is_on_day_R, start_S)[is_of_day_S]
    start_S = start_S[is_of_day_S]
    return CutDay(
        collect_sessions(rows.filter(pl.Series(is_of_day_R & is_kept_R)), num_kept_S, ended_at_S, site, day),
        open_at_midnight(rows[start_S], rows[start_S + num_rows_by_midnight_S - 1], num_kept_by_midnight_S, site, day),
        num_tied=int((rows["is_tied"].to_numpy() & is_on_day_R).sum()),
        num_repeats=int((is_of_day_R & ~is_kept_R).sum()),
        last_event_at=ended_at_S.max(),
    )


def count_by_session(flag_R: Flags, start_S: Numbers) -> Numbers:
    """How many rows of each session carry a flag: (S)."""
    return np.diff(np.append(0, np.cumsum(flag_R))[np.append(start_S, flag_R.size)])


def as_rows(opened: pl.DataFrame) -> pl.DataFrame:
    """Each open session as one row, at the place of its last event."""
    return opened.rename({"session_date": "event_date", "last_event_at": "occurred_at"}).with_columns(
        is_carried=pl.lit(True)
    )


def in_order(rows: pl.DataFrame) -> pl.DataFrame:
    """Runs together, each in its total order; with `is_tied`, for rows of one run and one instant.

    Any order of runs will do, so they are sorted by a hash, as integers.
    """
    hashed = rows.rechunk().with_columns(run_of=pl.struct(RUN_OF).hash())  # rows of many chunks are slow to gather
    ordered = hashed[np.lexsort((hashed["occurred_at"].to_physical().to_numpy(), hashed["run_of"].to_numpy()))]
    same_hash = pl.col("run_of") == pl.col("run_of").shift()
    if ordered.select((same_hash & is_other_run()).any()).item():  # one hash for two visitors: sort by their names
        ordered = rows.sort(*RUN_OF, "occurred_at").with_columns(run_of=is_other_run().cum_sum().cast(pl.UInt64))
    is_later_tie = (~is_other_run() & (pl.col("occurred_at") == pl.col("occurred_at").shift())).fill_null(False)
    marked = ordered.with_columns(is_tied=is_later_tie | is_later_tie.shift(-1, fill_value=False))
    place = marked["is_tied"].arg_true().to_numpy()
    by_event_id = marked[place].select(pl.arg_sort_by("run_of", "occurred_at", "event_id")).to_series().to_numpy()
    order = np.arange(rows.height)
    order[place] = place[by_event_id]
    return (marked[order] if place.size else marked).drop("run_of")


def is_other_run() -> pl.Expr:
    """Whether a row is of another visitor or given session id than the row before; true for the first row."""
    return pl.any_horizontal(pl.col(name).ne_missing(pl.col(name).shift()) for name in RUN_OF) | is_first_row()


def is_first_row() -> pl.Expr:
    """True for the first row only."""
    return pl.int_range(pl.len()) == 0


def mark_rows(ordered: pl.DataFrame, site: PipelineSite) -> pl.DataFrame:
    """What cutting needs to know of each row.

    is_run_start; is_repeat: to be left out, unless a session starts with it; num_events: what the row stands for;
    deadline: the instant from which on nothing belongs to a session that starts with it.
    """
    rules = site.sessions
    started_at = pl.coalesce("started_at", "occurred_at")
    ends = {day: day_end(day + ONE_DAY, site.time_zone) for day in ordered["event_date"].unique()}
    third_day = pl.col("event_date").replace_strict(ends, return_dtype=ordered.schema["occurred_at"])
    is_silent = pl.col("occurred_at").diff() > rules.gap
    same_kind = pl.all_horizontal(pl.col(name).eq_missing(pl.col(name).shift()) for name in KIND)
    return ordered.with_columns(
        is_run_start=(is_other_run() | is_silent).fill_null(True),
        is_repeat=same_kind & ~is_first_row() if rules.repeats == "drop" else pl.lit(False),
        num_events=pl.col("num_events").fill_null(1),
        deadline=pl.min_horizontal(started_at + rules.max_duration, third_day),
    ).with_columns(is_repeat=pl.col("is_repeat") & ~pl.col("is_run_start"))


def cut_runs(rows: pl.DataFrame, max_events: int) -> Flags:
    """Whether a session starts with a row: (R). Only runs that last too long or hold too many events are cut."""
    is_start_R = rows["is_run_start"].to_numpy().copy()
    time_R = rows["occurred_at"].to_physical().to_numpy()
    deadline_R = rows["deadline"].to_physical().to_numpy()
    num_events_R = rows["num_events"].to_numpy()
    count_R = np.cumsum(np.where(rows["is_repeat"].to_numpy(), 0, num_events_R))

    first = np.flatnonzero(is_start_R)
    end = np.append(first[1:], rows.height)
    has_too_many = count_R[end - 1] - count_R[first] + num_events_R[first] > max_events
    is_long = has_too_many | (time_R[end - 1] >= deadline_R[first])
    start, end = first[is_long], end[is_long]
    while start.size:  # as often as the longest run holds sessions
        by_count = np.searchsorted(count_R, count_R[start] + max_events - num_events_R[start] + 1)
        by_time = first_at_or_after(time_R, deadline_R[start], start, end)
        following = np.maximum(np.minimum(by_count, by_time), start + 1)
        goes_on = following < end
        start, end = following[goes_on], end[goes_on]
        is_start_R[start] = True
    return is_start_R


def first_at_or_after(time_R: Numbers, instant: Numbers, start: Numbers, end: Numbers) -> Numbers:
    """For each run from row `start` to `end`, its first row at or after an instant; `end` where there is none."""
    low, high = start.copy(), end.copy()
    while (low < high).any():  # binary search in all runs at once
        middle = (low + high) // 2
        is_before = (time_R[np.minimum(middle, time_R.size - 1)] < instant) & (low < high)
        low, high = np.where(is_before, middle + 1, low), np.where(is_before | (low >= high), high, middle)
    return low


def collect_sessions(
    kept: pl.DataFrame, num_events_S: Numbers, ended_at_S: pl.Series, site: PipelineSite, day: date
) -> pl.DataFrame:
    """One row per session, its events as lists: slices of the ordered rows, which cost nothing to make."""
    offsets = np.append(0, np.cumsum(num_events_S))
    firsts = kept[offsets[:-1]]
    since_start = kept["occurred_at"].to_physical().to_numpy() - np.repeat(
        firsts["occurred_at"].to_physical().to_numpy(), num_events_S
    )
    lists = {
        "item_ids": kept["item_id"],
        "event_types": kept["event_type"],
        "offsets_seconds": pl.Series(since_start / 1e6),
        **{name: kept[name] for name in site.source.context},
    }
    return firsts.select(
        pl.lit(day).alias("session_date"),
        "user_bucket",
        "visitor",
        "user_id",
        session_id=stable_id(pl.col("visitor"), pl.col("given_session_id"), pl.col("event_id")),
        started_at="occurred_at",
        ended_at=ended_at_S,
        num_events=pl.Series(num_events_S),
    ).with_columns(as_lists(values, offsets).alias(name) for name, values in lists.items())


def as_lists(values: pl.Series, offsets: Numbers) -> pl.Series:
    """Consecutive values as lists: list number n holds values[offsets[n]:offsets[n + 1]]."""
    return pl.Series(
        pa.LargeListArray.from_arrays(pa.array(offsets), values.to_arrow(compat_level=pl.CompatLevel.newest()))
    )


def open_at_midnight(
    firsts: pl.DataFrame, lasts: pl.DataFrame, num_events_S: Numbers, site: PipelineSite, day: date
) -> pl.DataFrame:
    """Sessions that the first event of the next day may belong to, as they stand at midnight."""
    opened = lasts.select(
        pl.lit(day).alias("session_date"),
        "user_bucket",
        *RUN_OF,
        started_at=firsts["occurred_at"],
        last_event_at="occurred_at",
        num_events=pl.Series(num_events_S),
        item_id="item_id",
        event_type="event_type",
    )
    return opened.filter(pl.col("last_event_at") >= day_end(day, site.time_zone) - site.sessions.gap)


def trim_sessions(sessions: pl.LazyFrame, day: date, site: PipelineSite) -> pl.LazyFrame:
    """Sessions without what happened after the end of `day`: nobody could have known it that night."""
    end = day_end(day, site.time_zone)
    whole = sessions.filter(pl.col("ended_at") < end)
    lists = ["item_ids", "event_types", "offsets_seconds", *site.source.context]
    since_start = pl.duration(microseconds=(pl.col("offsets_seconds") * 1e6).round().cast(pl.Int64))
    straddling = (
        sessions.filter((pl.col("ended_at") >= end) & (pl.col("started_at") < end))
        .explode(lists)
        .with_columns(ended_at=pl.col("started_at") + since_start)
        .filter(pl.col("ended_at") < end)
        .group_by(pl.exclude(*lists, "ended_at"), maintain_order=True)
        .agg(*lists, pl.col("ended_at").last())
        .with_columns(num_events=pl.col("item_ids").list.len().cast(pl.Int64))
    )
    return pl.concat([whole, straddling.select(sessions.collect_schema().names())])
