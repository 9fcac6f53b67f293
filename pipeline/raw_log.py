"""Read raw log files as text: every record with its file, its number, and whether it could be read.

Reads   csv, tsv, JSON Lines or Parquet; plain, gz or zst
Gives   a frame with the log's own columns as text, each named `raw:` and its name in the log, and beside them
        source_file, record (from 1), unparsable (the record's fields as JSON where it cannot be read, else null)

Polars pads rows that are too short without a word, and refuses a whole file for one row that is too long or badly
quoted. So lines are looked at first; a file in which any line disagrees with its header, or has a quote where none
belongs, is read again, record by record, with the csv module. Blank lines and files without content hold no records.
"""

import csv
import difflib
import json
import re
from collections.abc import Iterator

import fsspec
import polars as pl
from polars.exceptions import NoDataError, PolarsError

from pipeline.errors import ConfigurationError
from pipeline.readers import find_reader
from pipeline.settings import Source

META = ("source_file", "record", "unparsable")
RAW = "raw:"
"""Stands before a column of the log, so that it never clashes with one of ours."""
OURS = RECORD, SOURCE_FILE = "our:record", "our:source_file"  # names while a file is read, beside the log's own
SEPARATORS = {"csv": ",", "tsv": "\t"}
LINE_ONLY = "\x01"  # a separator that no text log holds: the line stays whole
MOST_LINES_OF_A_RECORD = 100  # a quote that stays open for longer is a stray one


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


def raw_name(column: str) -> str:
    """Where a column of the log is kept beside the columns it becomes; two may share a name."""
    return RAW + column


def read_raw_log(paths: list[str], source: Source) -> pl.DataFrame:
    """All records of files of one format. Raises ConfigurationError for a missing column or an unreadable file."""
    kind = log_format(paths[0], source)
    try:
        return read_parquet(paths, source) if kind == "parquet" else read_text(kind, paths, source)
    except (PolarsError, OSError, EOFError) as error:
        names = paths[0] if len(paths) == 1 else f"one of {len(paths)} files from {paths[0]} to {paths[-1]}"
        raise ConfigurationError(
            f"cannot read {names}: {error}. Deliver a whole file, or take it out of source.events"
        ) from error


def read_text(kind: str, paths: list[str], source: Source) -> pl.DataFrame:
    """All records of text files; polars refuses all of them for one without content, so these are looked for then."""
    try:
        if kind == source.reader:
            return read_odd(kind, paths, source)
        return read_jsonl(paths, source) if kind == "jsonl" else read_separated(paths, source, SEPARATORS[kind])
    except NoDataError:
        filled = [path for path in paths if has_lines(path)]
        return read_text(kind, filled, source) if filled else no_records(source)


def has_lines(path: str) -> bool:
    """Whether a text file, unpacked, holds anything."""
    try:
        return not scan_lines([path]).head(1).collect().is_empty()
    except NoDataError:
        return False


def no_records(source: Source) -> pl.DataFrame:
    """No rows, all columns."""
    names = [*map(raw_name, wanted_columns(source)), *META]
    return pl.DataFrame(schema=dict.fromkeys(names, pl.String) | {"record": pl.Int64})


def wanted_columns(source: Source) -> list[str]:
    """The log's columns that the site file names."""
    excluding = [rule.column for rule in source.exclude]
    named = [*source.columns.model_dump().values(), source.event_type.column, *source.context, *excluding]
    return list(dict.fromkeys(name for name in named if name))


def check_columns(path: str, present: list[str], source: Source) -> None:
    """Refuse a file that lacks a column which the site file names."""
    for name in wanted_columns(source):
        if name not in present:
            near = difflib.get_close_matches(name, present, n=1, cutoff=0.5)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ConfigurationError(
                f"{path} has no column {name!r}{hint}; it has {', '.join(present)}. Mend `source` in the site file"
            )


def read_parquet(paths: list[str], source: Source) -> pl.DataFrame:
    """Typed columns: times keep their type, others become text; nested ones that nobody wants are left out."""
    parts = [number_records(read_typed(path, source)) for path in paths if has_bytes(path)]
    return pl.concat(parts, how="diagonal") if parts else no_records(source)


