"""Rejected rows for people: how many for which reason, and the rows as they were delivered, to be mended.

A row is read back from its raw file by its record number, as long as the file is what it was when it was ingested.
Else it is told from `rejected`, unless that keeps less of it than the log had.
"""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any

import polars as pl

from pipeline.errors import ConfigurationError
from pipeline.forgotten import REASON as FORGOTTEN
from pipeline.formulas import guard
from pipeline.normalise import whole_row
from pipeline.publish import Store
from pipeline.raw_files import expand, size_and_digest
from pipeline.raw_log import read_raw_log
from pipeline.settings import PipelineSite
from pipeline.tables import FILES, REJECTED

ABOUT = "nightjar"
"""The key of a JSON line under which we tell where a row came from and why it was rejected."""
NO_ROWS = ("truncated_file", FORGOTTEN)
"""Reasons of what is no row, or none that may be handed back."""


@dataclass(frozen=True)
class RawRow:
    """A row as it was delivered."""

    about: dict[str, Any]
    """file, record, reason."""
    fields: Any
    """Its fields by name; of a row that fits no header, a list of fields or the line."""


def rejected_rows(store: Store, day: date, reason: str | None) -> pl.DataFrame:
    """Rows of `rejected` that are booked on a day, in the order of file and record; of one reason, if told.

    Raises ConfigurationError for a reason that no row has.
    """
    rows = store.scan(REJECTED).filter(pl.col("event_date") == day).sort("source_file", "record").collect()
    reasons = sorted(rows["reason"].unique())
    if reason is not None and reason not in reasons:
        there = f"there are {', '.join(reasons)}" if reasons else "no row was rejected on that day"
        raise ConfigurationError(f"no row of {day} was rejected for the reason {reason!r}; {there}")
    return rows.filter(pl.col("reason") == reason) if reason else rows


def raw_rows(site: PipelineSite, store: Store, rejected: pl.DataFrame) -> tuple[list[RawRow], int]:
    """The rows as they were delivered, and how many cannot be told: their file is gone or another one."""
    rows = rejected.filter(~pl.col("reason").is_in(NO_ROWS))
    found: list[RawRow] = []
    for part in rows.partition_by("source_file", maintain_order=True):
        path = part["source_file"][0]
        told = read_back(site, part) if is_unchanged(store, path) else as_kept(site, part)
        for row in told.drop_nulls("fields").iter_rows(named=True):
            about = {"file": path, "record": row["record"], "reason": row["reason"]}
            found.append(RawRow(about, json.loads(row["fields"])))
    return found, rows.height - len(found)


def is_unchanged(store: Store, path: str) -> bool:
    """Whether a raw file is there and is what was ingested."""
    known = store.scan(FILES).filter(pl.col("path") == path).select("sha256").head(1).collect().to_series()
    return bool(expand(path)) and size_and_digest(path, "source.events")[1] in known


def read_back(site: PipelineSite, rows: pl.DataFrame) -> pl.DataFrame:
    """Rejected rows of one file: record, reason, and `fields` from the file."""
    wanted = rows.select("record", "reason")
    found = [
        records.join(wanted, on="record").select("record", "reason", fields=whole_row(records))
        for records in read_raw_log([rows["source_file"][0]], site.source)
    ]
    return pl.concat(found).sort("record")


def as_kept(site: PipelineSite, rows: pl.DataFrame) -> pl.DataFrame:
    """Rejected rows of one file: record, reason, and `fields` where the table keeps all that the log said."""
    fields = pl.lit(None, pl.String) if site.privacy.hash_user_ids else pl.col("fields")
    return rows.select("record", "reason", fields=fields.alias("fields"))


def as_json_lines(rows: list[RawRow]) -> Iterator[str]:
    """A JSON object a row: its fields as in the log, and what is known about it under a key of ours."""
    for row in rows:
        if isinstance(row.fields, dict) and set(row.fields) != {"line"}:
            yield json.dumps({**row.fields, ABOUT: row.about}, ensure_ascii=False)
        else:
            yield json.dumps({ABOUT: row.about | {"unparsable": row.fields}}, ensure_ascii=False)


def as_separated(rows: list[RawRow], separator: str, *, guard_formulas: bool = False) -> Iterator[str]:
    """A header and a line a row; a row that did not fit its header has as many fields as it had."""

    def line(cells: list[Any]) -> str:
        texts = [json.dumps(cell) if isinstance(cell, dict | list) else cell for cell in cells]
        if guard_formulas:
            texts = [guard(text) if isinstance(text, str) else text for text in texts]
        return line_of(texts, separator)

    header = list(dict.fromkeys(name for row in rows if isinstance(row.fields, dict) for name in row.fields))
    yield line(header)
    for row in rows:
        yield line([row.fields.get(name) for name in header] if isinstance(row.fields, dict) else row.fields)


def line_of(cells: list[Any], separator: str) -> str:
    """One line of separated text."""
    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator="").writerow(cells)
    return text.getvalue()
