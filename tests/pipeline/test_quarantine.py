"""Rejected rows come back as they were delivered, and go in again once they are mended: the loop, end to end."""

import csv
import json
import re
from datetime import date

import polars as pl
import pytest

from pipeline.errors import ConfigurationError
from pipeline.quarantine import as_json_lines, as_separated, raw_rows, rejected_rows
from pipeline.tables import FILES, events_table

DAY_1 = date(2026, 3, 1)
GOOD = "ann,,x,2026-03-01T10:00:00Z,view"
BAD_TIME = 'bo,,"with, comma",2026-03-01 at ten,view'
TORN = "cy,,x"


@pytest.fixture
def delivered(make_small):
    small = make_small()
    small.deliver("2026-03-01", GOOD, BAD_TIME, TORN)
    small.ingest(DAY_1)
    return small


def handed_back(small, reason: str | None = None, day: date = DAY_1):
    rows, _ = raw_rows(small.site, small.store, rejected_rows(small.store, day, reason))
    return rows


def test_rows_are_found_by_day_and_reason(delivered):
    assert rejected_rows(delivered.store, DAY_1, None)["record"].to_list() == [2, 3]
    assert rejected_rows(delivered.store, DAY_1, "bad_time")["record"].to_list() == [2]
    with pytest.raises(ConfigurationError, match="'bad_tim'; there are bad_time, unparsable_row"):
        rejected_rows(delivered.store, DAY_1, "bad_tim")
    with pytest.raises(ConfigurationError, match="no row was rejected on that day"):
        rejected_rows(delivered.store, date(2026, 3, 2), "bad_time")
    assert rejected_rows(delivered.store, date(2026, 3, 2), None).is_empty()


def test_a_csv_row_comes_back_as_csv(delivered):
    lines = list(as_separated(handed_back(delivered), ","))
    assert lines == ["user,session,item,time,type", BAD_TIME, TORN]
    assert list(as_separated(handed_back(delivered, "bad_time"), "\t"))[1].split("\t")[2] == "with, comma"


def test_a_json_line_says_where_a_row_came_from_and_why_it_was_rejected(delivered):
    bad_time, torn = map(json.loads, as_json_lines(handed_back(delivered)))
    about = {"file": str(delivered.home / "raw/events-2026-03-01.csv"), "record": 2, "reason": "bad_time"}
    assert bad_time.pop("nightjar") == about
    assert bad_time == dict(
        zip(["user", "session", "item", "time", "type"], next(csv.reader([BAD_TIME])), strict=True)
    ) | {"session": None}
    assert torn == {"nightjar": about | {"record": 3, "reason": "unparsable_row", "unparsable": ["cy", "", "x"]}}


def test_mended_rows_in_a_further_file_become_events_and_nothing_counts_twice(delivered):
    header, *lines = as_separated(handed_back(delivered, "bad_time"), ",")
    mended = [line.replace(" at ten", "T10:00:00Z") for line in lines]
    delivered.deliver("2026-03-01-mended", *mended, GOOD, header=header)
    counts = delivered.ingest(DAY_1)
    assert counts == {
        "files": 2,
        "rows_read": 5,
        "events": 2,
        "duplicates": 1,
        "rejected": {"bad_time": 1, "unparsable_row": 1},
    }
    assert sorted(delivered.events["item_id"]) == ["with, comma", "x"]
    again = delivered.versions()
    delivered.ingest(DAY_1)
    assert delivered.versions() == again


def test_mended_in_place_the_row_is_rejected_no_more(delivered):
    delivered.deliver("2026-03-01", GOOD, BAD_TIME.replace(" at ten", "T10:00:00Z"), TORN + ",2026-03-01,view")
    counts = delivered.ingest(DAY_1)
    assert (counts["rows_read"], counts["events"], counts["rejected"]) == (3, 3, {})
    assert delivered.rejected.is_empty()


@pytest.fixture
def json_site(make_small):
    columns = {"user_id": "user.id", "item_id": "item", "occurred_at": "at"}
    return make_small(source={"events": "raw/{date}/*.jsonl", "columns": columns, "event_type": {"constant": "view"}})