def read_typed(path: str, source: Source) -> pl.DataFrame:
    """One Parquet file, so that each may have an order and types of its own; times in one unit and zone."""
    rows = pl.scan_parquet(path, row_index_name=RECORD)
    columns = rows.collect_schema()
    check_columns(path, [name for name in columns if name != RECORD], source)
    kept = {name: kind for name, kind in columns.items() if name in wanted_columns(source) or not kind.is_nested()}
    times = {name: kind for name, kind in kept.items() if isinstance(kind, pl.Datetime)}
    return rows.select(
        RECORD,
        pl.lit(path).alias(SOURCE_FILE),
        *(pl.col(name).cast(pl.String) for name in kept if name != RECORD and name not in times),
        *(pl.col(name).cast(pl.Datetime("us", "UTC" if kind.time_zone else None)) for name, kind in times.items()),
    ).collect()


def has_bytes(path: str) -> bool:
    """Whether a file is longer than nothing."""
    files, place = fsspec.core.url_to_fs(path)
    return bool(files.size(place))


def read_jsonl(paths: list[str], source: Source) -> pl.DataFrame:
    """One JSON object a line; columns are paths into it."""
    line = pl.col("line").str.strip_chars()
    lines = scan_lines(paths).with_columns(line).filter(pl.col("line") != "").collect()
    fields = [pl.col("line").str.json_path_match(json_path(name)).alias(name) for name in wanted_columns(source)]
    is_object = pl.col("line").str.json_path_match("$").str.starts_with("{").fill_null(False)
    unparsable = pl.when(~is_object).then(pl.struct("line").struct.json_encode())
    number = pl.int_range(pl.len(), dtype=pl.Int64).over(SOURCE_FILE)
    rows = lines.select(number.alias(RECORD), SOURCE_FILE, *fields)
    return number_records(rows).with_columns(lines.select(unparsable=unparsable).to_series())


def json_path(name: str) -> str:
    """A dotted name like `context.page.id` or `items[0].id` as a JSON path in which every key is quoted."""
    return "$" + "".join(re.sub(r"^[^\[]+", r"['\g<0>']", part) for part in name.split("."))


def read_separated(paths: list[str], source: Source, separator: str) -> pl.DataFrame:
    """Text with a header line; files with one header are read at once, ragged files one by one."""
    shapes = line_shapes(paths, separator)
    parts = [read_ragged(path, source, separator) for path in shapes.filter("is_ragged")["source_file"]]
    even = shapes.filter(~pl.col("is_ragged"))
    for _, group in even.group_by("header", maintain_order=True):
        rows = pl.scan_csv(
            group["source_file"].to_list(),
            separator=separator,
            infer_schema=False,
            encoding="utf8-lossy",
            row_index_name=RECORD,
            include_file_paths=SOURCE_FILE,
        ).collect()
        check_columns(group["source_file"][0], [name for name in rows.columns if name not in OURS], source)
        parts.append(number_records(rows))
    return pl.concat([no_records(source), *parts], how="diagonal")


def read_odd(reader: str, paths: list[str], source: Source) -> pl.DataFrame:
    """Lines as a reader module understands them; a record is a row that it gives."""
    number = pl.int_range(1, pl.len() + 1, dtype=pl.Int64).over(SOURCE_FILE)
    lines = scan_lines(paths).select("line", source_file=SOURCE_FILE, line_number=number).collect()
    rows = find_reader(reader)(lines.filter(pl.col("line").str.strip_chars() != ""))
    theirs = [name for name in rows.columns if name not in META]
    check_columns(paths[0], theirs, source)
    return rows.select(
        *(pl.col(name).alias(raw_name(name)) for name in theirs),
        "source_file",
        record=pl.int_range(1, pl.len() + 1, dtype=pl.Int64).over("source_file"),
        unparsable=pl.col("unparsable") if "unparsable" in rows.columns else pl.lit(None, pl.String),
    )


def scan_lines(paths: list[str]) -> pl.LazyFrame:
    """Files as whole lines; what is not UTF-8 becomes U+FFFD."""
    return pl.scan_csv(
        paths,
        has_header=False,
        separator=LINE_ONLY,
        quote_char=None,
        new_columns=["line"],
        infer_schema=False,
        encoding="utf8-lossy",
        row_index_name=RECORD,
        include_file_paths=SOURCE_FILE,
    ).with_columns(pl.col("line").fill_null(""))


