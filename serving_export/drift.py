"""How a day differs from the days before it, and its lists from the last ones: what nobody would see otherwise.

Reads   `events` and `sessions` of the day and of two windows before it, `items`, the model of the day's lists, the
        day's release and the one before
Writes  `drift`: a row for each measure of the day; the same numbers as metrics of the night's run

What cannot be measured, as nothing was published or no model serves yet, has a row that says so.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

import numpy as np
import polars as pl

from features.sequences import Integers
from pipeline.catalogue import latest_items
from pipeline.checkpoint import show_number
from pipeline.dates import ONE_DAY
from pipeline.days import passed_days, read_days
from pipeline.errors import ConfigurationError
from pipeline.publish import Store
from pipeline.terminal import log
from serving_export.day_counts import DayCounts, count_days
from serving_export.export import served_version
from serving_export.history import releases
from serving_export.list_overlap import list_overlap
from serving_export.reader import Recommendations
from serving_export.settings import ExportSite
from serving_export.shifts import days_before, measure_shifts
from serving_export.tables import DRIFT
from training.tracking import Tracking, data_through

ALL = "all"
MEASURES = {
    "item_shift": "which items people act on (Jensen-Shannon)",
    "category_shift": "which categories (Jensen-Shannon)",
    "event_type_shift": "which event types (Jensen-Shannon)",
    "session_length_shift": "events in a session (Wasserstein, doublings)",
    "gap_shift": "time between events (Wasserstein, doublings)",
    "cold_event_share": "share of events on items that the model of the lists does not know",
    "unknown_event_share": "share of events on items that the side table does not describe",
    "list_overlap": "share of a user's list that stood in the one before",
}
"""Measure -> what it is."""
DESCRIBED = ("title", "category", "price", "available")


@dataclass(frozen=True)
class Measured:
    """A number of a day, what is usual, and what is allowed."""

    measure: str
    part: str
    """The channel of a list; `all` for the rest."""
    value: float | None
    usual: float | None = None
    low: float | None = None
    high: float | None = None
    compared_with: str | None = None
    note: str | None = None
    """Why there is no value, or no limit."""

    @property
    def held(self) -> bool:
        """Whether the value is within the limits; what has none is."""
        value = self.value
        return value is None or ((self.low is None or value >= self.low) and (self.high is None or value <= self.high))

    @property
    def name(self) -> str:
        """The measure; with its channel, where it has one."""
        return self.measure if self.part == ALL else f"{self.measure}/{self.part}"

    def sentence(self) -> str:
        """What was found and what is allowed."""
        bound = (
            f"less than {show_number(self.low)}" if self.low is not None else f"more than {show_number(self.high or 0)}"
        )
        against = f", against {self.compared_with}" if self.compared_with else ""
        return f"{self.name}, {MEASURES[self.measure]}, is {show_number(self.value or 0)}, {bound}{against}"


def drift(site: ExportSite, store: Store, day: date) -> dict[str, Any]:
    """Measure a day, write its rows; return the values by name, and an alert for each beyond its limit.

    Raises ConfigurationError for a day that has no sessions in the store.
    """
    store = store.pinned()
    check_day(site, store, day)
    catalogue = latest_items(store, day).unique("item_id", keep="last", maintain_order=True)
    counts = count_days(site, store, [*earlier_days(site, store, day), day], catalogue)
    tracking = Tracking(site)
    rows = [
        *shift_rows(site, counts, day),
        cold_row(site, tracking, counts, catalogue, day),
        unknown_row(site, counts, catalogue),
        *overlap_rows(site, store, day),
    ]
    keep(store, day, rows)
    values = {row.name: row.value for row in rows if row.value is not None}
    run_id = tracking.night_run(day).info.run_id
    tracking.log_metrics(run_id, {f"drift/{name}": value for name, value in values.items()})
    alerts = [f"{site.name}, {day}: {row.sentence()}" for row in rows if not row.held]
    for row in rows:
        if row.note:
            log.info("%s: %s", row.name, row.note)
    for alert in alerts:
        log.warning("%s", alert)
    return {"run_id": run_id, "values": values, "alerts": alerts}


def check_day(site: ExportSite, store: Store, day: date) -> None:
    """Refuse a day of which the store has no sessions."""
    known = read_days(store).filter(pl.col("event_date") == day, pl.col("sessions_content").is_not_null())
    if known.is_empty():
        raise ConfigurationError(
            f"{site.name}: the store has no sessions of {day}. Run `nightjar ingest` and `nightjar sessionize` for it "
            "first"
        )


def earlier_days(site: ExportSite, store: Store, day: date) -> list[date]:
    """Passed days with events in the two windows before a day: what it is held against, and what those are."""
    first = day - 2 * num_days(site) * ONE_DAY
    with_events = read_days(store).filter(pl.col("num_events") > 0)["event_date"].to_list()
    return sorted(set(passed_days(store, first, day - ONE_DAY)) & set(with_events))


def num_days(site: ExportSite) -> int:
    """Days of the window."""
    return int(site.window.length // ONE_DAY)


def shift_rows(site: ExportSite, counts: DayCounts, day: date) -> list[Measured]:
    """How far the day is from those of the window before it."""
    before = days_before(counts.days, day, num_days(site))
    compared_with = f"{before[0]} to {before[-1]}, {len(before)} days" if before else None
    rows = []
    for name, (value, usual) in measure_shifts(counts, day, num_days(site)).items():
        limit = getattr(site.drift, name)
        high = None if limit is None or usual is None else round(usual + limit, 6)
        note = None
        if value is None:
            note = "nothing to compare" if before else "no passed day in the window before"
        elif usual is None:
            note = "too few days before to tell what is usual"
        rows.append(Measured(name, ALL, value, usual, high=high, compared_with=compared_with, note=note))
    return rows


def cold_row(site: ExportSite, tracking: Tracking, counts: DayCounts, catalogue: pl.DataFrame, day: date) -> Measured:
    """How much of the day went to items that the model of its lists does not know."""
    version = served_version(tracking, day)
    if version is None:
        return Measured("cold_event_share", ALL, None, note="no model serves yet")
    known = tracking.load(version).vocabulary.items["item_id"]
    is_known_I = catalogue["item_id"].is_in(known.implode()).to_numpy()
    return share_row(site, "cold_event_share", counts, is_known_I, f"the model through {data_through(version)}")


def unknown_row(site: ExportSite, counts: DayCounts, catalogue: pl.DataFrame) -> Measured:
    """How much of the day went to items that the side table says nothing of."""
    if site.items is None:
        return Measured("unknown_event_share", ALL, None, note="the site has no side table")
    is_described_I = catalogue.select(pl.any_horizontal(pl.col(DESCRIBED).is_not_null())).to_series().to_numpy()
    return share_row(site, "unknown_event_share", counts, is_described_I, "the side table")


def share_row(
    site: ExportSite, name: str, counts: DayCounts, is_fine_I: np.typing.NDArray[np.bool_], compared_with: str
) -> Measured:
    """The share of the last day's events on items that are not fine."""
    events_I: Integers = counts.items_DI[-1]
    total = int(events_I.sum())
    if not total:
        return Measured(name, ALL, None, note="the day has no events")
    value = 1 - int(events_I[:-1][is_fine_I].sum()) / total
    return Measured(name, ALL, round(value, 6), high=getattr(site.drift, name), compared_with=compared_with)


