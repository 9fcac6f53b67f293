"""Records of Parquet files, some row groups at a time: times keep their type, others become text."""

from collections.abc import Iterator
from typing import Any

import fsspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from polars.exceptions import PanicException, PolarsError

from pipeline.errors import ConfigurationError
from pipeline.raw_columns import (
    RAW,
    Section,
    check_columns,
    id_columns,
    raw_name,
    section_name,
    tell_apart,
    with_text_ids,
)

ROWS_AT_A_TIME = 2**18
DAYS_1_TO_9999 = (-719_162, 2_932_896)
YEARS_1_TO_9999 = (-719_162 * 86_400_000_000, 2_932_897 * 86_400_000_000 - 1)
BYTES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)


def typed_frames(path: str, source: Section) -> Iterator[pl.DataFrame]:
    """The records of one file; columns that nobody wants are left out if they are nested or cannot be told as text.

    Raises ConfigurationError for a missing or nested column that is wanted, ArrowException, ValueError or OSError for
    damage.
    """
    with fsspec.open(path, "rb") as file:
        if not file.read(1):
            return
        parquet = pq.ParquetFile(file)
        names = parquet.schema_arrow.names
        check_columns(path, names, source)
        check_flat(path, parquet.schema_arrow, source)
        kept = [place for place, kind in enumerate(parquet.schema_arrow.types) if not pa.types.is_nested(kind)]
        raw_names = [raw_name(name) for name in tell_apart([names[place] for place in kept])]
        ids, wanted = map(raw_name, id_columns(source)), map(raw_name, source.named_columns)
        typed, needed = set(ids), set(wanted)
        for batch in parquet.iter_batches(ROWS_AT_A_TIME):
            columns: dict[str, pl.Series] = {}
            for name, place in zip(raw_names, kept, strict=True):
                try:
                    column = readable_column(batch.column(place))
                    stays = isinstance(column.dtype, pl.Datetime) or name in typed
                    columns[name] = column if stays else column.cast(pl.String)
                except (pa.ArrowException, PolarsError, PanicException) as error:
                    if name in needed:
                        raise ValueError(f"column {name.removeprefix(RAW)!r}: {error}") from error
            yield with_text_ids(pl.DataFrame(columns), source)


def check_flat(path: str, schema: pa.Schema, source: Section) -> None:
    """Refuse a wanted column that holds lists or structs."""
    for name in source.named_columns:
        kind = schema.field(schema.get_all_field_indices(name)[0]).type
        if pa.types.is_nested(kind):
            raise ConfigurationError(
                f"column {name!r} of {path} is a {kind}; name a column of plain values in `{section_name(source)}`"
            )


def readable_column(column: pa.Array) -> pl.Series:
    """A column as Polars holds it: times in UTC microseconds (in no zone if they have none), numbers, else text.

    Times beyond the years 1 to 9999, like the infinity of a database, are null: Polars cannot write them.
    """
    if isinstance(column, pa.ExtensionArray) and not isinstance(column, pa.UuidArray):
        column = column.storage
    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    kind = column.type
    if pa.types.is_timestamp(kind):
        times = pl.Series(pl.from_arrow(column.cast(pa.timestamp("us", "UTC" if kind.tz else None), safe=False)))
        return times.set(~times.to_physical().is_between(*YEARS_1_TO_9999), None)
    if pa.types.is_date(kind):
        days = pl.Series(pl.from_arrow(column.cast(pa.date32(), safe=False)))
        return days.set(~days.to_physical().is_between(*DAYS_1_TO_9999), None).cast(pl.String)
    if isinstance(column, pa.UuidArray):
        return pl.Series([None if value is None else str(value) for value in column.to_pylist()], dtype=pl.String)
    if any(is_kind(kind) for is_kind in BYTES):
        return pl.Series(
            [None if v is None else v.decode(errors="replace") for v in column.to_pylist()], dtype=pl.String
        )
    if pa.types.is_decimal256(kind) or pa.types.is_duration(kind):
        column = column.cast(pa.string())
    return pl.Series(pl.from_arrow(column))


def typed_columns(path: str) -> dict[str, str]:
    """Names and types of a Parquet file's columns, as Polars calls them."""
    with fsspec.open(path, "rb") as file:
        if not file.read(1):
            return {}
        schema: Any = pq.ParquetFile(file).schema_arrow
        return {name: str(kind) for name, kind in pl.DataFrame(schema.empty_table()).schema.items()}
