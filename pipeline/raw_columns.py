"""Columns of a raw log: how they are named beside ours, which ones the site file asks for.

A frame of raw records has the log's own columns, each named `raw:` and its name in the log, and beside them
source_file · record (from 1 in each file) · fault (why it cannot be an event, else null) · fields (the record as JSON,
where the log's columns do not tell all of it, else null).
"""

import difflib
from collections.abc import Iterable, Sequence

import polars as pl

from pipeline.errors import ConfigurationError
from pipeline.settings import Items, Source

Section = Source | Items
"""The sections of the site file that name columns of raw files."""

RAW = "raw:"
"""Stands before a column of the log, so that it never clashes with one of ours."""
META: dict[str, type[pl.DataType]] = {
    "source_file": pl.String,
    "record": pl.Int64,
    "fault": pl.String,
    "fields": pl.String,
}
GAPS_FROM: dict[type[pl.DataType], int] = {pl.Float16: 2**11, pl.Float32: 2**24, pl.Float64: 2**53}
"""From which whole number on a float does not hold each one: two ids may have become one before it was written."""
TEXT_LIKE_FLOATS = "text like 1.0"
LIKE_A_FLOAT = r"^-?\d+(?:\.0+|(?:\.\d+)?[eE]\+\d+)$"
UNREADABLE = "\ufffd"
MOST_NAMES_TOLD = 30


def raw_name(column: str) -> str:
    """Where a column of the log is kept beside the columns it becomes; two may share a name."""
    return RAW + column


def id_columns(source: Section) -> list[str]:
    """The columns that say who and what."""
    if isinstance(source, Items):
        return [source.columns.item_id]
    columns = source.columns
    return list(dict.fromkeys(name for name in (columns.user_id, columns.session_id, columns.item_id) if name))


def section_name(source: Section) -> str:
    """What the site file calls a section."""
    return "items" if isinstance(source, Items) else "source"


def no_records(source: Source) -> pl.DataFrame:
    """No rows, all columns."""
    return pl.DataFrame(schema={**{raw_name(name): pl.String for name in source.named_columns}, **META})


def check_columns(path: str, present: Iterable[str], source: Section) -> None:
    """Refuse a file that lacks a column which the site file names."""
    present = list(present)
    for name in source.named_columns:
        if name not in present:
            near = difflib.get_close_matches(name, present, n=1, cutoff=0.5)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ConfigurationError(
                f"{path} has no column {name!r}{hint}; it has {listed(present)}. Mend `{section_name(source)}` "
                "in the site file"
            )


def listed(names: list[str]) -> str:
    """Column names for a message, short and printable even if the file is no text."""
    told = [name if name.isprintable() and len(name) <= 80 else ascii(name[:80]) for name in names[:MOST_NAMES_TOLD]]
    return ", ".join(told) + (f" and {len(names) - len(told)} more" if len(names) > len(told) else "")


def tell_apart(names: list[str]) -> list[str]:
    """Column names with a number behind those that stood before."""
    unique: dict[str, None] = {}
    for name in names:
        number, free = 0, name
        while free in unique:
            free, number = f"{name}_duplicated_{number}", number + 1
        unique[free] = None
    return list(unique)


def fault_rows(fault: str, told: Sequence[tuple[int, str]]) -> pl.DataFrame:
    """Records that are no more than their fault, from (record number, fields)."""
    rows = pl.DataFrame(told, schema={"record": pl.Int64, "fields": pl.String}, orient="row")
    return rows.with_columns(fault=pl.lit(fault))


def whole_number(number: pl.Expr, gaps_from: int = 2**53) -> pl.Expr:
    """A float as the text of the integer that it is; null for a fraction, NaN, and from where floats have gaps on."""
    is_whole = (number == number.floor()) & (number.abs() < gaps_from)
    return pl.when(is_whole).then(number).cast(pl.Int64, strict=False).cast(pl.String)


def typed_id(column: pl.Expr, kind: pl.DataType) -> pl.Expr:
    """An id that a typed column holds, as text; null for what is no id: a fraction, a boolean, a rounded number."""
    if isinstance(kind, pl.Boolean):
        return pl.lit(None, pl.String)
    if isinstance(kind, pl.Decimal):
        return column.cast(pl.String).str.extract(r"^(-?\d+)(?:\.0*)?$")
    if kind.is_float():
        return whole_number(column.cast(pl.Float64), GAPS_FROM[type(kind)])
    return column.cast(pl.String)


def ids_like_floats(records: pl.DataFrame, source: Section) -> dict[str, str]:
    """The id columns most of whose values look like 17850.0 or 1.8E+04: a tool has made numbers of them."""
    names = [name for name in id_columns(source) if raw_name(name) in records.columns]
    is_float = (pl.col(raw_name(name)).str.strip_chars().str.contains(LIKE_A_FLOAT).mean() > 0.5 for name in names)
    shares = records.select(expr.fill_null(False).alias(name) for expr, name in zip(is_float, names, strict=True))
    return {name: TEXT_LIKE_FLOATS for name in names if shares[name].item()}


def about_float_ids(file: str, column: str) -> str:
    """What to say of a column that `ids_like_floats` names."""
    return (
        f"{file}: ids in column {column!r} look like 17850.0 or 1.8E+04, as if a tool had made numbers of them. They "
        "stay as they are, so 17850.0 is another id than 17850. Write the column as text or whole numbers and deliver "
        "the file again"
    )


def with_text_ids(records: pl.DataFrame, source: Section) -> pl.DataFrame:
    """Records whose ids may be numbers, with ids as text; a row with a value that is no id is `unparsable_row`."""
    names = [name for name in map(raw_name, id_columns(source)) if not isinstance(records.schema[name], pl.Datetime)]
    ids = records.select(typed_id(pl.col(name), records.schema[name]).alias(name) for name in names)
    is_odd = pl.any_horizontal(records[name].is_not_null() & ids[name].is_null() for name in names)
    fault = pl.col("fault") if "fault" in records.columns else pl.lit(None, pl.String)
    return records.with_columns(
        *(pl.coalesce(ids[name], pl.col(name).cast(pl.String)) for name in names),
        fault=pl.coalesce(fault, pl.when(is_odd).then(pl.lit("unparsable_row"))),
    )


def refuse_unreadable_ids(records: pl.DataFrame, source: Section) -> pl.DataFrame:
    """Records; those with a user, item or session id that was no UTF-8 are `unparsable_row`.

    All that cannot be read becomes U+FFFD, so two ids of the log would become one that is not in it.
    """
    ids = [name for name in map(raw_name, id_columns(source)) if records.schema.get(name) == pl.String]
    if not ids:
        return records
    is_unreadable = pl.any_horizontal(pl.col(name).str.contains(UNREADABLE, literal=True) for name in ids)
    if not records.select(is_unreadable.any()).item():
        return records
    fault = pl.col("fault") if "fault" in records.columns else pl.lit(None, pl.String)
    return records.with_columns(fault=pl.coalesce(fault, pl.when(is_unreadable).then(pl.lit("unparsable_row"))))
