"""Give raw records their meaning: who, what, when; or the reason why not.

A record that cannot be an event gets the first reason that holds:
the reader's (truncated_file, unparsable_row), the site's own (`source.exclude`), missing_user, missing_item, bad_time,
unknown_event_type, future_time, too_late, item_not_in_catalogue.
"""

import json
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import polars as pl

from pipeline.bots import TOLD_AGENT
from pipeline.dates import day_end
from pipeline.ids import stable_id, user_bucket, visitor
from pipeline.raw_columns import RAW, raw_name
from pipeline.settings import Exclusion, PipelineSite, Source

MICROSECONDS = {"s": 1e6, "ms": 1e3, "us": 1.0}
EARLIEST, LATEST = datetime(1900, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
"""Beyond these a time is a slip of its unit (milliseconds read as seconds); few readers of Delta could hold it."""
RAW_COLUMNS = "raw_columns"
"""Beside the raw row of a candidate: which columns its file has, as JSON."""
ISO_UTC = "%Y-%m-%dT%H:%M:%S%.fZ"
ISO_FORMS = (
    *("%Y-%m-%dT%H:%M:%S%.f%z", "%Y-%m-%dT%H:%M%z"),
    *("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%Y-%m-%d"),
)


def normalise(
    records: pl.DataFrame, site: PipelineSite, day: date, known_items: pl.Series | None = None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split raw records of files of delivery `day` into candidates for `events`, and rows for `rejected`.

    An item that is not among `known_items`, where these are given, is a reason to reject the row.
    """
    source = site.source
    agent = source.bots.user_agent
    told = records.with_columns(
        delivery_date=pl.lit(day),
        user_id=text(source.columns.user_id),
        given_session_id=text(source.columns.session_id),
        item_id=text(source.columns.item_id),
        occurred_at=plausible(occurred_at(records[raw_name(source.columns.occurred_at)], source, site.time_zone)),
        event_type=event_type(source),
        **{name: text(name) for name in source.context},
        **({TOLD_AGENT: text(agent.column)} if agent else {}),
    ).with_columns(
        visitor=visitor(pl.col("user_id"), pl.col("given_session_id")),
        event_date=pl.col("occurred_at").dt.convert_time_zone(site.time_zone).dt.date(),
    )
    # Who is a bot shows later; until then candidates keep their raw row, of which `rejected` tells.
    kept = [TOLD_AGENT] if agent else []
    if source.bots.are_judged:
        names = raw_columns(records)  # as text: what is a time in one file may be text in another
        told = told.with_columns(pl.lit(json.dumps(names)).alias(RAW_COLUMNS), pl.col(names).cast(pl.String))
        kept += ["fields", RAW_COLUMNS, *names]
    faults = reasons(site, day, known_items)
    is_bad = told.select(
        pl.any_horizontal(pl.col("fault").is_not_null(), *(rule.fill_null(False) for _, rule in faults))
    ).to_series()
    good = told.select(
        *("delivery_date", "source_file", "record", "event_date", "visitor", "user_id", "item_id", "event_type"),
        *("occurred_at", "given_session_id", *source.context, *kept),
    ).filter(~is_bad)
    first_reason = pl.coalesce("fault", *(pl.when(rule).then(pl.lit(name)) for name, rule in faults))
    rejected = rejected_rows(told.filter(is_bad).with_columns(reason=first_reason), source)
    return good.with_columns(user_bucket=user_bucket(pl.col("visitor"), site.buckets)), rejected


def rejected_rows(judged: pl.DataFrame, source: Source) -> pl.DataFrame:
    """Rows for `rejected` with the whole raw row as JSON, booked on the day of their file.

    A log without `{date}` may bring years on one day; there a row that tells its own day is booked on that one.
    """
    told_day = pl.lit(None, pl.Date) if source.is_dated else pl.col("event_date")
    return judged.select(
        *("delivery_date", "source_file", "record", "reason"),
        event_date=pl.coalesce(told_day, "delivery_date"),
        detail=pl.lit(None, pl.String),
        fields=whole_row(judged),
    )


def whole_row(records: pl.DataFrame) -> pl.Expr:
    """Raw records as JSON: as the file tells them, or by their columns."""
    return pl.coalesce("fields", raw_fields(raw_columns(records)))


def raw_columns(rows: pl.DataFrame) -> list[str]:
    """Our names for the log's own columns."""
    return [name for name in rows.columns if name.startswith(RAW)]


def raw_row(rows: pl.DataFrame) -> pl.Series:
    """The whole raw row of candidates as JSON, with the columns of its own file."""
    number = pl.Series("number", range(rows.height), dtype=pl.Int64)
    told = [
        part.select("number", fields=pl.coalesce("fields", raw_fields(json.loads(names))))
        for (names,), part in rows.with_columns(number).group_by(RAW_COLUMNS)
    ]
    return pl.concat(told).sort("number")["fields"]


def raw_fields(columns: list[str]) -> pl.Expr:
    """The log's own columns, by our names for them, as JSON."""
    return pl.struct(pl.col(name).alias(name.removeprefix(RAW)) for name in columns).struct.json_encode()


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


def occurred_at(column: pl.Series, source: Source, time_zone: str) -> pl.Series:
    """The instant in UTC; null where the text is no time, or a local time that the clock skipped."""
    if isinstance(column.dtype, pl.Datetime):
        typed = column.dt.cast_time_unit("us")
        return typed.dt.convert_time_zone("UTC") if column.dtype.time_zone else in_zone(typed, time_zone)
    trimmed = column.str.strip_chars()
    if source.time_unit in (*MICROSECONDS, "ns"):
        return epoch_microseconds(trimmed, source.time_unit).cast(pl.Datetime("us", "UTC"))
    if source.time_unit == "iso":
        return iso_time(trimmed, time_zone)
    return clock_time(trimmed, source.time_unit, time_zone)


def epoch_microseconds(column: pl.Series, unit: str) -> pl.Series:
    """Whole microseconds since 1970 of a number that may have a fraction; null where it is none."""
    if unit == "ns":  # more digits than a float holds
        return column.cast(pl.Int64, strict=False) // 1000
    return (column.cast(pl.Float64, strict=False) * MICROSECONDS[unit]).round().cast(pl.Int64, strict=False)


def plausible(instant: pl.Series) -> pl.Series:
    """An instant; null if it lies outside of all that a log can tell."""
    return instant.set(~instant.is_between(EARLIEST, LATEST), None)


def iso_time(column: pl.Series, time_zone: str) -> pl.Series:
    """ISO 8601 with or without a zone; without one it is the site's local time.

    Reading is what costs, so each form is tried on what the forms before it left.
    """
    found = column.str.to_datetime(ISO_UTC, time_unit="us", strict=False).dt.replace_time_zone("UTC")
    one_form = None
    for form in ISO_FORMS:
        is_left = found.is_null() & column.is_not_null()
        if not is_left.any():
            break
        if one_form is None:
            one_form = column.str.replace(" ", "T", literal=True).str.replace(r"[zZ]$", "+00:00")
        found = found.scatter(is_left.arg_true(), clock_time(one_form.filter(is_left), form, time_zone))
    return found


def clock_time(text: pl.Series, form: str, time_zone: str) -> pl.Series:
    """Text of one strptime format as instants; a time without a zone is in the site's zone."""
    read = text.str.to_datetime(form, time_unit="us", strict=False)
    return read.dt.convert_time_zone("UTC") if "%z" in form else in_zone(read, time_zone)


def in_zone(local: pl.Series, time_zone: str) -> pl.Series:
    """Local clock times as instants: the earlier one of two; null for a time that did not exist."""
    zoned = local.dt.replace_time_zone(time_zone, ambiguous="earliest", non_existent="null")
    return zoned.dt.convert_time_zone("UTC")


def event_type(source: Source) -> pl.Expr:
    """The event's type; null where the site file does not know the log's word."""
    if source.event_type.constant is not None:
        return pl.lit(source.event_type.constant)
    word = text(source.event_type.column)
    if not source.event_type.map:
        return word
    return word.replace_strict(source.event_type.map, default=None, return_dtype=pl.String)


def reasons(site: PipelineSite, day: date, known_items: pl.Series | None) -> list[tuple[str, pl.Expr]]:
    """Why a readable record of a file of `day` cannot be an event, each with its rule; the first that holds counts."""
    source = site.source
    rules = {
        "missing_user": pl.col("visitor").is_null(),
        "missing_item": pl.col("item_id").is_null(),
        "bad_time": pl.col("occurred_at").is_null(),
        "unknown_event_type": pl.col("event_type").is_null(),
    }
    if source.is_dated:
        rules["future_time"] = pl.col("occurred_at") >= day_end(day, site.time_zone)
    if source.lateness is not None:
        rules["too_late"] = pl.col("occurred_at") < earliest_time(day, source.lateness, site.time_zone)
    if known_items is not None:
        rules["item_not_in_catalogue"] = ~pl.col("item_id").is_in(known_items.implode())
    excluded = [(rule.reason, is_excluded(rule)) for rule in source.exclude]
    return [*excluded, *rules.items()]


def earliest_time(day: date, lateness: timedelta, time_zone: str) -> datetime:
    """The first instant that a file of `day` may tell of: by the clock of the site, so a day more is a day more."""
    return (datetime.combine(day, time()) - lateness).replace(tzinfo=ZoneInfo(time_zone)).astimezone(UTC)


def is_excluded(rule: Exclusion) -> pl.Expr:
    """Whether a rule of the site file holds for a record; null where it has no such value."""
    value = text(rule.column)
    if rule.one_of is not None:
        return value.is_in(rule.one_of)
    if rule.matches is not None:
        return value.str.contains(rule.matches)
    number = value.cast(pl.Float64, strict=False).fill_nan(None)
    return number < rule.less_than if rule.less_than is not None else number > rule.more_than