def test_json_lines_go_in_again_as_they_came_out_nested_and_whole(json_site):
    folder = json_site.home / "raw/2026-03-01"
    folder.mkdir()
    row = {"user": {"id": "ann", "age": 7}, "item": "x", "at": "2026-03-01 at ten", "more": [1, {"a": None}]}
    (folder / "a.jsonl").write_text(json.dumps(row) + "\n{torn\n")
    json_site.ingest(DAY_1)
    told, torn = map(json.loads, as_json_lines(handed_back(json_site)))
    assert {name: told[name] for name in row} == row
    assert torn["nightjar"]["unparsable"] == {"line": "{torn"}
    text = "\n".join(as_json_lines(handed_back(json_site, "bad_time")))
    (folder / "mended.jsonl").write_text(text.replace(" at ten", "T10:00:00Z"))
    counts = json_site.ingest(DAY_1)
    assert (counts["events"], counts["rows_read"]) == (1, 3)
    assert json_site.events["user_id"].to_list() == ["ann"]


def test_a_file_that_is_gone_or_changed_is_told_from_the_table(delivered):
    path = delivered.home / "raw/events-2026-03-01.csv"
    before = list(as_separated(handed_back(delivered), ","))
    path.write_text("another file\n")
    assert list(as_separated(handed_back(delivered), ",")) == before
    path.unlink()
    assert list(as_separated(handed_back(delivered), ",")) == before


def test_a_bot_comes_back_as_its_file_has_it(make_small):
    small = make_small(source={"bots": {"events_per_day": 1}})
    path = small.deliver("2026-03-01", GOOD, GOOD.replace(",x,", ",y,"))
    small.ingest(DAY_1)
    for _ in range(2):
        assert list(as_separated(handed_back(small), ","))[1:] == [GOOD, GOOD.replace(",x,", ",y,")]
        path.unlink(missing_ok=True)


def test_a_hashed_site_hands_back_what_the_raw_file_says_and_nothing_without_it(make_small, monkeypatch):
    monkeypatch.setenv("NIGHTJAR_USER_ID_SECRET", "s" * 32)
    small = make_small(privacy={"hash_user_ids": True})
    path = small.deliver("2026-03-01", GOOD, BAD_TIME, TORN)
    small.ingest(DAY_1)
    assert list(as_separated(handed_back(small), ",")) == ["user,session,item,time,type", BAD_TIME, TORN]
    path.write_text(path.read_text() + GOOD)
    assert raw_rows(small.site, small.store, rejected_rows(small.store, DAY_1, None)) == ([], 2), "a hash is no user id"


def test_rows_of_a_cut_file_are_no_rows_to_mend(delivered):
    rows = rejected_rows(delivered.store, DAY_1, None).with_columns(reason=pl.lit("truncated_file"))
    assert raw_rows(delivered.site, delivered.store, rows) == ([], 0)
    assert delivered.table(FILES).height == 1
    assert delivered.store.scan(events_table([])).collect().height == 1


def test_rows_for_a_spreadsheet_hold_no_formula_and_can_be_restored(make_small):
    small = make_small()
    small.deliver("2026-03-01", "=cmd|x,,-0.23,at ten,view", "'=x,,\t+y,at ten,@view")
    small.ingest(DAY_1)
    rows = handed_back(small)
    plain = list(csv.reader(as_separated(rows, ",")))
    guarded = list(csv.reader(as_separated(rows, ",", guard_formulas=True)))
    assert plain[1:] == [["=cmd|x", "", "-0.23", "at ten", "view"], ["'=x", "", "\t+y", "at ten", "@view"]]
    assert guarded[1:] == [["'=cmd|x", "", "-0.23", "at ten", "view"], ["''=x", "", "'\t+y", "at ten", "'@view"]]
    assert [[re.sub(r"^'(?='*[=+\-@\t\r\n＝＋－＠])", "", cell) for cell in row] for row in guarded] == plain