def overlap_rows(site: ExportSite, store: Store, day: date) -> list[Measured]:
    """How much of the lists of the day's release stood in the release of an earlier day."""
    found = [r for r in releases(store) if r["is_restorable"]]  # newest first
    now = next((r for r in found if r["data_through"] == str(day)), None)
    earlier = [r for r in found if r["data_through"] < str(day)]
    before = max(earlier, key=lambda r: (r["data_through"], r["table_version"]), default=None)
    if now is None or before is None:
        missing = "no lists were published for the day" if now is None else "there is no release before"
        return [Measured("list_overlap", ALL, None, note=missing)]
    both = (Recommendations(store.root, r["table_version"], when_stale="ignore") for r in (now, before))
    compared_with = f"the lists of {before['data_through']}"
    return [
        Measured("list_overlap", channel, round(value, 6), low=site.drift.list_overlap, compared_with=compared_with)
        for channel, value in list_overlap(*both).items()
    ] or [Measured("list_overlap", ALL, None, note="no user has lists in both releases", compared_with=compared_with)]


def keep(store: Store, day: date, rows: Sequence[Measured]) -> None:
    """Write the rows of a day in place of those it had."""
    told = [asdict(row) | {"event_date": day, "held": row.held} for row in rows]
    store.replace(DRIFT, pl.DataFrame(told, schema=dict(DRIFT.columns)), {"event_date": [day]})
