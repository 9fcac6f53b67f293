import gzip
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import json_lines, raw_bytes, raw_log, separated_text
from pipeline.errors import ConfigurationError
from pipeline.json_lines import in_fields, json_path
from pipeline.normalise import whole_row
from pipeline.raw_columns import no_records
from pipeline.raw_log import file_format, read_raw_log, small_blocks
from pipeline.settings import Source

COLUMNS = {"user_id": "u", "item_id": "i", "occurred_at": "t"}


def source(columns: dict[str, str] = COLUMNS, **more: Any) -> Source:
    return Source.model_validate({"events": "x", "columns": columns} | more)


def read(*paths: Path, of: Source | None = None) -> pl.DataFrame:
    of = of or source()
    frames = list(read_raw_log([str(path) for path in paths], of))
    return pl.concat(frames, how="diagonal") if frames else no_records(of)


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def triples(records: pl.DataFrame) -> list[tuple[Any, ...]]:
    return records.sort("source_file", "record").select("raw:u", "raw:i", "raw:t").rows()


def unparsable(records: pl.DataFrame) -> dict[int, Any]:
    bad = records.filter(pl.col("fault") == "unparsable_row")
    return {record: json.loads(fields) for record, fields in bad.select("record", "fields").rows()}


# --- formats


def pack(content: bytes, ending: str) -> bytes:
    if ending == ".gz":
        return gzip.compress(content)
    return pa.Codec("zstd").compress(content, asbytes=True) if ending == ".zst" else content


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("log.csv", "u,i,t\na,b,1\nc,,2\n"),
        ("log.tsv", "u\ti\tt\na\tb\t1\nc\t\t2\n"),
        ("log.jsonl", '{"u": "a", "i": "b", "t": 1}\n{"u": "c", "t": 2, "i": null}\n'),
        ("log.ndjson", '{"u": "a", "i": "b", "t": 1}\n{"u": "c", "t": 2}\n'),
    ],
)
def test_text_is_read_plain_or_packed(tmp_path, name, content, ending):
    path = write(tmp_path, name + ending, pack(content.encode(), ending))
    records = read(path)
    assert triples(records) == [("a", "b", "1"), ("c", None, "2")]
    assert records["record"].to_list() == [1, 2]
    assert records["source_file"].to_list() == [str(path)] * 2
    assert unparsable(records) == {}


def test_parquet_is_read_as_text_but_times_stay_times(tmp_path):
    times = pl.Series([0, None]).cast(pl.Datetime("ms", "UTC"))
    log = pl.DataFrame({"u": [1, 2], "i": ["a", None], "t": times, "n": [1.5, 2], "nested": [[1], [2]]})
    log.write_parquet(tmp_path / "a.parquet")
    records = read(tmp_path / "a.parquet")
    assert records.select("raw:u", "raw:i", "raw:n", "record").rows() == [("1", "a", "1.5", 1), ("2", None, "2.0", 2)]
    assert isinstance(records.schema["raw:t"], pl.Datetime)


def test_the_format_is_told_by_the_name():
    names = {
        "a.csv": "csv",
        "a.csv.gz": "csv",
        "2026.03.01.TSV.zst": "tsv",
        "a.ndjson": "jsonl",
        "a.parquet": "parquet",
    }
    assert {name: file_format(f"/x.csv/{name}") for name in names} == names
    with pytest.raises(ConfigurationError, match=r"cannot tell the format of /x\.csv/log\.txt; its name must end in"):
        file_format("/x.csv/log.txt")


def test_packed_and_plain_files_can_come_together(tmp_path):
    a = write(tmp_path, "1.csv", "u,i,t\na,b,1\n")
    b = write(tmp_path, "2.csv.gz", gzip.compress(b"t,u,i\n2,c,d\n"))
    c = write(tmp_path, "3.csv.zst", pack(b"u,i,t\ne,f,3\n", ".zst"))
    records = read(a, b, c)
    assert triples(records) == [("a", "b", "1"), ("c", "d", "2"), ("e", "f", "3")]
    assert records["record"].to_list() == [1, 1, 1]


