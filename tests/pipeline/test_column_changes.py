import json
from datetime import date

import polars as pl
import pytest

from pipeline.column_changes import column_changes, odd_ids, tell_columns
from pipeline.settings import Source

DAYS = [date(2026, 3, day) for day in range(1, 6)]
FILES = {"delivery_date": pl.Date, "path": pl.String, "columns": pl.String}
SOURCE = Source.model_validate({"events": "x", "columns": {"user_id": "u", "item_id": "i", "occurred_at": "t"}})
PLAIN = {"u": "text", "i": "text", "t": "text"}


def files(*told: tuple[int, str, dict[str, str] | None]) -> pl.DataFrame:
    rows = [(DAYS[day - 1], path, columns and json.dumps(columns)) for day, path, columns in told]
    return pl.DataFrame(rows, schema=FILES, orient="row")


def test_each_new_missing_or_retyped_column_is_a_line():
    known = files((1, "s3://b/1.parquet", {"u": "String", "device": "String", "price": "String"}))
    new = files((2, "s3://b/2.parquet", {"price": "Int64", "u": "String", "ref": "String"}))
    assert column_changes(new, known) == [
        "2.parquet: column 'ref' is new",
        "2.parquet: column 'device' is missing",
        "2.parquet: column 'price' is now Int64, was String",
    ]


def test_the_first_delivery_and_columns_in_another_order_are_no_change():
    assert column_changes(files((1, "a", PLAIN)), files()) == []
    assert column_changes(files((2, "b", dict(reversed(PLAIN.items())))), files((1, "a", PLAIN))) == []


def test_files_without_columns_are_passed_over():
    known = files((1, "a", PLAIN), (2, "empty", None))
    assert column_changes(files((3, "b", PLAIN | {"x": "text"}), (3, "empty", None)), known) == ["b: column 'x' is new"]


def test_a_file_is_compared_with_the_delivery_before_its_own_and_new_ones_with_each_other():
    known = files((1, "a", PLAIN), (5, "e", PLAIN | {"late": "text"}))
    new = files((2, "b", PLAIN | {"x": "text"}), (3, "c", PLAIN | {"x": "text"}))
    assert column_changes(new, known) == ["b: column 'x' is new"]


def test_a_file_like_any_of_the_delivery_before_has_no_change():
    known = files((1, "app", PLAIN | {"os": "text"}), (1, "web", PLAIN | {"browser": "text"}))
    assert column_changes(files((2, "app", PLAIN | {"os": "text"})), known) == []


def test_a_file_delivered_again_is_compared_with_itself():
    known = files((1, "a", PLAIN), (2, "b", PLAIN | {"x": "text"}))
    assert column_changes(files((2, "b", PLAIN)), known) == ["b: column 'x' is missing"]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.csv", '\n"u",i,t,t\n1,2,3,4\n', dict.fromkeys(["u", "i", "t", "t_duplicated_0"], "text")),
        ("a.csv", "u,i,t", PLAIN),
        ("a.csv", "", {}),
        (
            "a.jsonl",
            'no\n{"u": null, "i": 5, "more": 1}\n{"u": "a", "t": 1.5}',
            {"u": "text", "i": "number", "t": "number"},
        ),
    ],
    ids=["csv", "header", "empty", "jsonl"],
)
def test_columns_of_text_are_told_from_its_beginning(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text)
    told = tell_columns(pl.DataFrame({"path": [str(tmp_path / name)]}), SOURCE)["columns"].item()
    assert json.loads(told or "{}") == expected


def test_parquet_columns_have_the_types_of_the_file(tmp_path):
    pl.DataFrame({"u": [1], "i": ["a"], "t": [1.5]}).write_parquet(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"no parquet")
    told = tell_columns(pl.DataFrame({"path": [str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")]}), SOURCE)
    assert told["columns"].to_list() == ['{"u": "Int64", "i": "String", "t": "Float64"}', None]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "u,i,t\n17850.0,a,1\n17851.0,b,1.0\n,c,1\n", "a.csv: ids in column 'u' look like 17850.0 or 1.8E+04"),
        ("a.csv", "u,i,t\n1,1.79E+04,1\n2,1.79E+04,1\n", "a.csv: ids in column 'i' look like 17850.0 or 1.8E+04"),
        ("a.jsonl", '{"u": "7.0", "i": "a", "t": 1}', "a.jsonl: ids in column 'u' look like 17850.0 or 1.8E+04"),
        ("a.jsonl", '{"u": {"id": 1}, "i": "a", "t": 1}', "a.jsonl: column 'u' holds values of the type object"),
        ("a.jsonl", '{"u": "a", "i": true, "t": 1}', "a.jsonl: column 'i' holds values of the type bool"),
        ("a.csv", "u,i,t\n17850,a,1.0\n17851,b,2.0\n17.5,b,2.0\n9.0,b,2\n", None),
        ("a.jsonl", '{"u": 7.0, "i": "a", "t": true}', None),
        ("a.csv", "u,i,t\n,,\n", None),
    ],
)
def test_a_column_whose_ids_a_tool_has_changed_or_that_holds_none_is_reported(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    lines = odd_ids(tell_columns(pl.DataFrame({"path": [str(tmp_path / name)]}), SOURCE), SOURCE)
    assert len(lines) == (said is not None)
    assert not said or lines[0].startswith(said)