def line_shapes(paths: list[str], separator: str) -> pl.DataFrame:
    """Per file with content: its header, and whether any line has other fields than the header or a misplaced quote."""
    line = pl.col("line").str.strip_suffix("\r")
    is_quoted = line.str.contains('"', literal=True)
    bare = pl.when(is_quoted).then(line.str.replace_all('"[^"]*"', "")).otherwise(line)
    num_separators = bare.str.count_matches(separator, literal=True)
    has_misplaced_quote = ~line.filter(is_quoted).str.contains(well_quoted(separator))
    return (
        scan_lines(paths)
        .group_by(source_file=SOURCE_FILE, maintain_order=True)
        .agg(
            header=line.first(),
            is_ragged=(num_separators != num_separators.first()).any() | has_misplaced_quote.any(),
            is_blank=(line == "").all(),
        )
        .filter(~pl.col("is_blank"))
        .collect()
    )


def well_quoted(separator: str) -> str:
    """A pattern for whole lines: each field is quoted from end to end, or holds no quote."""
    field = rf'(?:"(?:[^"]|"")*"|[^"{separator}]*)'
    return f"^{field}(?:{separator}{field})*$"


def read_ragged(path: str, source: Source, separator: str) -> pl.DataFrame:
    """A file in which some records do not fit the header; those become `unparsable`."""
    lines = scan_lines([path]).select(pl.col("line").str.strip_suffix("\r")).collect()["line"].to_list()
    records = split_records(lines, separator)
    header = tell_apart(next(records))
    check_columns(path, header, source)
    good, bad = [], []
    for number, fields in enumerate(records, start=1):
        if len(fields) == len(header):
            good.append((number, *(field or None for field in fields)))
        else:
            bad.append((number, json.dumps(fields, ensure_ascii=False)))
    schema = {"record": pl.Int64} | dict.fromkeys(map(raw_name, header), pl.String)
    rows = pl.concat(
        [
            pl.DataFrame(good, schema=schema, orient="row"),
            pl.DataFrame(bad, schema={"record": pl.Int64, "unparsable": pl.String}, orient="row"),
        ],
        how="diagonal",
    )
    return rows.sort("record").with_columns(source_file=pl.lit(path))


def split_records(lines: list[str], separator: str) -> Iterator[list[str]]:
    """The fields of each record, the header first; blank lines are no records."""
    start, num_fields = 0, 0
    while start < len(lines):
        fields, num_lines = read_record(lines, start, separator, num_fields)
        start += num_lines
        num_fields = num_fields or len(fields)
        if fields:
            yield fields


def read_record(lines: list[str], start: int, separator: str, num_fields: int) -> tuple[list[str], int]:
    """The fields of the record that begins at a line, and how many lines it takes.

    A stray quote would swallow what follows. So lines are joined only where they make a record that fits the header;
    else the first one stands alone, as a single field.
    """
    fields = split_fields(lines[start], separator)
    if fields is not None:
        return fields, 1
    for end in range(start + 2, min(start + MOST_LINES_OF_A_RECORD, len(lines)) + 1):
        text = "\n".join(lines[start:end])
        if '"' in lines[end - 1] and split_fields(text, separator) is not None:
            joined = split_fields(text, separator, is_strict=True)
            return (joined, end - start) if joined and len(joined) == num_fields else ([lines[start]], 1)
    return [lines[start]], 1


def split_fields(text: str, separator: str, is_strict: bool = False) -> list[str] | None:
    """The fields of a text; None where a quote is still open at its end, or, if strict, stands inside a field."""
    try:
        first, *more = csv.reader([text, "end"], delimiter=separator, strict=is_strict)
    except csv.Error:  # also: a field longer than the csv module takes
        return None if is_strict else [text]
    return first if more else None


def tell_apart(names: list[str]) -> list[str]:
    """Column names with a number behind those that stood before."""
    seen = [names[:i].count(name) for i, name in enumerate(names)]
    return [f"{name}_duplicated_{n - 1}" if n else name for name, n in zip(names, seen, strict=True)]


def number_records(rows: pl.DataFrame) -> pl.DataFrame:
    """Our names for ours and theirs; records numbered from 1 inside each file, not over all files."""
    record = pl.col(RECORD).cast(pl.Int64)
    return rows.select(
        *(pl.col(name).alias(raw_name(name)) for name in rows.columns if name not in OURS),
        pl.col(SOURCE_FILE).alias("source_file"),
        (record - record.min().over(SOURCE_FILE) + 1).alias("record"),
        pl.lit(None, pl.String).alias("unparsable"),
    )
