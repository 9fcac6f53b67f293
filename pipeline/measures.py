"""What the rules of the contract are judged by: values of each row, and one row of values about a whole day.

A day is read a few buckets at a time. Each such part gives a frame of row measures, which is judged at once, and a few
sums; the sums of all parts make the profile. Nothing larger than a part is held, but for one 64-bit hash of each id: by
these, an id that stands twice is found across parts.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import polars as pl

from pipeline.days import passed_days, read_days
from pipeline.publish import Store
from pipeline.settings import PipelineSite
from pipeline.tables import ITEMS, Table, events_table, sessions_table

EVENTS_AT_ONCE = 1_000_000
TRAILING_DAYS, FEWEST_TRAILING_DAYS = 7, 3
ID, DAY = {"events": "event_id", "sessions": "session_id"}, {"events": "event_date", "sessions": "session_date"}
PROMISED = {
    "events": ("event_id", "visitor", "item_id", "event_type", "occurred_at", "source_file"),
    "sessions": ("session_id", "visitor"),
}
MEASURED = {
    "events": ("user_id", "given_session_id"),
    "sessions": ("started_at", "ended_at", "num_events", "item_ids", "event_types", "offsets_seconds"),
}
LISTS = ("item_ids", "event_types", "offsets_seconds")


@dataclass
class Sums:
    """What is kept of a table's parts."""

    counts: list[pl.DataFrame] = field(default_factory=list)
    """One row a part: numbers that add up."""
    ids: list[pl.Series] = field(default_factory=list)
    """A hash of each row's id."""
    items: list[pl.DataFrame] = field(default_factory=list)
    """Events by item."""


def table_of(site: PipelineSite, name: str) -> Table:
    """The declared table of a name."""
    return (events_table if name == "events" else sessions_table)(site.source.context)


def rows_of_day(site: PipelineSite, store: Store, name: str, day: date) -> pl.LazyFrame:
    """A table's rows of a day."""
    return store.scan(table_of(site, name)).filter(pl.col(DAY[name]) == day)