def test_parquet_times_of_several_units_can_come_together(tmp_path):
    for unit in ("ms", "us", "ns"):
        log = pl.DataFrame({"u": ["a"], "i": ["b"], "t": pl.Series([1], dtype=pl.Datetime(unit, "Europe/Berlin"))})
        log.write_parquet(tmp_path / f"{unit}.parquet")
    records = read(*sorted(tmp_path.glob("*.parquet")))
    assert records["raw:t"].dt.epoch("us").to_list() == [1000, 0, 1]
    pl.DataFrame({"u": ["a"], "i": ["b"], "t": ["2026-03-01"]}).write_parquet(tmp_path / "text.parquet")
    frames = list(read_raw_log([str(path) for path in sorted(tmp_path.glob("*.parquet"))], source()))
    assert [frame.schema["raw:t"].is_temporal() for frame in frames] == [True, False, True]
    assert [frame.height for frame in frames] == [2, 1, 1]


def test_files_with_columns_in_another_order_can_come_together(tmp_path):
    a = write(tmp_path, "1.csv", "u,i,t\na,b,1\n")
    b = write(tmp_path, "2.csv", "t,extra,i,u\n2,x,d,c\n")
    pl.DataFrame({"u": ["a"], "i": ["b"], "t": ["1"]}).write_parquet(tmp_path / "1.parquet")
    pl.DataFrame({"extra": [1], "t": ["2"], "i": ["d"], "u": ["c"]}).write_parquet(tmp_path / "2.parquet")
    assert triples(read(a, b)) == [("a", "b", "1"), ("c", "d", "2")]
    assert triples(read(tmp_path / "1.parquet", tmp_path / "2.parquet")) == [("a", "b", "1"), ("c", "d", "2")]


# --- JSON Lines


def test_a_json_column_is_a_path(tmp_path):
    path = write(
        tmp_path, "a.jsonl", '{"user-id": "a", "context": {"page": {"id": 7}}, "at": [{"@t": 1.5}], "no": 1}\n'
    )
    columns = {"user_id": "user-id", "item_id": "context.page.id", "occurred_at": "at[0].@t"}
    row = read(path, of=source(columns)).row(0, named=True)
    assert [row["raw:user-id"], row["raw:context.page.id"], row["raw:at[0].@t"]] == ["a", "7", "1.5"]


@pytest.mark.parametrize("name", ['["a.b"].c', "['a.b'].c", '["a.b"]["c"]'])
def test_a_json_key_that_holds_a_dot_stands_in_brackets(tmp_path, name):
    path = write(tmp_path, "a.jsonl", '{"a.b": {"c": "x"}, "a": {"b": {"c": "other"}}, "i": "b", "t": 1}\n')
    records = read(path, of=source({"user_id": name, "item_id": "i", "occurred_at": "t"}))
    assert records[f"raw:{name}"].to_list() == ["x"]


@pytest.mark.parametrize("name", ["a..b", "a.", "[x]", 'a["b', "a[0]b"])
def test_what_is_no_path_into_json_is_refused(tmp_path, name):
    path = write(tmp_path, "a.jsonl", "{}\n")
    with pytest.raises(ConfigurationError, match="is no path into a JSON object; write keys with dots between them"):
        read(path, of=source({"user_id": name, "item_id": "i", "occurred_at": "t"}))


def ids_of(path: Path, column: str = "raw:u") -> list[str | None]:
    """The ids of a file, with None for each row whose ids cannot be read."""
    rows = read(path).select(pl.when(pl.col("fault").is_null()).then(column)).to_series()
    return rows.to_list()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1", "1"),
        ('"1"', "1"),
        ("1.0", "1"),
        ("1.000000000000000000000", "1"),
        ("-0.0", "0"),
        ("1.5e2", "150"),
        ("1E5", "100000"),
        ("999999999999999.0", "999999999999999"),
        ("1000000000000000.0", None),
        ("9007199254740993.0", None),
        ("99999999999999.02", None),
        ("9007199254740993", "9007199254740993"),
        ("18446744073709551615", "18446744073709551615"),
        ("123456789012345678901234567890", None),
        ("9" * 10_000, None),
        ("1.5", None),
        ("1.0000000000000000001", None),
        ("1.9999999999999999999", None),
        ("562949953421311.99", None),
        ("1e30", None),
        ("1e-999", None),
        ("-4.9e-325", None),
        ("0.0", "0"),
        ('"1e30"', "1e30"),
        ('"1.0"', "1.0"),
        ("true", None),
        ('"true"', "true"),
        ('["1"]', None),
        ('"[1]"', "[1]"),
        ('{"id": "1"}', None),
        ('"{"', "{"),
        ("NaN", None),
        ("-Infinity", None),
        ('"\\ud800"', None),
        ('"\\ud83d\\ude00"', "\U0001f600"),
    ],
)
def test_a_json_id_is_text_or_a_whole_number_read_digit_by_digit(tmp_path, value, expected):
    path = write(tmp_path, "a.jsonl", f'{{"u": {value}, "i": "b", "t": 1, "lat": 12.123456789012345}}\n')
    assert ids_of(path) == [expected]


