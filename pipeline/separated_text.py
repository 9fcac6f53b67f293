"""Records of csv and tsv text, block by block.

Polars pads rows that are too short without a word, refuses a whole file for one row that is too long, and lets a
stray quote swallow what follows. So separators are counted first, in each record and outside of quotes, and records
that do not fit the header are taken out. A block with a misplaced quote is read record by record with the csv module.
"""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.raw_columns import Section, check_columns, fault_rows, raw_name, tell_apart

SEPARATORS = {"csv": ",", "tsv": "\t"}
NEWLINE, RETURN, QUOTE = 10, 13, 34
MOST_LINES_OF_A_RECORD = 100  # a quote that stays open for longer is a stray one
MOST_LETTERS_OF_JOINED_LINES = 2**20
csv.field_size_limit(2**31 - 1)

Positions = NDArray[np.int64]
WHITE = " \t\v\f\r"
"""A line of these alone is blank."""


@dataclass(frozen=True)
class Marks:
    """Where records and their fields end in a block of whole lines; what stands in quotes does not count."""

    line_ends: Positions
    separators: Positions

    @property
    def end(self) -> int:
        """Where the last whole record ends."""
        return int(self.line_ends[-1]) + 1 if len(self.line_ends) else 0


class SeparatedText:
    """A file's header, once it was seen, and what turns blocks of its text into records."""

    def __init__(self, path: str, source: Section, separator: str, names: list[str] | None = None) -> None:
        self.path, self.source, self.separator, self.names = path, source, separator, names
        self.header: list[str] = []

    def parse(self, text: bytes, is_end: bool) -> tuple[pl.DataFrame, bytes]:
        """The records of a text, numbered from 1, and what is left of it: the beginning of a record."""
        if is_end and text and not text.endswith(b"\n"):
            text += b"\n"
        cut = text.rfind(b"\n") + 1
        lines, rest = readable(text[:cut]), text[cut:]
        if b'"' not in lines:
            lines = without_empty_lines(white_lines_emptied(lines, self.separator))
        if not self.header:
            lines = self._take_header(lines)
        if not lines or not self.header:
            return pl.DataFrame(), rest
        marks = find_marks(lines, self.separator)
        if marks is not None:
            end = marks.end
            num_open = lines.count(b"\n", end)
            if num_open < MOST_LINES_OF_A_RECORD and not (num_open and is_end):
                records = self._split(lines[:end], marks, b'"' in lines)
                if records is not None:
                    return records, lines[end:] + rest
        records, left = self._split_slowly(lines, is_end)
        return records, left + rest

    def _is_blank(self, line: str) -> bool:
        """Whether a line has nothing but white space, which tabs are not where they part fields."""
        return not line.strip(WHITE.replace(self.separator, ""))

    def _take_header(self, lines: bytes) -> bytes:
        """Learn the header from the first line that is not blank; what follows it is left.

        Of a file whose names are given that line is a record; what it has beyond them are columns without a name.
        """
        text = lines.lstrip(b"\r\n")
        first, _, others = text.partition(b"\n")
        if first:
            names = split_fields(first.decode().rstrip("\r"), self.separator) or [first.decode()]
            if self.names:
                names = self.names + [f"column_{n + 1}" for n in range(len(self.names), len(names))]
            check_columns(self.path, names, self.source)
            self.header = tell_apart(names)
        return text if self.names else others

    def _split(self, lines: bytes, marks: Marks, has_quotes: bool) -> pl.DataFrame | None:
        """Records of well quoted lines; None if quotes must be looked at one by one."""
        if is_even(marks, len(self.header)):
            return self._columns(lines, len(marks.line_ends), has_quotes)
        letters = np.frombuffer(lines, np.uint8)
        starts = np.concatenate(([0], marks.line_ends[:-1] + 1))
        lengths = marks.line_ends + 1 - starts
        is_blank = lengths == 1
        num_separators = np.diff(np.searchsorted(marks.separators, marks.line_ends), prepend=0)
        fits = (num_separators == len(self.header) - 1) & ~is_blank
        bad = np.flatnonzero(~fits & ~is_blank)
        unfit = [lines[starts[n] : marks.line_ends[n]].decode() for n in bad]
        is_white = np.array([self._is_blank(text) for text in unfit], dtype=bool)
        is_blank[bad[is_white]] = True
        bad, unfit = bad[~is_white], [text for text in unfit if not self._is_blank(text)]
        if has_quotes and any("\n" in text for text in unfit):
            return None  # perhaps a stray quote joined them
        good = self._columns(letters[np.repeat(fits, lengths)].tobytes(), int(fits.sum()), has_quotes)
        if good is None:
            return None
        number = np.cumsum(~is_blank)
        rejected = [
            (int(number[n]), as_json(split_fields(text, self.separator))) for n, text in zip(bad, unfit, strict=True)
        ]
        return in_order(good.with_columns(record=pl.Series(number[fits], dtype=pl.Int64)), rejected)

    def _columns(self, lines: bytes, num_records: int, has_quotes: bool) -> pl.DataFrame | None:
        """Records that all fit the header."""
        names = [raw_name(name) for name in self.header]
        schema = dict.fromkeys(names, pl.String)
        if not num_records:
            return pl.DataFrame(schema=schema | {"record": pl.Int64})
        rows = pl.read_csv(
            lines,
            has_header=False,
            schema=schema,
            separator=self.separator,
            quote_char='"' if has_quotes else None,
        )
        return rows.with_columns(record=pl.int_range(1, num_records + 1)) if rows.height == num_records else None

    def _split_slowly(self, text: bytes, is_end: bool) -> tuple[pl.DataFrame, bytes]:
        """Records of lines with quotes that belong nowhere."""
        lines = text.decode().removesuffix("\n").split("\n")
        good: list[tuple[int | str | None, ...]] = []
        bad: list[tuple[int, str]] = []
        next_line = number = 0
        for fields, after in split_records(lines, self.separator, len(self.header), is_end):
            next_line = after
            if len(fields) != len(self.header) and self._is_blank(self.separator.join(fields)):
                continue
            number += 1
            if len(fields) == len(self.header):
                good.append((number, *(field or None for field in fields)))
            else:
                bad.append((number, as_json(fields)))
        schema = {"record": pl.Int64} | {raw_name(name): pl.String for name in self.header}
        rows = in_order(pl.DataFrame(good, schema=schema, orient="row"), bad)
        return rows, "".join(f"{line}\n" for line in lines[next_line:]).encode()


