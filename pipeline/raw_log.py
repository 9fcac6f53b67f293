"""Read raw log files as text: every record with its file, its number, and why it cannot be read, if so.

Reads   csv, tsv, JSON Lines or Parquet; plain, gz or zst; here or in an object store
Gives   frames of records (columns: pipeline/raw_columns.py) that together hold every record of every file

A frame is made of some megabytes of a file, whatever its length, so memory is bounded. Blank lines and files without
content hold no records. A damaged file gives what can be trusted of it, and one record more, `truncated_file`.
"""

import json
import logging
from collections.abc import Iterator
from typing import Protocol

import polars as pl
import pyarrow as pa
from polars.exceptions import PolarsError

from pipeline.errors import ConfigurationError, kind_of, reason_of
from pipeline.json_lines import JsonLines, json_types
from pipeline.odd_lines import OddLines
from pipeline.raw_bytes import RawFile, first_lines
from pipeline.raw_columns import META, fault_rows, no_records, refuse_unreadable_ids
from pipeline.separated_text import SEPARATORS, SeparatedText
from pipeline.settings import Source
from pipeline.typed_files import typed_columns, typed_frames

log = logging.getLogger(__name__)

ROWS_OF_A_FRAME = 2**17  # small files are put together until they have as many
MOST_BYTES_OF_A_RECORD = 64 * 2**20
LINES_LOOKED_AT = 1000  # to tell the types of JSON Lines


class Parser(Protocol):
    """What knows a text format."""

    def parse(self, text: bytes, is_end: bool) -> tuple[pl.DataFrame, bytes]:
        """The records of a text, numbered from 1, and what is left of it."""


def file_format(path: str) -> str:
    """csv, tsv, jsonl or parquet, told by the file's name."""
    endings = path.rsplit("/", 1)[-1].lower().split(".")[1:]
    found = [ending for ending in endings if ending in ("csv", "tsv", "jsonl", "ndjson", "parquet")]
    if not found:
        raise ConfigurationError(
            f"cannot tell the format of {path}; its name must end in .csv, .tsv, .jsonl or .parquet"
        )
    return "jsonl" if found[-1] == "ndjson" else found[-1]


def log_format(path: str, source: Source) -> str:
    """What a file is read with: the site's own reader, or the format that the file's name tells."""
    return source.reader or file_format(path)


def read_raw_log(paths: list[str], source: Source) -> Iterator[pl.DataFrame]:
    """All records of files, frame by frame, in the order of `paths`.

    Raises ConfigurationError for a missing column or a file that cannot be opened.
    """
    waiting: list[pl.DataFrame] = []
    for frame in (frame for path in paths for frame in read_file(path, source)):
        if waiting and not (sum(map(len, waiting)) < ROWS_OF_A_FRAME and all(is_like(frame, w) for w in waiting)):
            yield together(waiting, source)
            waiting = []
        waiting.append(frame)
    if waiting:
        yield together(waiting, source)


def is_like(frame: pl.DataFrame, other: pl.DataFrame) -> bool:
    """Whether two frames have the same columns of the same types, so that no row gets a column its file has not."""
    return dict(frame.schema) == dict(other.schema)


def together(frames: list[pl.DataFrame], source: Source) -> pl.DataFrame:
    """Frames of files that may have their columns in any order; what a site needs and they have not is null."""
    rows = pl.concat(frames, how="diagonal")
    return rows.with_columns(
        pl.lit(None, kind).alias(name) for name, kind in no_records(source).schema.items() if name not in rows.columns
    )


def read_file(path: str, source: Source) -> Iterator[pl.DataFrame]:
    """The records of one file, those of a damaged one up to the damage."""
    kind = log_format(path, source)
    parts = read_typed(path, source) if kind == "parquet" else read_text(path, parser(path, kind, source), source)
    num_records = 0
    try:
        for part in parts:
            if part.height:
                yield framed(part, path, num_records)
                num_records += part.height
    except OSError as error:
        raise kind_of(error)(
            f"cannot read {path}: {reason_of(error)}. Mend it, or take it out of source.events"
        ) from error


def framed(records: pl.DataFrame, path: str, num_before: int) -> pl.DataFrame:
    """Records numbered inside their file, with all of our columns."""
    missing = {name: pl.lit(None, kind) for name, kind in META.items() if name not in records.columns}
    rows = records.with_columns(**missing)
    return rows.with_columns(source_file=pl.lit(path), record=pl.col("record").cast(pl.Int64) + num_before)


def parser(path: str, kind: str, source: Source) -> Parser:
    """What reads a file's text."""
    if kind == source.reader:
        return OddLines(path, source, kind)
    return JsonLines(source) if kind == "jsonl" else SeparatedText(path, source, SEPARATORS[kind])


def read_text(path: str, parser: Parser, source: Source) -> Iterator[pl.DataFrame]:
    """Records of one text file; of each frame they are numbered from 1."""
    file = RawFile(path)
    rest = b""
    for block in file.text_blocks():
        text = rest + block
        records, rest = parser.parse(text, is_end=False)
        yield records if text.isascii() else refuse_unreadable_ids(records, source)
        if len(rest) > MOST_BYTES_OF_A_RECORD:
            yield truncated(path, f"a record is longer than {MOST_BYTES_OF_A_RECORD} bytes; nothing after it was read")
            return
    if file.damage is None:
        yield refuse_unreadable_ids(parser.parse(rest, is_end=True)[0], source)
    else:  # half a record is none
        yield truncated(path, file.damage.error, readable_bytes=file.damage.num_bytes)


def read_typed(path: str, source: Source) -> Iterator[pl.DataFrame]:
    """Records of one Parquet file; of each frame they are numbered from 1."""
    num_records = 0
    try:
        for rows in typed_frames(path, source):
            yield rows.with_columns(record=pl.int_range(1, rows.height + 1))
            num_records += rows.height
    except (pa.ArrowException, PolarsError, UnicodeDecodeError, ValueError) as error:
        yield truncated(path, f"it cannot be read as Parquet: {str(error).rstrip('.')}", readable_rows=num_records)


def truncated(path: str, error: str, **readable: int) -> pl.DataFrame:
    """The one record that stands for what a damaged file holds no more; said aloud too."""
    log.warning(
        "%s is damaged: %s. What could be read counts; the rest is one rejected row, truncated_file", path, error
    )
    return fault_rows("truncated_file", [(1, json.dumps({"error": error} | readable))])


def raw_columns(path: str, source: Source) -> dict[str, str]:
    """Names and types of a file's columns: text for csv and tsv, types as seen for the mapped paths of JSON Lines.

    Empty for a file without content, or one whose beginning cannot be read.
    """
    kind = log_format(path, source)
    if kind == source.reader:
        return {}
    try:
        if kind == "parquet":
            return typed_columns(path)
        head = first_lines(path, LINES_LOOKED_AT if kind == "jsonl" else 1)
    except (pa.ArrowException, PolarsError, ValueError, OSError):
        return {}
    if kind == "jsonl":
        return json_types(head.decode(errors="replace").split("\n"), source)
    text = SeparatedText(path, source, SEPARATORS[kind])
    text.parse(head, is_end=True)
    return dict.fromkeys(text.header, "text")