NAN = float("nan")


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (
            pl.Series([1002.0, None, -3.0, 2.5, NAN, 2.0**53 - 1, 2.0**53]),
            ["1002", "", "-3", None, None, "9007199254740991", None],
        ),
        (pl.Series([1002.0, 2.0**24 - 1, 2.0**24], dtype=pl.Float32), ["1002", "16777215", None]),
        (pl.Series(["7.00", "7.50", None]).cast(pl.Decimal(10, 2)), ["7", None, ""]),
        (pl.Series(["9" * 30]).cast(pl.Decimal(38, 0)), ["9" * 30]),
        (pl.Series([True, False, None]), [None, None, ""]),
        (pl.Series([2**64 - 1], dtype=pl.UInt64), [str(2**64 - 1)]),
        (pl.Series(["a", "1.0", None], dtype=pl.Categorical), ["a", "1.0", ""]),
        (pl.Series([b"a", b"\xff", b"\xfe"]), ["a", None, None]),
    ],
    ids=lambda value: str(value.dtype) if isinstance(value, pl.Series) else "",
)
def test_an_id_of_a_typed_column_is_text_or_a_whole_number(tmp_path, ids, expected):
    """In `expected` None stands for a rejected row, "" for a row without an id."""
    pl.DataFrame({"u": ids, "i": "b", "t": 1}).write_parquet(tmp_path / "a.parquet")
    records = read(tmp_path / "a.parquet")
    kept = [None if fault else told or "" for told, fault in records.select("raw:u", "fault").rows()]
    assert kept == expected
    assert set(records["fault"].drop_nulls()) <= {"unparsable_row"}


@pytest.mark.parametrize("is_id", [False, True])
@pytest.mark.parametrize(
    "column",
    [
        pa.array([1, 2], pa.duration("us")),
        pa.array([b"1" * 16, None], pa.uuid()),
        pa.array([1, 2], pa.timestamp("us", "+05:30")),
        pa.array([2**63 - 1, -(2**63) + 1], pa.timestamp("us")),
        pa.array([2**31 - 1, -(2**31)], pa.int32()).view(pa.date32()),
        pa.array([Decimal(1), Decimal(2)], pa.decimal256(40, 0)),
        pa.array([b"a", b"\xff"]).dictionary_encode(),
        pa.array([1.0, 2.5], pa.float16()),
        pa.array([1, 2], pa.time64("ns")),
        pa.nulls(2),
    ],
    ids=lambda column: str(getattr(column, "type", column)),
)
def test_no_type_of_a_column_ends_a_delivery(tmp_path, column, is_id):
    mapped = {"u": column} if is_id else {"u": pa.array(["a", "b"]), "more": column}
    pq.write_table(pa.table(mapped | {"i": ["x", "y"], "t": [1, 2]}), tmp_path / "a.parquet")
    records = read(tmp_path / "a.parquet")
    assert records.height == 2
    assert json.loads(records.select(whole_row(records)).to_series()[0])["i"] == "x"
    if not is_id:
        assert records["fault"].to_list() == [None, None]


def test_an_id_deep_in_a_line_follows_the_same_rule(tmp_path):
    lines = ['{"a": [{"u": 1.0}]}', '{"a": [{"u": "1.0"}]}', '{"a": [{"u": [1]}]}', '{"a": [{"u": {"u": "x"}}]}']
    path = write(tmp_path, "a.jsonl", "\n".join(lines))
    records = read(path, of=source({"user_id": "a[0].u", "item_id": "i", "occurred_at": "t"}))
    assert records["fault"].to_list() == [None, None, "unparsable_row", "unparsable_row"]
    assert records["raw:a[0].u"].to_list()[:2] == ["1", "1.0"]


def test_a_rejected_row_is_found_by_the_id_that_its_number_is():
    rows = pl.DataFrame(
        {"fields": ['{"u": 1002.0}', '{"u": "1002.0"}', '{"u": " 1002"}', '{"u": true}', '["x"]', None]}
    )
    by_name, by_path = rows.select(value.alias(str(n)) for n, value in enumerate(in_fields("u")))
    assert by_name.to_list() == by_path.to_list() == ["1002", "1002.0", "1002", None, None, None]


