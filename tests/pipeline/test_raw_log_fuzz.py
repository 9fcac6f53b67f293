"""Whatever lies in a raw file: never a traceback, never a silent drop, never an event that was not in the log."""

import csv
import gzip
import io
import itertools
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import zstandard
from hypothesis import strategies as st

from pipeline import raw_bytes
from pipeline.errors import NightjarError
from pipeline.raw_columns import no_records
from pipeline.raw_log import raw_columns, read_raw_log
from pipeline.settings import Source

SOURCE = Source.model_validate({"events": "x", "columns": {"user_id": "u", "item_id": "i", "occurred_at": "t"}})
HEADER = "u,i,t"
Row = tuple[str, ...]
depths = pytest.mark.parametrize(
    "num_examples", [pytest.param(40, id="quick"), pytest.param(5000, id="deep", marks=pytest.mark.slow)]
)


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., pl.DataFrame]:
    """Write bytes and read them back as records, in blocks of so many bytes."""

    def write_and_read(name: str, content: bytes, block: int = 2**20, source: Source = SOURCE) -> pl.DataFrame:
        monkeypatch.setattr(raw_bytes, "BLOCK_BYTES", block)
        path = tmp_path / name
        path.write_bytes(content)
        raw_columns(str(path), source)
        frames = [no_records(source), *read_raw_log([str(path)], source)]
        records = pl.concat(frames, how="diagonal_relaxed").sort("record")
        assert records["record"].to_list() == list(range(1, records.height + 1))
        return records

    return write_and_read


def good(records: pl.DataFrame) -> list[tuple[Any, ...]]:
    return records.filter(pl.col("fault").is_null()).select("raw:u", "raw:i", "raw:t").rows()


def faults(records: pl.DataFrame) -> list[str]:
    return records["fault"].drop_nulls().to_list()


def pack(content: bytes, ending: str) -> bytes:
    if ending == ".zst":
        return zstandard.ZstdCompressor(write_checksum=True).compress(content)
    return gzip.compress(content, mtime=0) if ending == ".gz" else content


LETTER = st.sampled_from("ab,\"\n\r\té\0 ;'\\𝄞\u2028\ufeff") | st.characters(
    exclude_categories=["Cs"], exclude_characters="\ufffd"
)
FIELD = st.text(LETTER, max_size=6) | st.sampled_from(["", "x", '"', '""', "\n", "user-1", "\x01", "NA", "null"])
ROWS = st.lists(st.tuples(FIELD, FIELD, FIELD), max_size=8)
BLOCK = st.sampled_from([5, 16, 64, 2**20])
ENDING = st.sampled_from(["", ".gz", ".zst"])
SMALL = st.text(st.sampled_from('aab,,"\n\n\ré \0'), max_size=60)


def told(rows: list[Row]) -> list[tuple[str | None, ...]]:
    """Rows as they come out: empty text is missing; the two letters that end a line are one."""
    return [tuple(field.replace("\r\n", "\n") or None for field in row) for row in rows]


@depths
def test_rows_written_by_the_csv_module_are_read_back(read, num_examples, explore):
    def law(rows: list[Row], all_quoted: bool, line_end: str, block: int, ending: str, encoding: str) -> None:
        if not all_quoted:  # the csv module leaves \r bare where lines end with \n: nobody can tell it from a line end
            rows = [tuple(field.replace("\r", "") for field in row) for row in rows]
        rows = [row for row in rows if any(row)]
        text = io.StringIO()
        csv.writer(text, quoting=csv.QUOTE_ALL if all_quoted else csv.QUOTE_MINIMAL, lineterminator=line_end).writerows(
            [HEADER.split(","), *rows]
        )
        records = read(f"a.csv{ending}", pack(text.getvalue().encode(encoding), ending), block)
        assert faults(records) == []
        assert [tuple(cell or None for cell in row) for row in good(records)] == told(rows)

    explore(
        num_examples,
        law,
        rows=ROWS,
        all_quoted=st.booleans(),
        line_end=st.sampled_from(["\n", "\r\n"]),
        block=BLOCK,
        ending=ENDING,
        encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    )


def letters(text: str) -> str:
    """A text without what separates its fields."""
    return "".join(letter for letter in text if letter not in '",\r\n')


