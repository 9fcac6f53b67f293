import gzip
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import pipeline.readers
from pipeline.errors import ConfigurationError
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


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages beside nightjar that offer readers: this module, and one that is broken."""
    points = [
        EntryPoint("pairs", f"{__name__}:read_pairs", GROUP),
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
def test_an_unknown_or_broken_reader_is_named():
    with pytest.raises(ConfigurationError, match=r"no reader 'pears' .*known are broken, entree_chicago, pairs"):
        find_reader("pears")
    with pytest.raises(
        ConfigurationError, match=r"'broken' \(no_such_package:read\) cannot be loaded: No module named"
    ):
        find_reader("broken")


@pytest.mark.parametrize("name", ["os:system", "pipeline.readers.entree_chicago:read_acts", "../evil"])
def test_a_site_file_cannot_name_code(name):
    with pytest.raises(ConfigurationError, match="there is no reader"):
        find_reader(name)