def test_of_a_json_key_that_stands_twice_the_last_value_counts(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"u": "a", "i": "b", "t": 1, "u": "c"}\n')
    assert ids_of(path) == ["c"]


@pytest.mark.parametrize("depth", [200, 1000, 100_000, 1_000_000])
@pytest.mark.parametrize(
    ("before", "opening", "closing", "after"),
    [
        ("", "[", "", ""),
        ("", "[", "]", ""),
        ('{"u": "a", "x": ', "[", "]", ', "i": "b", "t": 1}'),
        ('{"u": "a", "x": ', '{"k":', "}", ', "i": "b", "t": 1}'),
        ("", '{"u":', "", ""),
    ],
)
def test_a_line_that_is_nested_too_deep_is_one_rejected_row(tmp_path, depth, before, opening, closing, after):
    good = '{"u": "a", "i": "b", "t": 1}'
    deep = before + opening * depth + ("1" if closing == "}" else "") + closing * depth + after
    path = write(tmp_path, "a.jsonl", f"{good}\n{deep}\n{good}\n")
    assert raw_log.raw_columns(str(path), source()) == {"u": "text", "i": "text", "t": "number"}
    records = read(path)
    assert records["fault"].to_list() == [None, "unparsable_row", None]
    assert unparsable(records) == {2: {"line": deep}}


def test_every_key_of_a_json_path_is_quoted():
    assert json_path("a-b.c[0].d e") == "$['a-b']['c'][0]['d e']"


def test_lines_that_are_no_json_object_are_unparsable_and_blank_lines_are_no_records(tmp_path):
    good = '{"u": "a", "i": "b", "t": 1}'
    path = write(tmp_path, "a.jsonl", f'{good}\n\n{{"u": "a"\r\n[1]\n"x"\n \n  {good}  \n')
    records = read(path)
    assert unparsable(records) == {2: {"line": '{"u": "a"'}, 3: {"line": "[1]"}, 4: {"line": '"x"'}}
    assert records.filter(pl.col("fault").is_null())["record"].to_list() == [1, 5]


def test_user_and_session_may_be_one_column(tmp_path):
    of = source({"user_id": "u", "session_id": "u", "item_id": "i", "occurred_at": "t"})
    path = write(tmp_path, "a.jsonl", '{"u": 1.0, "i": "b", "t": 1}')
    assert read(path, of=of)["raw:u"].to_list() == ["1"]


# --- blank and short lines

BLANKS = 3_000_000


@pytest.mark.parametrize(
    ("name", "blanks"),
    [("a.csv", ["  ", "\t", " ", "\t \t"]), ("a.tsv", ["  ", " "]), ("a.jsonl", ["  ", "\t", " "])],
)
@pytest.mark.parametrize("last", ["b", '"b"', '"b" x'], ids=["plain", "quoted", "stray quote"])
def test_lines_of_white_space_are_blank_lines(tmp_path, name, blanks, last):
    rows = [["a", "b", "1"], ["a", last, "2"]]
    if name == "a.jsonl":
        lines = [json.dumps(dict(zip("uit", fields, strict=True))) for fields in rows]
    else:
        separator = "\t" if name == "a.tsv" else ","
        lines = [separator.join(fields) for fields in [["u", "i", "t"], *rows]]
    text = "".join(f"{line}\n" + "".join(f"{blank}\n" for blank in blanks) for line in lines)
    records = read(write(tmp_path, name, text.encode()))
    assert records["record"].to_list() == [1, 2]
    assert records["fault"].is_null().all()


@pytest.mark.parametrize(
    ("name", "header", "row"),
    [
        ("a.csv.gz", "u,i,t\n", "a,b,1\n"),
        ("a.tsv.gz", "u\ti\tt\n", "a\tb\t1\n"),
        ("a.jsonl.gz", "", '{"u": "a", "i": "b", "t": 1}\n'),
    ],
)
@pytest.mark.parametrize("blank", ["\n", "\r\n", "  \n"])
def test_of_millions_of_blank_lines_only_the_rows_between_them_are_looked_at(
    tmp_path, monkeypatch, name, header, row, blank
):
    heights = []
    monkeypatch.setattr(separated_text, "find_marks", counted(separated_text.find_marks, heights))
    monkeypatch.setattr(json_lines, "as_lines", counted(json_lines.as_lines, heights))
    text = blank + header + blank * BLANKS + row + blank * BLANKS + row
    records = read(write(tmp_path, name, gzip.compress(text.encode(), 1)))
    assert triples(records) == [("a", "b", "1")] * 2
    assert records["record"].to_list() == [1, 2]
    assert sum(heights) < 100


