"""Give raw records their meaning: who, what, when; or the reason why not.

A record that cannot be an event gets the first reason that holds:
the reader's (truncated_file, unparsable_row), the site's own (`source.exclude`), missing_user, missing_item, bad_time,
unknown_event_type, future_time, too_late.
"""

from datetime import UTC, datetime

import polars as pl

from pipeline.ids import stable_id, user_bucket
from pipeline.raw_columns import RAW, raw_name
from pipeline.settings import Exclusion, PipelineSite, Source

MICROSECONDS = {"s": 1e6, "ms": 1e3, "us": 1.0}
EARLIEST, LATEST = datetime(1900, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
"""Beyond these a time is a slip of its unit (milliseconds read as seconds); few readers of Delta could hold it."""
ISO_LOCAL = ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%Y-%m-%d")
ISO_ZONED = ("%Y-%m-%dT%H:%M:%S%.f%z", "%Y-%m-%dT%H:%M%z")


def normalise(records: pl.DataFrame, site: PipelineSite) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split raw records (with `delivery_date`) into candidates for `events`, and rows for `rejected`."""
    source = site.source
    day = pl.col("occurred_at").dt.convert_time_zone(site.time_zone).dt.date()
    judged = (
        records.with_columns(
            user_id=text(source.columns.user_id),
            given_session_id=text(source.columns.session_id),
            item_id=text(source.columns.item_id),
            occurred_at=plausible(
                occurred_at(records.schema[raw_name(source.columns.occurred_at)], source, site.time_zone)
            ),
            event_type=event_type(source),
            **{name: text(name) for name in source.context},
        )
        .with_columns(visitor=pl.coalesce("user_id", "given_session_id"), event_date=day)
        .with_columns(reason=reason(source))
    )
    good = judged.filter(pl.col("reason").is_null()).select(
        *("delivery_date", "source_file", "record", "event_date", "visitor", "user_id", "item_id", "event_type"),
        *("occurred_at", "given_session_id", *source.context),
        user_bucket=user_bucket(pl.col("visitor"), site.buckets),
        event_id=event_id(source.context),
    )
    return good, rejected_rows(judged.filter(pl.col("reason").is_not_null()), source)


def rejected_rows(judged: pl.DataFrame, source: Source) -> pl.DataFrame:
    """Rows for `rejected` with the whole raw row as JSON, booked on the day of their file.

    A log without `{date}` may bring years on one day; there a row that tells its own day is booked on that one.
    """
    told_day = pl.lit(None, pl.Date) if source.is_dated else pl.col("event_date")
    raw = [pl.col(name).alias(name.removeprefix(RAW)) for name in judged.columns if name.startswith(RAW)]
    return judged.select(
        *("delivery_date", "source_file", "record", "reason"),
        event_date=pl.coalesce(told_day, "delivery_date"),
        fields=pl.coalesce("fields", pl.struct(raw).struct.json_encode()),
    )


def event_id(context: list[str]) -> pl.Expr:
    """128 bits over what happened, not over the file or line that told it."""
    told = ("visitor", "item_id", "occurred_at", "event_type", "given_session_id", *context)
    return stable_id(*(pl.col(name).dt.epoch("us") if name == "occurred_at" else pl.col(name) for name in told))


def text(column: str | None) -> pl.Expr:
    """A column as trimmed text; empty text is missing."""
    if column is None:
        return pl.lit(None, pl.String)
    trimmed = pl.col(raw_name(column)).cast(pl.String).str.strip_chars()
    return pl.when(trimmed != "").then(trimmed)


def occurred_at(kind: pl.DataType, source: Source, time_zone: str) -> pl.Expr:
    """The instant in UTC; null where the text is no time, or a local time that the clock skipped."""
    column = pl.col(raw_name(source.columns.occurred_at))
    if isinstance(kind, pl.Datetime):
        return (
            column.dt.cast_time_unit("us").dt.convert_time_zone("UTC") if kind.time_zone else in_zone(column, time_zone)
        )
    trimmed = column.str.strip_chars()
    if source.time_unit in (*MICROSECONDS, "ns"):
        return epoch_microseconds(trimmed, source.time_unit).cast(pl.Datetime("us", "UTC"))
    if source.time_unit == "iso":
        return iso_time(trimmed, time_zone)
    if "%z" in source.time_unit:
        return trimmed.str.to_datetime(source.time_unit, time_unit="us", strict=False).dt.convert_time_zone("UTC")
    return in_zone(trimmed.str.to_datetime(source.time_unit, time_unit="us", strict=False), time_zone)


def epoch_microseconds(column: pl.Expr, unit: str) -> pl.Expr:
    """Whole microseconds since 1970 of a number that may have a fraction; null where it is none."""
    if unit == "ns":  # more digits than a float holds
        return column.cast(pl.Int64, strict=False) // 1000
    return (column.cast(pl.Float64, strict=False) * MICROSECONDS[unit]).round().cast(pl.Int64, strict=False)


def plausible(instant: pl.Expr) -> pl.Expr:
    """An instant; null if it lies outside of all that a log can tell."""
    return pl.when(instant.is_between(EARLIEST, LATEST)).then(instant)


def iso_time(column: pl.Expr, time_zone: str) -> pl.Expr:
    """ISO 8601 with or without a zone; without one it is the site's local time."""
    one_form = column.str.replace(" ", "T", literal=True).str.replace(r"[zZ]$", "+00:00")
    zoned = [one_form.str.to_datetime(form, time_unit="us", strict=False) for form in ISO_ZONED]
    local = [in_zone(one_form.str.to_datetime(form, time_unit="us", strict=False), time_zone) for form in ISO_LOCAL]
    return pl.coalesce(*(instant.dt.convert_time_zone("UTC") for instant in zoned), *local)


def in_zone(local: pl.Expr, time_zone: str) -> pl.Expr:
    """Local clock times as instants: the earlier one of two; null for a time that did not exist."""
    zoned = local.dt.cast_time_unit("us").dt.replace_time_zone(time_zone, ambiguous="earliest", non_existent="null")
    return zoned.dt.convert_time_zone("UTC")


def event_type(source: Source) -> pl.Expr:
    """The event's type; null where the site file does not know the log's word."""
    if source.event_type.constant is not None:
        return pl.lit(source.event_type.constant)
    word = text(source.event_type.column)
    if not source.event_type.map:
        return word
    return word.replace_strict(source.event_type.map, default=None, return_dtype=pl.String)


def reason(source: Source) -> pl.Expr:
    """Why a record cannot be an event; null if it can."""
    rules = {
        "missing_user": pl.col("visitor").is_null(),
        "missing_item": pl.col("item_id").is_null(),
        "bad_time": pl.col("occurred_at").is_null(),
        "unknown_event_type": pl.col("event_type").is_null(),
    }
    if source.is_dated:
        rules["future_time"] = pl.col("event_date") > pl.col("delivery_date")
    if source.lateness is not None:
        rules["too_late"] = pl.col("event_date") < pl.col("delivery_date") - source.lateness
    excluded = [(rule.reason, is_excluded(rule)) for rule in source.exclude]
    ordered = [*excluded, *rules.items()]
    return pl.coalesce("fault", *(pl.when(rule).then(pl.lit(name)) for name, rule in ordered))


def is_excluded(rule: Exclusion) -> pl.Expr:
    """Whether a rule of the site file holds for a record; null where it has no such value."""
    value = text(rule.column)
    if rule.one_of is not None:
        return value.is_in(rule.one_of)
    if rule.matches is not None:
        return value.str.contains(rule.matches)
    number = value.cast(pl.Float64, strict=False).fill_nan(None)
    return number < rule.less_than if rule.less_than is not None else number > rule.more_than
