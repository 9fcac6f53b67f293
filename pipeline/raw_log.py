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
from polars.exceptions import PanicException, PolarsError

from pipeline.errors import ConfigurationError, kind_of, reason_of
from pipeline.json_lines import JsonLines, json_types
from pipeline.odd_lines import OddLines
from pipeline.raw_bytes import RawFile, first_lines
from pipeline.raw_columns import META, Section, fault_rows, ids_like_floats, no_records, refuse_unreadable_ids
from pipeline.separated_text import SEPARATORS, SeparatedText
from pipeline.settings import Items, Source
from pipeline.typed_files import typed_columns, typed_frames

log = logging.getLogger(__name__)

ROWS_OF_A_FRAME = 2**17  # small files are put together until they have as many
MOST_BYTES_OF_A_RECORD = 64 * 2**20
MOST_LINES_OF_A_BLOCK = 2**20  # of 16 bytes each, if they fill a block of BLOCK_BYTES
LINES_LOOKED_AT = 1000  # to tell the types of columns


class Parser(Protocol):
    """What knows a text format."""

    def parse(self, text: bytes, is_end: bool) -> tuple[pl.DataFrame, bytes]:
        """The records of a text, numbered from 1, and what is left of it."""


def file_format(path: str) -> str:
    """csv, tsv, jsonl or parquet, told by the file's name."""
    found = named_format(path)
    if found is None:
        raise ConfigurationError(
            f"cannot tell the format of {path}; its name must end in .csv, .tsv, .jsonl or .parquet"
        )
    return found


def named_format(path: str) -> str | None:
    """The format that a file's name tells, if any."""
    endings = path.rsplit("/", 1)[-1].lower().split(".")[1:]
    found = [ending for ending in endings if ending in ("csv", "tsv", "jsonl", "ndjson", "parquet")]
    return None if not found else "jsonl" if found[-1] == "ndjson" else found[-1]


def log_format(path: str, source: Section) -> str:
    """What a file is read with: the site's own reader, or the format that its name tells; of a side table else csv."""
    if isinstance(source, Items):
        return named_format(path) or "csv"
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


def read_file(path: str, source: Section) -> Iterator[pl.DataFrame]:
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
        key = "items.path" if isinstance(source, Items) else "source.events"
        raise kind_of(error)(f"cannot read {path}: {reason_of(error)}. Mend it, or take it out of {key}") from error


def framed(records: pl.DataFrame, path: str, num_before: int) -> pl.DataFrame:
    """Records numbered inside their file, with all of our columns."""
    missing = {name: pl.lit(None, kind) for name, kind in META.items() if name not in records.columns}
    rows = records.with_columns(**missing)
    return rows.with_columns(source_file=pl.lit(path), record=pl.col("record").cast(pl.Int64) + num_before)


def parser(path: str, kind: str, source: Section) -> Parser:
    """What reads a file's text."""
    if isinstance(source, Source) and kind == source.reader:
        return OddLines(path, source, kind)
    return JsonLines(source) if kind == "jsonl" else separated_text(path, kind, source)


def separated_text(path: str, kind: str, source: Section) -> SeparatedText:
    """What reads a csv or tsv file; a side table may have another separator, and names in the site file."""
    if isinstance(source, Items):
        is_told = kind == "csv" or source.separator != SEPARATORS["csv"]
        return SeparatedText(path, source, source.separator if is_told else SEPARATORS[kind], source.header)
    return SeparatedText(path, source, SEPARATORS[kind])


def read_text(path: str, parser: Parser, source: Section) -> Iterator[pl.DataFrame]:
    """Records of one text file; of each frame they are numbered from 1."""
    file = RawFile(path)
    rest = b""
    for block in small_blocks(file.text_blocks()):
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


def small_blocks(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Blocks cut into pieces of about MOST_LINES_OF_A_BLOCK lines: what is in work is bounded by lines too."""
    for block in blocks:
        num_pieces = block.count(b"\n") // MOST_LINES_OF_A_BLOCK + 1
        num_bytes = len(block) // num_pieces + 1
        yield from (block[start : start + num_bytes] for start in range(0, len(block), num_bytes))


def read_typed(path: str, source: Section) -> Iterator[pl.DataFrame]:
    """Records of one Parquet file; of each frame they are numbered from 1."""
    num_records = 0
    try:
        for rows in typed_frames(path, source):
            yield refuse_unreadable_ids(rows.with_columns(record=pl.int_range(1, rows.height + 1)), source)
            num_records += rows.height
    except (pa.ArrowException, PolarsError, PanicException, ValueError) as error:
        yield truncated(path, f"it cannot be read as Parquet: {str(error).rstrip('.')}", readable_rows=num_records)


def truncated(path: str, error: str, **readable: int) -> pl.DataFrame:
    """The one record that stands for what a damaged file holds no more; said aloud too."""
    log.warning(
        "%s is damaged: %s. What could be read counts; the rest is one rejected row, truncated_file", path, error
    )
    return fault_rows("truncated_file", [(1, json.dumps({"error": error} | readable))])


def raw_columns(path: str, source: Section) -> dict[str, str]:
    """Names and types of a file's columns: text for csv and tsv, types as seen for the mapped paths of JSON Lines.

    An id column of text that looks like floats is TEXT_LIKE_FLOATS.

    Empty for a file without content, or one whose beginning cannot be read.
    """
    kind = log_format(path, source)
    if isinstance(source, Source) and kind == source.reader:
        return {}
    try:
        if kind == "parquet":
            return typed_columns(path)
        head = first_lines(path, LINES_LOOKED_AT)
    except (pa.ArrowException, PolarsError, PanicException, ValueError, OSError):
        return {}
    if kind == "jsonl":
        found, text = json_types(head, source) if isinstance(source, Source) else {}, JsonLines(source)
        return found | ids_like_floats(text.parse(head, is_end=True)[0], source)
    table = separated_text(path, kind, source)
    rows, _ = table.parse(head, is_end=True)
    return dict.fromkeys(table.header, "text") | ids_like_floats(rows, source)