def counted(function: Any, counts: list[int]) -> Any:
    """The function, keeping how many lines each text has that it is given."""

    def call(text: bytes, *more: Any) -> Any:
        counts.append(text.count(b"\n"))
        return function(text, *more)

    return call


def test_what_is_in_work_is_bounded_by_lines_as_well_as_by_bytes():
    block = b"x\n" * 5_000_000
    pieces = list(small_blocks(iter([block, b"y"])))
    assert b"".join(pieces) == block + b"y"
    assert max(piece.count(b"\n") for piece in pieces) <= raw_log.MOST_LINES_OF_A_BLOCK
    assert list(small_blocks(iter([b"a long line\n" * 1000]))) == [b"a long line\n" * 1000]


def test_blank_lines_in_quotes_stay(tmp_path):
    path = write(tmp_path, "a.csv", 'u,i,t\n\n\n"a\n\n\nb",x,1\n\n\nc,x,2\n')
    assert triples(read(path)) == [("a\n\n\nb", "x", "1"), ("c", "x", "2")]


# --- text that is not as it should be


@pytest.mark.parametrize(
    ("lines", "first"),
    [
        (['"a,1",b,1'], ("a,1", "b", "1")),
        (['"a ""x""",b,1'], ('a "x"', "b", "1")),
        (['"a', 'x",b,1'], ("a\nx", "b", "1")),
        (['"a', "", 'x",b,1'], ("a\n\nx", "b", "1")),
        (['a,say "b" now,1'], ("a", 'say "b" now', "1")),
        (['a"x,b,1'], ('a"x', "b", "1")),
        (['"a"x,b,1'], ("ax", "b", "1")),
        ([" a ,b,1"], (" a ", "b", "1")),
    ],
)
def test_quotes_hold_separators_quotes_and_line_breaks(tmp_path, lines, first):
    path = write(tmp_path, "a.csv", "\n".join(["u,i,t", *lines, "c,d,2", ""]))
    records = read(path)
    assert triples(records) == [first, ("c", "d", "2")]
    assert records.sort("record")["record"].to_list() == [1, 2]


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("a,b", ["a", "b"]),
        ("a,b,1,2", ["a", "b", "1", "2"]),
        ("a", ["a"]),
        ("a,b,", None),
        ('"a,b,1', ['"a,b,1']),
        ('a,b,"1', ['a,b,"1']),
        ('a,say "x, y" now,1', ["a", 'say "x', ' y" now', "1"]),
    ],
)
def test_a_row_that_does_not_fit_the_header_is_unparsable_and_its_neighbours_are_not(tmp_path, line, fields):
    path = write(tmp_path, "a.csv", f"u,i,t\na,b,1\n{line}\nc,d,2\n")
    records = read(path)
    assert unparsable(records) == ({2: fields} if fields else {})
    assert [record for record in triples(records) if record[2]] == [("a", "b", "1"), ("c", "d", "2")]
    assert records.sort("record")["record"].to_list() == [1, 2, 3]


def test_a_stray_quote_does_not_swallow_the_rest_of_the_file(tmp_path):
    rows = [f"user{n},item,{n}" for n in range(500)]
    path = write(tmp_path, "a.csv", "\n".join(["u,i,t", '"stray,item,0', *rows, '"two', 'lines",item,1', ""]))
    records = read(path)
    assert unparsable(records) == {1: ['"stray,item,0']}
    assert records.height == 502
    assert triples(records)[-1] == ("two\nlines", "item", "1")


@pytest.mark.parametrize("later", ['c,"d, e",2', 'c,"d",2', '"c",d,2', '"c","d, e","2"'])
def test_a_stray_quote_does_not_end_at_the_quotes_of_a_later_row(tmp_path, later):
    path = write(tmp_path, "a.csv", f'u,i,t\n"stray,item,0\na,b,1\n{later}\n')
    records = read(path)
    assert unparsable(records) == {1: ['"stray,item,0']}
    assert records.height == 3


def test_a_field_longer_than_the_csv_module_takes_is_unparsable(tmp_path):
    path = write(tmp_path, "a.csv", f"u,i,t\n{'x' * 200_000},1\na,b,1\n")
    assert list(unparsable(read(path))) == [1]


