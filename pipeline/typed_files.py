"""Records of Parquet files, some row groups at a time: times keep their type, others become text."""

from collections.abc import Iterator
from typing import Any

import fsspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ConfigurationError
from pipeline.raw_columns import check_columns, raw_name, tell_apart
from pipeline.settings import Source

ROWS_AT_A_TIME = 2**18


def typed_frames(path: str, source: Source) -> Iterator[pl.DataFrame]:
    """The records of one file; nested columns that nobody wants are left out.

    Raises ConfigurationError for a missing or nested column that is wanted, ArrowException or OSError for damage.
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
        for batch in parquet.iter_batches(ROWS_AT_A_TIME):
            columns = [as_text_or_time(batch.column(place)) for place in kept]
            yield pl.DataFrame(dict(zip(raw_names, columns, strict=True)))


def check_flat(path: str, schema: pa.Schema, source: Source) -> None:
    """Refuse a wanted column that holds lists or structs."""
    for name in source.named_columns:
        kind = schema.field(schema.get_all_field_indices(name)[0]).type
        if pa.types.is_nested(kind):
            raise ConfigurationError(
                f"column {name!r} of {path} is a {kind}; name a column of plain values in `source`"
            )


def as_text_or_time(column: pa.Array) -> pl.Series:
    """Times in UTC microseconds (in no zone if they have none), all else as text."""
    kind = column.type
    if pa.types.is_timestamp(kind):
        return pl.Series(pl.from_arrow(column.cast(pa.timestamp("us", "UTC" if kind.tz else None), safe=False)))
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return pl.Series(
            [None if v is None else v.decode(errors="replace") for v in column.to_pylist()], dtype=pl.String
        )
    return pl.Series(pl.from_arrow(column)).cast(pl.String)


def typed_columns(path: str) -> dict[str, str]:
    """Names and types of a Parquet file's columns, as Polars calls them."""
    with fsspec.open(path, "rb") as file:
        if not file.read(1):
            return {}
        schema: Any = pq.ParquetFile(file).schema_arrow
        return {name: str(kind) for name, kind in pl.DataFrame(schema.empty_table()).schema.items()}
