import gzip
import json
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import pipeline.readers
from pipeline.errors import ConfigurationError
from pipeline.odd_lines import OddLines
from pipeline.raw_columns import no_records
from pipeline.raw_log import read_raw_log
from pipeline.readers import GROUP, find_reader
from pipeline.settings import Source


def read_pairs(lines: pl.DataFrame) -> pl.DataFrame:
    """A reader as somebody outside might write it: `who>what@when`, a record a line."""
    parts = pl.col("line").str.extract_groups(r"^(?<who>.*)>(?<what>.*)@(?<when>\d+)$")
    is_odd = ~pl.col("line").str.contains(r"^.*>.*@\d+$")
    rows = lines.with_columns(
        parts.struct.unnest(), unparsable=pl.when(is_odd).then(pl.struct("line").struct.json_encode())
    )
    return rows.drop("line", "line_number")


def read_badly(lines: pl.DataFrame) -> pl.DataFrame:
    """A reader that is not written as it should be."""
    kind = lines["line"][0] if lines.height else ""
    if kind == "fail":
        raise KeyError("no such thing")
    return lines.select(
        "source_file",
        who=pl.lit(7.0) if kind == "float" else pl.lit(True) if kind == "bool" else pl.lit("ann"),
        what=pl.lit("x"),
        when=pl.lit(1700000000),
        unparsable=pl.when(pl.lit(kind in ("text", "deep"))).then(pl.lit("no json" if kind == "text" else "[" * 5000)),
    )


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages beside nightjar that offer readers: this module, and one that is broken."""
    points = [
        EntryPoint("pairs", f"{__name__}:read_pairs", GROUP),
        EntryPoint("bad", f"{__name__}:read_badly", GROUP),
        EntryPoint("broken", "no_such_package:read", GROUP),
    ]
    monkeypatch.setattr(pipeline.readers, "entry_points", lambda group: EntryPoints(points))


def read_all(paths: list[str], of: Source) -> pl.DataFrame:
    return pl.concat([no_records(of), *read_raw_log(paths, of)], how="diagonal")


def source(reader: str, **more: Any) -> Source:
    columns = {"user_id": "who", "item_id": "what", "occurred_at": "when"}
    return Source.model_validate({"events": "x", "reader": reader, "columns": columns} | more)


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return str(folder / name)


@pytest.mark.usefixtures("outside")
def test_a_reader_of_another_package_gives_records_like_those_of_any_log(tmp_path):
    first = write(tmp_path, "a.log.gz", "ann>x@1\n\nbob>y\nann>z@3\n")
    second = write(tmp_path, "b.anything", "eve>x@1")
    records = read_all([first, second, write(tmp_path, "empty", "")], source("pairs")).sort("source_file", "record")
    assert records.select("raw:who", "raw:what", "raw:when", "source_file", "record", "fields").rows() == [
        ("ann", "x", "1", first, 1, None),
        (None, None, None, first, 2, '{"line":"bob>y"}'),
        ("ann", "z", "3", first, 3, None),
        ("eve", "x", "1", second, 1, None),
    ]


def test_files_without_a_line_hold_no_records(tmp_path):
    assert read_all(
        [write(tmp_path, "a", ""), write(tmp_path, "b.gz", "\n\n")],
        source(
            "entree_chicago",
            columns={
                "user_id": "host",
                "item_id": "item",
                "occurred_at": "time",
            },
        ),
    ).is_empty()


@pytest.mark.usefixtures("outside")
def test_a_reader_that_gives_no_such_column_is_told_so(tmp_path):
    path = write(tmp_path, "a.log", "ann>x@1\n")
    with pytest.raises(ConfigurationError, match=r"a\.log has no column 'where' .*; it has who, what, when"):
        read_all([path], source("pairs", context=["where"]))


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize(
    ("kind", "who", "fields"),
    [
        ("float", "7", None),
        ("bool", None, None),
        ("text", None, {"line": "no json"}),
        ("deep", None, {"line": "[" * 5000}),
    ],
)
def test_whatever_a_reader_gives_is_a_record_or_a_rejected_row(tmp_path, kind, who, fields):
    row = read_all([write(tmp_path, "a.log", f"{kind}\n")], source("bad")).row(0, named=True)
    assert row["fault"] == (None if who else "unparsable_row")
    assert not who or row["raw:who"] == who
    assert fields is None or json.loads(row["fields"]) == fields


@pytest.mark.usefixtures("outside")
def test_a_reader_that_fails_is_named_with_the_file(tmp_path):
    with pytest.raises(ConfigurationError, match=r"reader 'bad' failed on .*a\.log with KeyError: 'no such thing'"):
        read_all([write(tmp_path, "a.log", "fail\n")], source("bad"))


@pytest.mark.usefixtures("outside")
def test_lines_are_numbered_with_the_blank_ones(tmp_path):
    lines = OddLines("a", source("pairs"), "pairs")
    seen: list[int] = []
    lines.reader = lambda frame: (seen.extend(frame["line_number"]), read_pairs(frame))[1]
    lines.parse(b"\n\nann>x@1\n\n  \nbob>y@2\n", is_end=False)
    lines.parse(b"\neve>z@3", is_end=True)
    assert seen == [3, 6, 8]


@pytest.mark.usefixtures("outside")
def test_an_unknown_or_broken_reader_is_named():
    with pytest.raises(ConfigurationError, match=r"no reader 'pears' .*known are bad, broken, entree_chicago, pairs"):
        find_reader("pears")
    with pytest.raises(
        ConfigurationError, match=r"'broken' \(no_such_package:read\) cannot be loaded: No module named"
    ):
        find_reader("broken")


@pytest.mark.parametrize("name", ["os:system", "pipeline.readers.entree_chicago:read_acts", "../evil"])
def test_a_site_file_cannot_name_code(name):
    with pytest.raises(ConfigurationError, match="there is no reader"):
        find_reader(name)