@pytest.mark.parametrize(
    "content",
    [
        "u,i,t\r\na,b,1\r\nc,d,2\r\n",
        "u,i,t\r\na,b,1\r\n\r\nc,d,2\r\n",
        "u,i,t\r\na,b,1\r\nbad\r\nc,d,2\r\n",
        "u,i,t\n\na,b,1\n\n\nc,d,2\n\n",
        "\n\nu,i,t\na,b,1\nc,d,2",
        "\ufeffu,i,t\na,b,1\nc,d,2\n",
        "\ufeffu,i,t\na,b,1\nbad\nc,d,2\n",
    ],
)
def test_line_ends_blank_lines_and_a_byte_order_mark_do_not_matter(tmp_path, content):
    records = read(write(tmp_path, "a.csv", content)).filter(pl.col("fault").is_null())
    assert triples(records) == [("a", "b", "1"), ("c", "d", "2")]


@pytest.mark.parametrize("ragged", ["", "bad\n", '"stray,b,1\n'])
def test_an_id_that_is_no_text_is_unparsable_and_other_letters_are_replaced(tmp_path, ragged):
    """Two ids that differ in unreadable letters only would become one."""
    text = "u,i,t,title\ncaf\xe9,b,1,x\ncafe,b,2,caf\xe9\n"
    path = write(tmp_path, "a.csv", text.encode("latin-1") + ragged.encode())
    records = read(path, of=source(context=["title"]))
    assert records.filter(pl.col("fault").is_null()).select("raw:u", "raw:title").rows() == [("cafe", "caf\ufffd")]
    first = records.row(0, named=True)
    assert (first["fault"], first["fields"], first["raw:u"]) == ("unparsable_row", None, "caf\ufffd")


def test_an_unreadable_id_in_json_is_unparsable_and_its_line_is_kept(tmp_path):
    path = write(
        tmp_path, "a.jsonl", '{"u": "caf\xe9", "i": "b", "t": 1}\n{"u": "a", "i": "b", "t": 1}'.encode("latin-1")
    )
    records = read(path)
    assert records["fault"].to_list() == ["unparsable_row", None]
    assert records["fields"][0] == '{"u": "caf\ufffd", "i": "b", "t": 1}'


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.jsonl", "a.csv.zst", "a.tsv.gz", "a.parquet"])
def test_a_file_without_a_byte_holds_no_records(tmp_path, name):
    records = read(write(tmp_path, name, b""))
    assert records.is_empty()
    assert {"raw:u", "raw:i", "raw:t", "source_file", "record", "fault", "fields"} <= set(records.columns)


@pytest.mark.parametrize("text", [b"", b"\n\n", b"u,i,t\n"])
def test_a_packed_nothing_blank_lines_or_a_header_alone_hold_no_records(tmp_path, text):
    assert read(write(tmp_path, "a.csv.gz", gzip.compress(text))).is_empty()


def test_a_file_without_content_does_not_hide_its_neighbours(tmp_path):
    empty = write(tmp_path, "1.csv", "")
    header = write(tmp_path, "2.csv", "u,i,t")
    full = write(tmp_path, "3.csv", "u,i,t\na,b,1\n")
    assert triples(read(empty, header, full)) == [("a", "b", "1")]


# --- damaged files


def cut_log(num_rows: int = 20_000) -> bytes:
    return b"u,i,t\n" + b"".join(b"a%d,b,%d\n" % (n, n * 7919) for n in range(num_rows))