def readings(lines: list[str]) -> set[Row]:
    """Every record that a reader of csv may see in neighbouring lines."""
    found = set()
    for start, end in itertools.combinations(range(len(lines) + 1), 2):
        text = "\n".join(lines[start:end])
        if '"' not in text:
            found.add(tuple(text.split(",")))
        else:
            parsed = list(csv.reader(io.StringIO(text.replace("\r", "\x1a"), newline="")))
            found |= {tuple(field.replace("\x1a", "\r") for field in parsed[0])} if len(parsed) == 1 else set()
    return found


@depths
def test_of_any_text_no_letter_is_lost_and_no_record_invented(read, num_examples, explore):
    def law(body: str, block: int, ending: str) -> None:
        records = read(f"a.csv{ending}", pack(f"{HEADER}\n{body}".encode(), ending), block)
        fields = records.select("raw:u", "raw:i", "raw:t", "fault", "fields").rows()
        assert set(faults(records)) <= {"unparsable_row"}
        told = [json.loads(row[4]) if row[3] else [cell or "" for cell in row[:3]] for row in fields]
        assert letters("".join(itertools.chain.from_iterable(told))) == letters(body)
        lines = body.replace("\r\n", "\n").removesuffix("\r").split("\n")
        found = [tuple((cell or "").rstrip("\r") for cell in row) for row in good(records)]
        seen = {tuple(cell.rstrip("\r") for cell in row) for row in (readings(lines) if found else ())}
        assert set(found) <= seen

    explore(num_examples, law, body=SMALL, block=BLOCK, ending=ENDING)


@depths
def test_any_bytes_give_records_or_an_error_that_says_what_to_do(read, num_examples, explore):
    names = st.sampled_from(["a.csv", "a.tsv.gz", "a.jsonl", "a.jsonl.zst", "a.csv.zst", "a.parquet", "a.csv.gz"])
    heads = st.sampled_from(
        [b"", b"u,i,t\n", b"\xff\xfe", b"\xef\xbb\xbf", b"\x1f\x8b\x08", b"(\xb5/\xfd", b"PAR1", b'{"u":']
    )

    def law(name: str, head: bytes, body: bytes, block: int) -> None:
        try:
            records = read(name, head + body, block)
        except NightjarError as error:
            told = str(error)
        else:
            told = f"a.: {records.height}"
            assert set(faults(records)) <= {"unparsable_row", "truncated_file"}
        assert "a." in told
        assert len(told) < 5000

    explore(num_examples, law, name=names, head=heads, body=st.binary(max_size=80), block=BLOCK)


LOG = [(f"user-{n}", f"item-{n * 7919 % 101}", str(1000 + n)) for n in range(60)]
CSV = "\n".join([HEADER, *(",".join(row) for row in LOG), ""]).encode()
JSONL = "".join(json.dumps(dict(zip("uit", row, strict=True))) + "\n" for row in LOG).encode()


@depths
def test_an_archive_cut_at_any_byte_gives_the_rows_before_the_cut(read, num_examples, explore):
    def law(name: str, ending: str, at: float, block: int) -> None:
        whole = pack(CSV if name == "a.csv" else JSONL, ending)
        cut = int(at * len(whole))
        records = read(name + ending, whole[:cut], block)
        assert good(records) == LOG[: len(good(records))]
        assert faults(records) == ([] if cut in (0, len(whole)) else ["truncated_file"])

    name, ending = st.sampled_from(["a.csv", "a.jsonl"]), st.sampled_from([".gz", ".zst"])
    explore(num_examples, law, name=name, ending=ending, at=st.floats(0, 1), block=st.sampled_from([100, 2**20]))


@depths
def test_an_archive_with_a_changed_byte_gives_no_row_that_was_not_written(read, num_examples, explore):
    def law(ending: str, at: float, flip: int, num_members: int, block: int) -> None:
        size = -(-len(CSV) // num_members)
        packed = bytearray(b"".join(pack(CSV[n : n + size], ending) for n in range(0, len(CSV), size)))
        packed[int(at * len(packed))] ^= flip
        try:
            records = read(f"a.csv{ending}", bytes(packed), block)
        except NightjarError:  # its first bytes now are text, and no header
            return
        if "it was cut" in (records["fields"].drop_nulls().to_list() or [""])[-1]:
            return  # a change that lets the archive look cut cannot be told from a cut
        assert good(records) == LOG[: len(good(records))]
        assert len(good(records)) == len(LOG) or faults(records) == ["truncated_file"]

    explore(
        num_examples,
        law,
        ending=st.sampled_from([".gz", ".zst"]),
        at=st.floats(0, 1, exclude_max=True),
        flip=st.integers(1, 255),
        num_members=st.integers(1, 3),
        block=st.sampled_from([100, 2**20]),
    )


VALUE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    FIELD,
    st.lists(st.integers(0, 9), max_size=2),
    st.dictionaries(FIELD, st.integers(0, 9), max_size=2),
)


