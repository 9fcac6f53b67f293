"""A Parquet file; nested lists as a list of structs."""

import polars as pl
import pyarrow.parquet as pq

from serving_export.exporters.whole_file import whole_file
from serving_export.parcel import Parcel


def send(parcel: Parcel, address: str) -> None:
    """Write all parts into one file."""
    with whole_file(address) as file:
        tables = (part.to_arrow(compat_level=pl.CompatLevel.oldest()) for part in parcel.parts())
        first = next(tables)  # its strings are no views, which are not read everywhere
        with pq.ParquetWriter(file, first.schema, compression="zstd") as writer:
            writer.write_table(first)
            for table in tables:
                writer.write_table(table)