def readable(lines: bytes) -> bytes:
    """Lines as valid UTF-8 that end with \\n alone; what is no UTF-8 becomes U+FFFD."""
    if b"\r" in lines:
        lines = lines.replace(b"\r\n", b"\n")
    if lines.isascii():
        return lines
    try:
        lines.decode()
    except UnicodeDecodeError:
        return lines.decode(errors="replace").encode()
    return lines


def white_lines_emptied(lines: bytes, separator: str = "") -> bytes:
    """Lines without quotes, those of white space alone made empty; a separator is no white space."""
    white = WHITE.replace(separator, "").encode() if separator else WHITE.encode()
    if not any(lines.startswith(byte) or b"\n" + byte in lines for byte in (bytes([letter]) for letter in white)):
        return lines
    return re.sub(b"(?m)^[" + re.escape(white) + b"]+$", b"", lines)


def without_empty_lines(lines: bytes) -> bytes:
    """Whole lines without those that are only `\\n`. A field in quotes would lose its empty lines too."""
    if b"\n\n" not in lines and not lines.startswith(b"\n"):
        return lines
    _, is_empty = line_ends(lines)
    return np.frombuffer(lines, np.uint8)[~is_empty].tobytes()


def numbers_of_filled_lines(lines: bytes) -> Positions:
    """The numbers, from 1, of the lines that `without_empty_lines` keeps."""
    is_end, is_empty = line_ends(lines)
    return np.cumsum(is_end, dtype=np.int64)[is_end & ~is_empty]