def json_text(value: Any) -> str | None:
    """A value as it is told in a column of text, numbers aside."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def is_id(value: Any) -> bool:
    """Whether a JSON value may say who or what: text, an integer, a float that is one, or nothing."""
    if isinstance(value, float):
        return value.is_integer() and abs(value) < 10**15
    return value is None or isinstance(value, str) or type(value) is int


def is_same(cell: str | None, value: Any) -> bool:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return cell is not None and float(cell) == pytest.approx(value, rel=1e-15)
    if isinstance(value, list | dict):
        return cell is not None and json.loads(cell) == value
    return cell == json_text(value)


@depths
def test_json_objects_are_read_back(read, num_examples, explore):
    def law(rows: list[tuple[Any, Any, Any]], is_ascii: bool, block: int) -> None:
        text = "".join(json.dumps(dict(zip("uit", row, strict=True)), ensure_ascii=is_ascii) + "\n" for row in rows)
        records = read("a.jsonl", text.encode(), block)
        found = records.select("raw:u", "raw:i", "raw:t").rows()
        assert len(found) == len(rows)
        faults = [fault is not None for fault in records["fault"]]
        assert faults == [not (is_id(u) and is_id(i)) for u, i, _ in rows]
        odd = [
            (cell, value)
            for row, values in zip(found, rows, strict=True)
            for cell, value in zip(row, values, strict=True)
            if not is_same(cell, value)
        ]
        assert odd == []

    explore(
        num_examples,
        law,
        rows=st.lists(st.tuples(VALUE, VALUE, VALUE), max_size=5),
        is_ascii=st.booleans(),
        block=BLOCK,
    )


PIECE = st.sampled_from(
    [
        '{"u":',
        '"a"',
        "1",
        "}",
        ",",
        '"i":',
        "[",
        "]",
        "\n",
        " ",
        "1e30",
        '"',
        "NaN",
        "12345678901234567890123",
        "\x01",
        "é",
        "\\",
        "\\ud800",
        '{"u": "a", "i": "b", "t": 1}\n',
        ".0",
        "e1",
        "true",
        '"u":',
    ]
)


HUGE = st.sampled_from(
    ["[" * 130, "]" * 130, "[" * 2000, '{"i":' * 200, "9" * 400, "9" * 10_000, "0." + "0" * 5000 + "1", "Infinity"]
)


@depths
def test_any_lines_of_json_are_read_rightly_or_kept_whole(read, num_examples, explore):
    def law(pieces: list[str], block: int) -> None:
        text = "".join(pieces)
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        records = read("a.jsonl", text.encode(), block)
        assert records.height == len(lines)
        for line, row in zip(lines, records.rows(named=True), strict=True):
            kept = row["fields"]
            assert line in (kept, json.loads(kept).get("line") if row["fault"] else None)
            if not row["fault"]:
                value = json.loads(line, parse_float=Decimal, parse_int=Decimal)
                assert [row[f"raw:{name}"] is None for name in "uit"] == [value.get(name) is None for name in "uit"]
                assert all(Decimal(row[f"raw:{n}"]) == value[n] for n in "ui" if isinstance(value.get(n), Decimal))

    explore(num_examples, law, pieces=st.lists(PIECE, max_size=25), block=BLOCK)
    explore(num_examples, law, pieces=st.lists(PIECE | HUGE, max_size=10), block=st.just(2**20))


@depths
def test_a_damaged_parquet_file_gives_no_row_beyond_its_damage(read, tmp_path, num_examples, explore):
    log = pl.DataFrame(LOG, schema=["u", "i", "t"], orient="row")
    log.write_parquet(tmp_path / "whole.parquet", row_group_size=20)
    whole = (tmp_path / "whole.parquet").read_bytes()

    def law(at: float, is_cut: bool) -> None:
        place = int(at * len(whole))
        content = bytearray(whole[:place] if is_cut else whole)
        if not is_cut:
            content[place] ^= 0x55
        try:
            records = read("a.parquet", bytes(content))
        except NightjarError:  # a changed name of a column
            return
        assert set(faults(records)) <= {"truncated_file", "unparsable_row"}
        assert not is_cut or good(records) == []

    explore(num_examples, law, at=st.floats(0, 1, exclude_max=True), is_cut=st.booleans())
