"""What is known of each item on a day: its side table row, and when it was first seen.

Reads   the side table file (where the site has one), `events` up to the day
Writes  `items`: one snapshot for a day on which something changed
"""

from datetime import date
from typing import Any

import polars as pl
from polars.exceptions import PolarsError

from pipeline.errors import ConfigurationError, kind_of, reason_of
from pipeline.publish import Store
from pipeline.raw_files import side_table_files
from pipeline.settings import Items, PipelineSite
from pipeline.tables import FILES, ITEMS, events_table


def update_items(site: PipelineSite, store: Store, day: date) -> dict[str, Any]:
    """Write the catalogue of `day`, if it differs from the one before; return its size.

    Catalogues of later days, and of those that late rows belong to, are brought up to date too: an item may have been
    seen earlier than they know.
    """
    told = read_side_table(site, site.items, day) if site.items else None
    events = store.scan(events_table(site.source.context))
    seen = events.group_by("item_id").agg(first_seen=pl.col("event_date").min()).collect()
    size = write_snapshot(store, day, told, seen)
    is_touched = (pl.col("snapshot_date") >= first_touched(store, day)) & (pl.col("snapshot_date") != day)
    days = store.scan(ITEMS).filter(is_touched).select("snapshot_date").unique().collect()
    for other in sorted(days["snapshot_date"]):
        told = latest_items(store, other).drop("snapshot_date", "first_seen") if site.items else None
        write_snapshot(store, other, told, seen)
    return {"items": size}


def first_touched(store: Store, day: date) -> date:
    """The first day that rows delivered for `day` belong to, or `day` itself."""
    touched = (
        store.scan(FILES).filter(pl.col("delivery_date") == day).select(pl.col("event_date").min()).collect().item()
    )
    return day if touched is None else min(day, touched)


def write_snapshot(store: Store, day: date, told: pl.DataFrame | None, seen: pl.DataFrame) -> int:
    """Write what is `told` of items, and when each was first seen, unless that is known; return the number of items."""
    items = seen.filter(pl.col("first_seen") <= day)
    if told is not None:
        items = told.join(items, on="item_id", how="full", coalesce=True)
    snapshot = pl.concat([ITEMS.empty(), items.with_columns(snapshot_date=pl.lit(day))], how="diagonal_relaxed")
    snapshot = snapshot.sort("item_id")
    before = latest_items(store, day).sort("item_id")
    if not snapshot.drop("snapshot_date").equals(before.drop("snapshot_date")):
        store.replace(ITEMS, snapshot, {"snapshot_date": [day]})
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
        raise kind_of(error)(
            f"cannot read the items of {', '.join(paths)}: {reason_of(error)}. Mend the file, or items.path"
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
