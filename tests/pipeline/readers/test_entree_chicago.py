import json
from typing import Any

import polars as pl
import pytest

from pipeline.readers.entree_chicago import read_acts


def read(*lines: str) -> pl.DataFrame:
    numbered = {"source_file": "f", "line_number": range(1, len(lines) + 1), "line": lines}
    return read_acts(pl.DataFrame(numbered, schema_overrides={"line_number": pl.Int64}))


def line(*rated: str, start: str = "01/Feb/1997:10:20:30 ", host: str = "h.example", end: str = "17") -> str:
    return "\t".join([start, host, "0", *rated, end])


def test_each_rated_restaurant_of_a_session_is_a_row_in_the_order_of_the_line():
    rows = read(line("633N", "9L", "9L"), line("1P", start="01/Feb/1997:10:20:31 "))
    assert rows.drop("unparsable", "source_file").rows(named=True)[1] == {
        "host": "h.example",
        "session": "01/Feb/1997:10:20:30",
        "item": "0000009",
        "act": "L",
        "time": "01/Feb/1997:10:20:30.000001",
        "entry": "0",
        "end": "17",
        "line_number": 1,
        "place": 1,
    }
    assert rows.select("item", "act", "line_number", "place").rows() == [
        ("0000633", "N", 1, 0),
        ("0000009", "L", 1, 1),
        ("0000009", "L", 1, 2),
        ("0000001", "P", 2, 0),
    ]
    assert rows["time"].is_unique().all()
    assert rows["unparsable"].null_count() == 4


def test_spaces_around_a_field_do_not_count():
    assert read(line("      0L", host=" h ")).select("host", "item", "act").row(0) == ("h", "0000000", "L")


def test_a_session_that_rated_nothing_is_a_row_without_an_item():
    rows = read(line())
    assert rows.select("host", "item", "act", "end", "unparsable").rows() == [("h.example", None, None, "17", None)]


@pytest.mark.parametrize("odd", ["17", "L", "17LL", "17l", "-1L", "x7L", ""])
def test_a_field_that_is_no_rated_restaurant_is_unparsable_and_its_neighbours_are_not(odd):
    rows = read(line("5L", odd, "6L"))
    assert rows["item"].to_list()[::2] == ["0000005", "0000006"]
    bad: list[Any] = rows["unparsable"].to_list()
    assert [bad[0], bad[2]] == [None, None]
    assert json.loads(bad[1]) == {"line_number": 1, "line": line("5L", odd, "6L"), "rated": odd}


@pytest.mark.parametrize("short", ["x", "01/Feb/1997:10:20:30 \th", "01/Feb/1997:10:20:30 \th\t0"])
def test_a_line_with_too_few_fields_is_one_unparsable_row(short):
    rows = read(short)
    assert rows.height == 1
    assert json.loads(rows["unparsable"][0])["line"] == short


def test_a_session_without_a_host_has_no_id_either_so_that_strangers_are_not_one_visitor():
    assert read(line("5L", host=""))["session"].to_list() == [None]
