import json
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


@pytest.mark.parametrize("odd", ["17", "L", "17LL", "17l", "-1L", "x7L", "٣L", ""])
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


TEXT = st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]), max_size=20)
FIELDS = st.lists(TEXT | st.from_regex(r"\A[0-9]{1,3}[L-T]\Z"), min_size=1, max_size=8)


@settings(max_examples=50, deadline=None)
@given(st.lists(FIELDS.map("\t".join), min_size=1, max_size=5))
def test_no_line_is_lost_and_every_row_is_an_act_or_says_that_it_is_none(lines):
    rows = read(*lines)
    per_line = dict(rows.group_by("line_number").len().rows())
    assert per_line == {n: max(1, len(text.split("\t")) - 4) for n, text in enumerate(lines, 1)}
    acts = rows.filter(pl.col("unparsable").is_null() & pl.col("place").is_not_null())
    assert acts.select(pl.all_horizontal(pl.col("item", "act").is_not_null())).to_series().all()
    assert rows.filter(pl.col("unparsable").is_not_null())["item"].is_null().all()
