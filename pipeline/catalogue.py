"""What is known of each item on a day: its side table row, and when it was first seen.

Reads   the side table file (where the site has one), `events` up to the day
Writes  `items`: one snapshot for a day on which something changed
"""

import json
import logging
from contextlib import suppress
from datetime import date
from typing import Any

import polars as pl

from pipeline.errors import ConfigurationError, OvertakenError, RetryableError
from pipeline.publish import MOST_TRIES, Store
from pipeline.raw_columns import TEXT_LIKE_FLOATS, about_float_ids, raw_name
from pipeline.raw_files import side_table_files
from pipeline.raw_log import log_format, raw_columns, read_file
from pipeline.settings import Items, PipelineSite
from pipeline.tables import FILES, ITEMS, events_table

log = logging.getLogger(__name__)

WHY = {
    "unparsable_row": "they have more or fewer fields than the header, are no JSON objects, or have an {column!r} that "
    "is no id",
    "missing_item": "their {column!r} is empty",
}


def update_items(site: PipelineSite, store: Store, day: date) -> dict[str, Any]:
    """Write the catalogue of `day`, if it differs from the one before; return its size.

    Catalogues of later days, and of those that late rows belong to, are brought up to date too: an item may have been
    seen earlier than they know.
    """
    side_table, facts = None, {}
    if site.items:
        side_table, rejected = read_side_table(site, site.items, day)
        num_rejected = tell_rejected(rejected, site.items)
        facts = {"items_rejected": num_rejected} if num_rejected else {}
        for path in side_table_files(site, day):
            for column, kind in raw_columns(path, site.items).items():
                if kind == TEXT_LIKE_FLOATS:
                    log.warning(about_float_ids(path, column))
    for _ in range(MOST_TRIES):
        with suppress(OvertakenError):  # a neighbour wrote one of the catalogues: made again from what is there now
            return {"items": write_catalogues(site, store, day, side_table)} | facts
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


def read_side_table(site: PipelineSite, items: Items, day: date) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The side table's configured columns, one row an item (the last one wins), and the rows that describe none.

    Text is trimmed. Rows that describe no item: source_file, record, reason (unparsable_row, missing_item).
    """
    paths = side_table_files(site, day)
    frames = [frame for path in paths for frame in read_file(path, items)]
    check_whole(paths, frames, items)
    columns = items.columns.model_dump(exclude_none=True)
    named = pl.concat(
        [
            pl.DataFrame(schema=dict.fromkeys((*columns, "source_file", "fault"), pl.String) | {"record": pl.Int64}),
            *(frame.select("source_file", "record", "fault", *trimmed(columns)) for frame in frames),
        ],
        how="diagonal",
    )
    reason = pl.coalesce("fault", pl.when(pl.col("item_id").is_null()).then(pl.lit("missing_item")))
    judged = named.with_columns(reason=reason)
    good = judged.filter(pl.col("reason").is_null())
    if good.is_empty() and named.height:
        raise ConfigurationError(
            f"no row of {', '.join(paths)} has a {columns['item_id']!r} that can be read. Mend the file, or "
            "items.columns.item_id"
        )
    typed = good.select(*columns).with_columns(
        *([pl.col("price").cast(pl.Float64, strict=False)] if "price" in columns else []),
        *([truth("available")] if "available" in columns else []),
    )
    rejected = judged.filter(pl.col("reason").is_not_null()).select("source_file", "record", "reason")
    return typed.unique("item_id", keep="last", maintain_order=True), rejected


def trimmed(columns: dict[str, str]) -> list[pl.Expr]:
    """Configured columns of raw records by our names, as trimmed text; an id of white space is none."""
    text = {ours: pl.col(raw_name(theirs)).cast(pl.String).str.strip_chars() for ours, theirs in columns.items()}
    return [
        (pl.when(value != "").then(value) if ours == "item_id" else value).alias(ours) for ours, value in text.items()
    ]


def check_whole(paths: list[str], frames: list[pl.DataFrame], items: Items) -> None:
    """Refuse a side table that is damaged or has no header: with half of it, half of the items would be gone."""
    for frame in frames:
        damage = frame.filter(pl.col("fault") == "truncated_file")
        if damage.height:
            path, error = damage["source_file"][0], json.loads(damage["fields"][0])["error"]
            raise ConfigurationError(
                f"cannot read the items of {path}: {error}. Deliver the file whole, or mend items.path"
            )
    is_json = all(log_format(path, items) == "jsonl" for path in paths)
    if not frames and not is_json and not any(raw_columns(path, items) for path in paths):
        raise ConfigurationError(
            f"cannot read the items of {', '.join(paths)}: there is no header. Mend the file, or items.path"
        )


def tell_rejected(rejected: pl.DataFrame, items: Items) -> dict[str, int]:
    """Log which rows of a side table describe no item; return how many for each reason."""
    counts = rejected.group_by("source_file", "reason").agg(num_rows=pl.len(), first=pl.col("record").min())
    for path, reason, num_rows, first in counts.sort("source_file", "reason").rows():
        log.warning(
            "%s: %d rows describe no item (%s, the first is record %d): %s. Mend them and deliver the file again",
            *(path, num_rows, reason, first, WHY[reason].format(column=items.columns.item_id)),
        )
    return {str(reason): int(num) for reason, num in sorted(rejected["reason"].value_counts().rows())}


def known_items(site: PipelineSite, day: date) -> pl.Series | None:
    """The items that events of files of `day` may name; None where all may be."""
    if site.items is None or site.items.unknown == "keep":
        return None
    return read_side_table(site, site.items, day)[0]["item_id"]


def truth(column: str) -> pl.Expr:
    """Yes or no, as logs write it; null for anything else."""
    word = pl.col(column).str.to_lowercase()
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    return word.replace_strict(words, default=None, return_dtype=pl.Boolean).alias(column)
