"""What is known of each item on a day: its side table row, and when it was first seen.

Reads   the side table file (where the site has one), `events` up to the day
Writes  `items`: one snapshot for a day on which something changed
"""

from contextlib import suppress
from datetime import date
from typing import Any

import polars as pl
from polars.exceptions import PolarsError

from pipeline.errors import ConfigurationError, OvertakenError, RetryableError
from pipeline.publish import MOST_TRIES, Store
from pipeline.raw_files import side_table_files
from pipeline.settings import Items, PipelineSite
from pipeline.tables import FILES, ITEMS, events_table


def update_items(site: PipelineSite, store: Store, day: date) -> dict[str, Any]:
    """Write the catalogue of `day`, if it differs from the one before; return its size.

    Catalogues of later days, and of those that late rows belong to, are brought up to date too: an item may have been
    seen earlier than they know.
    """
    side_table = read_side_table(site, site.items, day) if site.items else None
    for _ in range(MOST_TRIES):
        with suppress(OvertakenError):  # a neighbour wrote one of the catalogues: made again from what is there now
            return {"items": write_catalogues(site, store, day, side_table)}
    raise RetryableError(f"the catalogue of {day} is changed all the time by other ingests; run this one again")


def write_catalogues(site: PipelineSite, store: Store, day: date, side_table: pl.DataFrame | None) -> int:
    """Write the catalogue of `day` and those that it touches, all made from one state of the store; return its size."""
    pinned = store.pinned()
    events = pinned.scan(events_table(site.source.context))
    seen = events.group_by("item_id").agg(first_seen=pl.col("event_date").min()).collect()
    size = write_snapshot(store, pinned, day, side_table, seen)
    is_touched = (pl.col("snapshot_date") >= first_touched(pinned, day)) & (pl.col("snapshot_date") != day)
    days = pinned.scan(ITEMS).filter(is_touched).select("snapshot_date").unique().collect()
    for other in sorted(days["snapshot_date"]):
        described = latest_items(pinned, other).drop("snapshot_date", "first_seen") if site.items else None
        write_snapshot(store, pinned, other, described, seen)
    return size


def first_touched(store: Store, day: date) -> date:
    """The first day that rows delivered for `day` belong to, or `day` itself."""
    touched = (
        store.scan(FILES).filter(pl.col("delivery_date") == day).select(pl.col("event_date").min()).collect().item()
    )
    return day if touched is None else min(day, touched)


def write_snapshot(store: Store, pinned: Store, day: date, described: pl.DataFrame | None, seen: pl.DataFrame) -> int:
    """Write what describes the items, and when each was first seen, unless that is known; return the number of items.

    Raises OvertakenError where somebody else wrote the catalogue of that day since the store was pinned.
    """
    items = seen.filter(pl.col("first_seen") <= day)
    if described is not None:
        items = described.join(items, on="item_id", how="full", coalesce=True)
    snapshot = pl.concat([ITEMS.empty(), items.with_columns(snapshot_date=pl.lit(day))], how="diagonal_relaxed")
    snapshot = snapshot.sort("item_id")
    before = latest_items(pinned, day).sort("item_id")
    if not snapshot.drop("snapshot_date").equals(before.drop("snapshot_date")):
        store.replace(ITEMS, snapshot, {"snapshot_date": [day]}, base=pinned.version(ITEMS) or 0)
    return snapshot.height


def latest_items(store: Store, day: date) -> pl.DataFrame:
    """The newest catalogue that is not younger than `day`."""
    snapshots = store.scan(ITEMS)
    newest = snapshots.filter(pl.col("snapshot_date") <= day).select(pl.col("snapshot_date").max()).collect().item()
    return snapshots.filter(pl.col("snapshot_date").eq_missing(pl.lit(newest, pl.Date))).collect()


def read_side_table(site: PipelineSite, items: Items, day: date) -> pl.DataFrame:
    """The side table's configured columns, one row an item (the last one wins); text is trimmed."""
    paths = side_table_files(site, day)
    try:
        rows = scan_side_table(paths, items).collect()
    except (PolarsError, OSError) as error:
        raise ConfigurationError(
            f"cannot read the items of {', '.join(paths)}: {error}. Mend the file, or items.path"
        ) from error
    columns = items.columns.model_dump(exclude_none=True)
    missing = [name for name in columns.values() if name not in rows.columns]
    if missing:
        raise ConfigurationError(f"{paths[0]} has no column {missing[0]!r}; it has {', '.join(rows.columns)}")
    named = rows.select(pl.col(theirs).str.strip_chars().alias(ours) for ours, theirs in columns.items())
    if named["item_id"].is_null().all() and named.height:
        raise ConfigurationError(
            f"no row of {', '.join(paths)} has a {columns['item_id']!r}. Mend items.columns.item_id"
        )
    typed = named.with_columns(
        *([pl.col("price").cast(pl.Float64, strict=False)] if "price" in columns else []),
        *([truth("available")] if "available" in columns else []),
    )
    return typed.drop_nulls("item_id").unique("item_id", keep="last", maintain_order=True)


def known_items(site: PipelineSite, day: date) -> pl.Series | None:
    """The items that events of files of `day` may name; None where all may be."""
    if site.items is None or site.items.unknown == "keep":
        return None
    return read_side_table(site, site.items, day)["item_id"]


def scan_side_table(paths: list[str], items: Items) -> pl.LazyFrame:
    """The side table as text."""
    if paths[0].endswith(".parquet"):
        return pl.scan_parquet(paths).select(pl.all().cast(pl.String))
    if paths[0].removesuffix(".gz").removesuffix(".zst").endswith((".jsonl", ".ndjson")):
        fields = items.columns.model_dump(exclude_none=True).values()
        return pl.scan_ndjson(paths, schema=dict.fromkeys(fields, pl.String()))
    return pl.scan_csv(
        paths,
        separator=items.separator,
        has_header=items.header is None,
        new_columns=items.header,
        infer_schema=False,
    )


def truth(column: str) -> pl.Expr:
    """Yes or no, as logs write it; null for anything else."""
    word = pl.col(column).str.to_lowercase()
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    return word.replace_strict(words, default=None, return_dtype=pl.Boolean).alias(column)
