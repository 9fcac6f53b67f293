"""Which touched event days only grow: their events stay, and new rows are added.

To read all files of a day again for a few late rows would double the work of a night.
"""

from datetime import date
from pathlib import Path

import polars as pl

from pipeline.bots import VISITOR_DAY, find_bots
from pipeline.days import read_days
from pipeline.ids import visitor
from pipeline.json_lines import in_fields
from pipeline.normalise import event_id
from pipeline.publish import Store
from pipeline.raw_files import rules_digest
from pipeline.settings import PipelineSite
from pipeline.tables import REJECTED, events_table


def grown_days(
    site: PipelineSite,
    store: Store,
    aside: Path,
    known: pl.DataFrame,
    changed: pl.DataFrame,
    gone: pl.DataFrame,
    touched: list[date],
) -> list[date]:
    """Touched days to which later files bring new rows and nothing else changes: their events need not be made again.

    Not so where a file that held the day changed or is gone, where one that comes after a new file holds it (of equal
    events the first one stays) or was judged by other rules, or where a visitor with a new row is, or becomes, a bot.
    """
    if changed.is_empty():
        return []
    first_day, first_path = changed.sort("delivery_date", "path").select("delivery_date", "path").row(0)
    holding = known.filter(pl.col("event_date").is_in(touched))
    rules = {day: rules_digest(site, day) for day in holding["delivery_date"].unique()}
    is_settled = pl.col("judged_by") == pl.col("delivery_date").replace_strict(rules, return_dtype=pl.String)
    same_day = pl.col("delivery_date") == first_day
    is_before = (pl.col("delivery_date") < first_day) | (same_day & (pl.col("path") < first_path))
    is_touched = pl.col("path").is_in(pl.concat([changed["path"], gone["path"]]).to_list())
    stays = holding.group_by("event_date").agg((is_settled & is_before & ~is_touched).all().alias("stays"))
    whole = read_days(store).filter(pl.col("events_content").is_not_null())
    days = stays.filter("stays").join(whole, on="event_date", how="semi")["event_date"].to_list()
    # An ingest that died before it booked these files may have brought their rows already.
    brought = days_with_rows_of(store.scan(events_table(site.source.context)), days, changed["path"].to_list())
    days = sorted({*days} - {*brought})
    return sorted({*days} - days_of_bots(site, store, aside, days)) if site.source.bots.are_judged else days


def days_of_bots(site: PipelineSite, store: Store, aside: Path, days: list[date]) -> set[date]:
    """Those of some days on which a visitor with a new row was a bot before, or is one with it."""
    on_days = pl.col("event_date").is_in(days)
    bots = store.scan(REJECTED).filter(on_days, pl.col("reason") == "bot")
    known_bots = bots.select("event_date", visitor=told_visitor(site)).unique().collect()
    events = store.scan(events_table(site.source.context)).filter(on_days)
    found: set[date] = set()
    for folder in aside.glob("candidates-*"):
        parts = [pl.scan_parquet(path).filter(on_days).collect() for path in sorted(folder.iterdir())]
        new = pl.concat(parts, how="diagonal").with_columns(event_id=event_id(site.source.context))
        visitors = new.select(VISITOR_DAY).unique()
        of_bucket = events.filter(pl.col("user_bucket") == int(folder.name.rsplit("-", 1)[1]))
        theirs = of_bucket.join(visitors.lazy(), on=VISITOR_DAY, how="semi").collect() if new.height else new
        together = pl.concat([theirs, new], how="diagonal_relaxed").unique("event_id")
        found |= {*find_bots(together, site.source.bots)["event_date"]}
        found |= {*visitors.join(known_bots, on=VISITOR_DAY, how="semi")["event_date"]}
    return found


def told_visitor(site: PipelineSite) -> pl.Expr:
    """Whose a rejected row is, by its fields: those of the log, as names or as paths."""
    columns = site.source.columns
    return visitor(told_id(columns.user_id), told_id(columns.session_id))


def told_id(column: str | None) -> pl.Expr:
    """The id in a column of the log, by the fields of a rejected row; null where it has none."""
    if column is None:
        return pl.lit(None, pl.String)
    return pl.coalesce(*(pl.when(value != "").then(value) for value in in_fields(column)))


def days_with_rows_of(rows: pl.LazyFrame, days: list[date], paths: list[str]) -> list[date]:
    """Those of some days to which rows of these files belong."""
    found = rows.filter(pl.col("event_date").is_in(days), pl.col("source_file").is_in(paths))
    return found.select(pl.col("event_date").unique()).collect()["event_date"].to_list()