def damage(records: pl.DataFrame) -> tuple[int, dict[str, Any]]:
    """Number and fields of the one record that stands for what a file holds no more."""
    fault = records.filter(pl.col("fault") == "truncated_file")
    assert fault.height == 1
    return fault["record"].item(), json.loads(fault["fields"].item())


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_whole_records_before_a_cut_count_and_half_a_record_does_not(tmp_path, name, ending):
    rows = [(f"u{n}", "i", str(n * 7919)) for n in range(20_000)]
    text = "u,i,t\n" + "".join(f"{','.join(row)}\n" for row in rows)
    if name == "a.jsonl":
        text = "".join(json.dumps(dict(zip("uit", row, strict=True))) + "\n" for row in rows)
    whole = pack(text.encode(), ending)
    records = read(write(tmp_path, name + ending, whole[: len(whole) // 2]))
    found = triples(records.filter(pl.col("fault").is_null()))
    assert 1000 < len(found) < 20_000
    assert found == rows[: len(found)]
    number, fields = damage(records)
    assert number == len(found) + 1
    assert fields["error"] == "it was cut: the archive has no end"
    readable = text.encode()[: fields["readable_bytes"]].decode()
    assert readable.count("\n") == len(found) + (name == "a.csv")


def test_a_changed_archive_gives_nothing_that_no_checksum_vouches_for(tmp_path):
    """A flipped bit changes letters long before the checksum at the end tells."""
    head, tail = gzip.compress(b"u,i,t\nfirst,b,1\n"), bytearray(gzip.compress(cut_log()[6:]))
    tail[len(tail) // 2] ^= 1
    records = read(write(tmp_path, "a.csv.gz", head + bytes(tail)))
    assert triples(records.filter(pl.col("fault").is_null())) == [("first", "b", "1")]
    number, fields = damage(records)
    assert (number, fields["readable_bytes"]) == (2, 16)
    assert fields["error"].startswith("its bytes were changed: ")


def test_members_one_after_the_other_and_zeros_behind_them_are_one_archive(tmp_path):
    packed = gzip.compress(b"u,i,t\na,b,") + gzip.compress(b"1\nc,d,2\n") + b"\0" * 512
    assert triples(read(write(tmp_path, "a.csv.gz", packed))) == [("a", "b", "1"), ("c", "d", "2")]


def test_letters_behind_an_archive_are_told_and_the_archive_counts(tmp_path):
    records = read(write(tmp_path, "a.csv.gz", gzip.compress(b"u,i,t\na,b,1\n") + b"<html>oops"))
    assert triples(records)[0] == ("a", "b", "1")
    assert damage(records)[0] == 2


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.zst"])
@pytest.mark.parametrize(
    "content", [b"\x1f", b"(", b"(\xb5/", b"\x00\x01\x02\x03\x04", b"\xfe\xfdabc", b"PK\x03\x04...."]
)
def test_a_file_that_says_it_is_packed_and_is_not_is_one_rejected_record(tmp_path, name, content):
    records = read(write(tmp_path, name, content))
    assert damage(records)[0] == records.height == 1
    assert damage(records)[1]["readable_bytes"] == 0


def test_text_that_was_unpacked_on_the_way_and_kept_its_name_is_read(tmp_path):
    assert triples(read(write(tmp_path, "a.csv.gz", "u,i,t\na,b,1\n"))) == [("a", "b", "1")]


def test_a_damaged_file_does_not_hide_its_neighbours_and_is_told_aloud(tmp_path, caplog):
    whole = gzip.compress(cut_log())
    paths = [
        write(tmp_path, "1.csv", "u,i,t\na,b,1\n"),
        write(tmp_path, "2.csv.gz", whole[: len(whole) // 2]),
        write(tmp_path, "3.parquet", b"no parquet"),
        write(tmp_path, "4.csv", "u,i,t\nc,d,2\n"),
    ]
    records = read(*paths[:2], *paths[3:])
    assert triples(records)[:1] + triples(records)[-1:] == [("a", "b", "1"), ("c", "d", "2")]
    assert damage(records)[0] == records.height - 2
    assert damage(read(paths[2]))[0] == 1
    assert [message.split(":")[0] for message in caplog.messages] == [f"{path} is damaged" for path in paths[1:3]]


def test_a_parquet_file_is_read_up_to_its_damage(tmp_path):
    log = pl.DataFrame({"u": ["a", "b"], "i": ["x", "y"], "t": ["1", "2"]})
    path = tmp_path / "a.parquet"
    log.write_parquet(path)
    for cut in (0, 3, 4, path.stat().st_size - 1):
        records = read(write(tmp_path, "b.parquet", path.read_bytes()[:cut]))
        assert records.height == (damage(records)[0] if cut else 0)


def test_a_file_that_cannot_be_opened_is_refused_by_name(tmp_path):
    (tmp_path / "a.csv").mkdir()
    for path in (tmp_path / "a.csv", tmp_path / "gone.csv.gz", tmp_path / "gone.parquet"):
        with pytest.raises(ConfigurationError, match=rf"cannot read .*{path.name}: .* take it out of source\.events"):
            read(path)


# --- long records, other line ends, other encodings


@pytest.mark.parametrize("quote", ["", '"'])
def test_a_line_of_ten_megabytes_is_a_record(tmp_path, quote):
    long = "x" * 10_000_000
    records = read(write(tmp_path, "a.csv", f"u,i,t\na,b,1\n{quote}{long}{quote},b,2\nc,d,3\n"))
    assert records["raw:u"].str.len_bytes().to_list() == [1, len(long), 1]


def test_after_a_record_that_is_too_long_nothing_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(raw_bytes, "BLOCK_BYTES", 64)
    monkeypatch.setattr(raw_log, "MOST_BYTES_OF_A_RECORD", 1000)
    records = read(write(tmp_path, "a.csv", f"u,i,t\na,b,1\n{'x' * 2000},b,2\nc,d,3\n"))
    assert triples(records)[0] == ("a", "b", "1")
    assert damage(records)[0] == records.height == 2


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_text_of_other_systems_is_read(tmp_path, encoding, line_end):
    text = line_end.join(["u,i,t", "é,b,1", "c,d,2", ""])
    assert triples(read(write(tmp_path, "a.csv", text.encode(encoding)))) == [("é", "b", "1"), ("c", "d", "2")]


def test_a_long_archive_is_unpacked_twice_and_read_the_same(tmp_path, monkeypatch):
    packed = gzip.compress(cut_log())
    whole = read(write(tmp_path, "a.csv.gz", packed))
    monkeypatch.setattr(raw_bytes, "BLOCK_BYTES", 10_000)
    assert len(cut_log()) > raw_bytes.HELD_BLOCKS * 10_000
    assert read(tmp_path / "a.csv.gz").equals(whole)
    cut = read(write(tmp_path, "a.csv.gz", packed[: len(packed) // 2]))
    assert damage(cut)[0] == cut.height < whole.height


# --- columns


@pytest.mark.parametrize("ragged", ["", "bad\n"])
def test_a_missing_column_is_named_with_the_nearest_one(tmp_path, ragged):
    path = write(tmp_path, "a.csv", f"user,item_id,time\na,b,1\n{ragged}")
    with pytest.raises(
        ConfigurationError, match=r"a\.csv has no column 'item' \(did you mean 'item_id'\?\); it has user"
    ):
        read(path, of=source({"user_id": "user", "item_id": "item", "occurred_at": "time"}))
    pl.DataFrame({"user": ["a"]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(ConfigurationError, match=r"a\.parquet has no column 'item'; it has user\. Mend `source`"):
        read(tmp_path / "a.parquet", of=source({"user_id": "user", "item_id": "item", "occurred_at": "time"}))


def test_every_configured_column_must_be_there(tmp_path):
    path = write(tmp_path, "a.csv", "u,i,t\na,b,1\n")
    rule = {"reason": "unwanted", "column": "device", "one_of": ["tv"]}
    for more in ({"context": ["device"]}, {"event_type": {"column": "device"}}, {"exclude": [rule]}):
        with pytest.raises(ConfigurationError, match="no column 'device'"):
            read(path, of=source(**more))


NAMES = ["user_id", "record", "source_file", "fault", "delivery_date", "reason", "event_id"]


@pytest.mark.parametrize("ragged", ["", "bad\n"])
def test_columns_of_the_log_may_be_named_like_ours(tmp_path, ragged):
    path = write(tmp_path, "a.csv", f"{','.join(NAMES)}\n{','.join(NAMES)}\n{ragged}")
    pl.DataFrame({name: [name] for name in NAMES}).write_parquet(tmp_path / "a.parquet")
    of = source({"user_id": "user_id", "item_id": "record", "occurred_at": "source_file"})
    for each in (path, tmp_path / "a.parquet"):
        row = read(each, of=of).sort("record").row(0, named=True)
        assert [row[f"raw:{name}"] for name in NAMES] == NAMES
        assert (row["record"], row["source_file"], row["fault"]) == (1, str(each), None)


@pytest.mark.parametrize("ragged", ["", "bad\n"])
def test_of_columns_with_one_name_the_first_counts(tmp_path, ragged):
    path = write(tmp_path, "a.csv", f"u,i,t,t\na,b,1,2\n{ragged}")
    assert triples(read(path))[0] == ("a", "b", "1")


# --- a law

FIELD = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from(',"\n'), max_size=8)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(FIELD, FIELD, FIELD), max_size=6), is_ragged=st.booleans())
def test_whatever_is_quoted_rightly_is_read_back(tmp_path, rows, is_ragged):
    quoted = [",".join(f'"{field.replace(chr(34), chr(34) * 2)}"' for field in row) for row in rows]
    path = write(tmp_path, "law.csv", "\n".join(["u,i,t", *quoted, *(["bad"] if is_ragged else []), ""]))
    records = read(path)
    assert records.height == len(rows) + is_ragged
    found = [tuple(field or "" for field in row) for row in triples(records)][: len(rows)]
    assert found == rows