def read_parts(site: PipelineSite, store: Store, name: str, day: date) -> Iterator[pl.DataFrame]:
    """A table's rows of a day, as many buckets at a time as hold about EVENTS_AT_ONCE, also as lists of sessions."""
    rows = rows_of_day(site, store, name, day)
    needed = [*PROMISED[name], *MEASURED[name], *site.source.context]
    buckets = list(range(site.buckets))
    at_once = max(1, EVENTS_AT_ONCE * site.buckets // max(day_facts(store, day)["num_events"], 1))
    for first in range(0, site.buckets, at_once):
        yield rows.filter(pl.col("user_bucket").is_in(buckets[first : first + at_once])).select(needed).collect()


def row_measures(site: PipelineSite, name: str, rows: pl.DataFrame) -> pl.DataFrame:
    """What is judged of each row of a part."""
    if name == "events":
        # A category, for Great Expectations hashes every frame it is given: text would take most of the time.
        return rows.select("occurred_at", pl.col("event_type").cast(pl.Categorical))
    is_odd = [pl.col(column).list.len() != pl.col("num_events") for column in (*LISTS, *site.source.context)]
    return rows.select(
        "num_events",
        "started_at",
        duration_seconds=(pl.col("ended_at") - pl.col("started_at")).dt.total_microseconds() / 1e6,
        num_odd_lists=pl.sum_horizontal(odd.fill_null(True) for odd in is_odd).cast(pl.Int64),
        first_offset_seconds=pl.col("offsets_seconds").list.first(),
        smallest_step_seconds=smallest_steps(rows["offsets_seconds"]),
    )


def smallest_steps(offsets: pl.Series) -> pl.Series:
    """The smallest difference between neighbours in each list; null where there are none.

    From the flat values, for differences inside lists take several times as long.
    """
    flat = pl.DataFrame({"row": pl.int_range(offsets.len(), eager=True), "offset": offsets}).explode("offset")
    is_inside = pl.col("row") == pl.col("row").shift()
    steps = flat.select("row", step=pl.when(is_inside).then(pl.col("offset").diff()))
    return steps.group_by("row", maintain_order=True).agg(pl.col("step").min())["step"]


def add_part(site: PipelineSite, name: str, rows: pl.DataFrame, sums: Sums) -> None:
    """Keep what the profile needs of a part."""
    absent = {f"num_without_{column}": is_absent(rows, column).sum() for column in PROMISED[name]}
    if name == "events":
        optional = ("user_id", "given_session_id", *site.source.context)
        absent |= {f"num_null_{column}": pl.col(column).null_count() for column in optional}
        sums.items.append(rows.group_by("item_id").agg(n=pl.len().cast(pl.Int64)))
    else:
        absent["num_without_element"] = pl.sum_horizontal(pl.col(name).explode().null_count() for name in LISTS)
    sums.ids.append(rows[ID[name]].drop_nulls().hash())
    sums.counts.append(rows.select(pl.len().cast(pl.Int64).alias("num_rows"), **absent))


def is_absent(rows: pl.DataFrame | pl.LazyFrame, column: str) -> pl.Expr:
    """Whether a row has no value in a column; an empty text is none."""
    is_text = rows.collect_schema()[column] == pl.String
    return pl.col(column).is_null() | ((pl.col(column) == "") if is_text else pl.lit(False))


def profile(site: PipelineSite, store: Store, day: date, sums: dict[str, Sums]) -> dict[str, Any]:
    """All that is judged of the day as a whole: `table.measure` -> value; None where there is nothing to judge."""
    facts = day_facts(store, day)
    told = {f"day.{name}": value for name, value in day_measures(store, day, facts).items()}
    for name, of_table in sums.items():
        counts = pl.concat(of_table.counts).sum().row(0, named=True)
        measures: dict[str, Any] = {key: value for key, value in counts.items() if key.startswith("num_without_")}
        measures["num_rows_off"] = abs(counts["num_rows"] - facts[f"num_{name}"])
        measures["num_repeated_ids"] = num_repeated(of_table.ids)
        measures["num_odd_columns"] = len(odd_columns(site, store, name))
        if name == "events":
            measures |= null_shares(counts) | shares_by_item(store, of_table.items)
            measures["tie_share"] = share(facts["num_tied"], counts["num_rows"])
        told |= {f"{name}.{measure}": value for measure, value in measures.items()}
    return told


def day_facts(store: Store, day: date) -> dict[str, Any]:
    """What `days` says of a day."""
    return read_days(store).filter(pl.col("event_date") == day).row(0, named=True)


def day_measures(store: Store, day: date, facts: dict[str, Any]) -> dict[str, Any]:
    """Values about the day's counts. Whether a day may be empty is a rule of its own, not one about volume."""
    raw_rows = facts["num_events"] + facts["num_duplicates"] + facts["num_rejected"]
    usual = usual_volume(trailing_days(store, day))
    return {
        "num_events": facts["num_events"],
        "volume": share(facts["num_events"], usual) if facts["num_events"] else None,
        "rejected_share": share(facts["num_rejected"], raw_rows),
        "duplicate_share": share(facts["num_duplicates"], raw_rows),
    }


def trailing_days(store: Store, day: date) -> pl.DataFrame:
    """The last passed days before a day that had events, oldest first: event_date, num_events."""
    passed = passed_days(store, date.min, day)
    is_before = pl.col("event_date").is_in(passed) & (pl.col("event_date") < day)
    return (
        read_days(store)
        .filter(is_before, pl.col("num_events") > 0)
        .tail(TRAILING_DAYS)
        .select("event_date", "num_events")
    )


def usual_volume(trailing: pl.DataFrame) -> float | None:
    """The median of the trailing days; None while they are too few to tell."""
    return float(trailing["num_events"].median()) if trailing.height >= FEWEST_TRAILING_DAYS else None  # type: ignore[arg-type]


def share(part: float | None, whole: float | None) -> float | None:
    """A part of a whole; None of nothing, or where the part was not counted yet when the table was written."""
    return None if part is None or not whole else part / whole


def null_shares(counts: dict[str, int]) -> dict[str, float | None]:
    """Rows with an empty field, as shares of all rows."""
    nulls = {key.removeprefix("num_null_"): n for key, n in counts.items() if key.startswith("num_null_")}
    return {f"null_share_of_{column}": share(n, counts["num_rows"]) for column, n in nulls.items()}


def shares_by_item(store: Store, items: list[pl.DataFrame]) -> dict[str, float | None]:
    """Shares of events whose item is in the newest catalogue, and is described there."""
    counted = pl.concat(items).lazy().group_by("item_id").agg(pl.col("n").sum())
    found = counted.join(newest_items(store), "item_id", "left")
    n = pl.col("n")
    known, described, total = (
        found.select(known=n.filter("is_known").sum(), described=n.filter("is_described").sum(), total=n.sum())
        .collect()
        .row(0)
    )
    return {"known_item_share": share(known, total), "described_item_share": share(described, total)}


def newest_items(store: Store) -> pl.LazyFrame:
    """The newest catalogue: item_id, is_known, is_described. It holds all items of those before it."""
    is_newest = pl.col("snapshot_date") == pl.col("snapshot_date").max()
    is_described = pl.any_horizontal(pl.col("title", "category", "price", "available").is_not_null())
    return store.scan(ITEMS).filter(is_newest).select("item_id", is_known=pl.lit(True), is_described=is_described)


def num_repeated(hashes: list[pl.Series]) -> int:
    """How many ids stood in an earlier row. Two of 10 million ids share a hash by chance once in 400,000 days."""
    ordered = pl.concat(hashes).sort()
    return int((ordered == ordered.shift(1)).sum())


def odd_columns(site: PipelineSite, store: Store, name: str) -> list[str]:
    """Columns of a stored table that lack, or have another type than declared, in words.

    A context column that is not there was named later than the table was written; it counts as empty.
    """
    table = table_of(site, name)
    opened = store.open(table)
    found = dict(table.columns if opened is None else pl.scan_delta(opened).collect_schema())
    return [
        f"{column} is {found.get(column, 'missing')}, declared as {kind}"
        for column, kind in table.columns.items()
        if found.get(column) != kind and not (column in site.source.context and column not in found)
    ]