def line_ends(lines: bytes) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which bytes of whole lines end a line, and which of these are all that their line has."""
    is_end = np.frombuffer(lines, np.uint8) == NEWLINE
    return is_end, is_end & np.concatenate(([True], is_end[:-1]))


def find_marks(lines: bytes, separator: str) -> Marks | None:
    """The marks of a block that begins with a record; None if a quote stands where none belongs."""
    letters = np.frombuffer(lines, np.uint8)
    line_ends, separators = np.flatnonzero(letters == NEWLINE), np.flatnonzero(letters == ord(separator))
    if b'"' not in lines:
        return Marks(line_ends, separators)
    quotes = np.flatnonzero(letters == QUOTE)
    if not is_well_quoted(letters, quotes, ord(separator)):
        return None
    outer = line_ends[np.searchsorted(quotes, line_ends) % 2 == 0]
    if np.diff(np.searchsorted(line_ends, outer), prepend=-1).max(initial=0) > MOST_LINES_OF_A_RECORD:
        return None
    last = outer[-1] if len(outer) else 0
    return Marks(outer, separators[(np.searchsorted(quotes, separators) % 2 == 0) & (separators < last)])


def is_well_quoted(letters: NDArray[np.uint8], quotes: Positions, separator: int) -> bool:
    """Whether quotes open and close at the edges of fields only, or stand for a quote by twos."""
    opening, closing = quotes[::2], quotes[1::2]
    before = letters[np.maximum(opening - 1, 0)]
    after = letters[np.minimum(closing + 1, len(letters) - 1)]
    opens_well = (opening == 0) | np.isin(before, (separator, NEWLINE))
    closes_well = np.isin(after, (separator, NEWLINE))
    doubled = opening[1:] == closing[: len(opening) - 1] + 1  # a closing quote and the opening one right after it
    opens_well[1:] |= doubled
    closes_well[: len(doubled)] |= doubled
    return bool(opens_well.all() and closes_well.all())


def is_even(marks: Marks, num_fields: int) -> bool:
    """Whether every record has the same number of fields, and more than one."""
    each = num_fields - 1
    if not each or len(marks.separators) != len(marks.line_ends) * each:
        return False
    by_line = marks.separators.reshape(-1, each)
    return bool((by_line[:, -1] < marks.line_ends).all() and (by_line[1:, 0] > marks.line_ends[:-1]).all())


def in_order(good: pl.DataFrame, bad: list[tuple[int, str]]) -> pl.DataFrame:
    """Good and unparsable records by their number."""
    if not bad:
        return good
    return pl.concat([good, fault_rows("unparsable_row", bad)], how="diagonal").sort("record")


def split_records(lines: list[str], separator: str, num_fields: int, is_end: bool) -> Iterator[tuple[list[str], int]]:
    """Each record's fields, and the number of the line after it; blank lines are no records.

    Stops before a record that may go on behind the last line.
    """
    start = 0
    while start < len(lines):
        found = read_record(lines, start, separator, num_fields, is_end)
        if found is None:
            return
        fields, num_lines = found
        start += num_lines
        if fields:
            yield fields, start


def read_record(
    lines: list[str], start: int, separator: str, num_fields: int, is_end: bool
) -> tuple[list[str], int] | None:
    """The fields of the record that begins at a line, and how many lines it takes; None if more lines must be seen.

    A stray quote would swallow what follows. So lines are joined only where they make a record that fits the header;
    else the first one stands alone, as a single field.
    """
    text = lines[start]
    fields = split_fields(text, separator)
    if fields is not None:
        return fields, 1
    for num_lines in range(2, MOST_LINES_OF_A_RECORD + 1):
        if start + num_lines > len(lines):
            return ([lines[start]], 1) if is_end else None
        text += "\n" + lines[start + num_lines - 1]
        if len(text) > MOST_LETTERS_OF_JOINED_LINES:
            break
        if '"' in lines[start + num_lines - 1] and split_fields(text, separator) is not None:
            joined = split_fields(text, separator, is_strict=True)
            return (joined, num_lines) if joined and len(joined) == num_fields else ([lines[start]], 1)
    return [lines[start]], 1


def split_fields(text: str, separator: str, is_strict: bool = False) -> list[str] | None:
    """The fields of a text; None where a quote is still open at its end, or, if strict, stands inside a field."""
    if '"' not in text:
        return text.split(separator) if text else []
    try:
        first, *more = csv.reader([text, "end"], delimiter=separator, strict=is_strict)
    except csv.Error:
        return None if is_strict else [text]
    return first if more else None


def as_json(fields: list[str] | None) -> str:
    """The fields of a record that does not fit the header."""
    return json.dumps(fields, ensure_ascii=False)
