import itertools
import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import ingest as ingest_module
from pipeline.errors import ConfigurationError, ContractError, NightjarError, RetryableError
from pipeline.publish import Store, open_store
from pipeline.raw_log import read_raw_log
from pipeline.tables import FILES, events_table

DAY_1, DAY_2, DAY_3 = (date(2026, 3, day) for day in (1, 2, 3))


def row(day: int, item: str, user: str = "ann", hour: int = 10, kind: str = "view") -> str:
    return f"{user},,{item},2026-03-{day:02}T{hour:02}:00:00Z,{kind}"


def runs(small: Any) -> list[str]:
    """Which ingest wrote each event."""
    return list(small.store.scan(events_table([])).sort("event_id").collect()["ingested_run"])


def test_a_delivery_becomes_events_and_its_counts_add_up(small):
    small.deliver("2026-03-01", row(1, "x"), row(1, "y", kind="BUY"), row(1, "x"), row(1, "z", kind="?"), "bad")
    assert small.ingest(DAY_1) == {
        "files": 1,
        "rows_read": 5,
        "events": 2,
        "duplicates": 1,
        "rejected": {"unknown_event_type": 1, "unparsable_row": 1},
    }
    assert small.events.select("item_id", "event_type").rows() == [("x", "view"), ("y", "purchase")]
    assert small.events["source_file"].unique().item().endswith("raw/events-2026-03-01.csv")


def test_a_rejected_row_is_kept_with_its_reason_place_and_fields(small):
    path = small.deliver("2026-03-01", row(1, "x"), row(1, "", user="bob"), "one,two")
    small.ingest(DAY_1)
    kept = small.rejected.sort("record").drop("fields", "detail").rows()
    assert kept == [(DAY_1, "missing_item", str(path), 2), (DAY_1, "unparsable_row", str(path), 3)]
    fields = [json.loads(text) for text in small.rejected.sort("record")["fields"]]
    assert fields[0]["user"] == "bob"
    assert fields[1] == ["one", "two"]


def test_the_day_is_known_by_its_content_and_counts(small):
    small.deliver("2026-03-01", row(1, "x"), row(1, "x"), "bad")
    small.ingest(DAY_1)
    known = small.days.row(0, named=True)
    assert known["events_content"].startswith("1-")
    assert [known[name] for name in ("num_events", "num_duplicates", "num_rejected")] == [1, 1, 1]


@pytest.mark.parametrize("bots", [{}, {"events_per_day": 99}], ids=["unjudged", "judged"])
def test_files_of_several_formats_make_one_delivery(make_small, bots):
    small = make_small(source={"events": "raw/events-{date}*", "bots": bots})
    small.deliver("2026-03-01-a", row(1, "x"))
    line = {"user": "ann", "session": None, "item": "y", "time": "2026-03-01T10:00:00Z", "type": "view"}
    (small.home / "raw/events-2026-03-01-b.jsonl").write_text(json.dumps(line))
    typed = {"time": pl.select(pl.lit(line["time"]).str.to_datetime(time_zone="UTC")).item(), "item": "z"}
    pl.DataFrame([line | typed]).write_parquet(small.home / "raw/events-2026-03-01-c.parquet")
    assert small.ingest(DAY_1)["events"] == 3
    assert small.items() == ["x", "y", "z"]


# --- duplicates


def test_of_exact_duplicates_in_a_file_the_first_stays(small):
    small.deliver("2026-03-01", row(1, "x"), row(1, "y"), row(1, "x"), row(1, "x"))
    assert small.ingest(DAY_1)["duplicates"] == 2
    assert small.items() == ["x", "y"]


def test_duplicates_are_found_across_the_files_of_a_day(small):
    small.deliver("2026-03-01-b", row(1, "x"), row(1, "y"))
    small.deliver("2026-03-01-a", row(1, "x"))
    assert small.ingest(DAY_1)["duplicates"] == 1
    files = small.table(FILES).select(pl.col("path").str.slice(-5), "events", "duplicates").rows()
    assert files == [("a.csv", 1, 0), ("b.csv", 1, 1)]


def test_a_file_that_is_delivered_again_under_another_name_changes_no_event(small):
    small.deliver("2026-03-01", row(1, "x"), row(1, "y"))
    small.ingest(DAY_1)
    before = small.events
    small.deliver("2026-03-02", row(1, "x"), row(1, "y"), row(2, "z"))
    assert small.ingest(DAY_2) == {"files": 1, "rows_read": 3, "events": 1, "duplicates": 2, "rejected": {}}
    assert small.events.filter(pl.col("event_date") == DAY_1).equals(before)
    assert small.ingest(DAY_1)["events"] == 2


def test_a_file_that_brings_an_earlier_row_first_hands_it_over_to_its_own_day(small):
    small.deliver("2026-03-01", row(1, "x"))
    small.deliver("2026-03-02", row(1, "x"), row(2, "y"))
    small.ingest(DAY_2, DAY_1)
    assert small.ingest(DAY_1)["events"] == 1
    assert small.ingest(DAY_2)["duplicates"] == 1


# --- again


def test_running_twice_reads_nothing_and_changes_nothing(small):
    small.deliver("2026-03-01", row(1, "x"), "bad")
    first = small.ingest(DAY_1)
    tables, versions = small.tables(), small.versions()
    assert small.ingest(DAY_1) == first
    assert small.versions() == versions
    assert small.tables() == tables


def test_a_mended_file_rebuilds_its_day_and_rows_that_vanished_vanish(small):
    small.deliver("2026-03-01", row(1, "x"), row(1, "y"), "bad")
    small.deliver("2026-03-02", row(2, "z"))
    small.ingest(DAY_1, DAY_2)
    other_day, run = small.events.filter(pl.col("event_date") == DAY_2), runs(small)
    small.deliver("2026-03-01", row(1, "x"), row(1, "new"))
    counts = small.ingest(DAY_1)
    assert (counts["events"], counts["rejected"]) == (2, {})
    assert small.items() == ["new", "x", "z"]
    assert small.reasons() == []
    assert small.events.filter(pl.col("event_date") == DAY_2).equals(other_day)
    assert len(set(runs(small)) & set(run)) == 1


def test_a_file_that_is_gone_takes_its_rows_along(small):
    small.deliver("2026-03-01-a", row(1, "x"))
    gone = small.deliver("2026-03-01-b", row(1, "y"))
    small.ingest(DAY_1)
    gone.unlink()
    assert small.ingest(DAY_1)["events"] == 1
    assert small.items() == ["x"]
    assert small.table(FILES).height == 1


@pytest.mark.parametrize("content", ["", "user,session,item,time,type\n"])
def test_an_empty_file_on_a_known_day_removes_its_earlier_rows(small, content):
    path = small.deliver("2026-03-01", row(1, "x"), "bad")
    small.deliver("2026-03-02", row(2, "y"))
    small.ingest(DAY_1, DAY_2)
    path.write_text(content)
    assert small.ingest(DAY_1) == {"files": 1, "rows_read": 0, "events": 0, "duplicates": 0, "rejected": {}}
    assert small.items() == ["y"]
    assert small.reasons() == []
    assert small.days.filter(pl.col("event_date") == DAY_1)["num_events"].item() == 0
    versions = small.versions()
    small.ingest(DAY_1)
    assert small.versions() == versions


def test_a_day_without_events_is_a_day(small):
    (small.home / "raw/events-2026-03-01.csv").touch()
    assert small.ingest(DAY_1)["rows_read"] == 0
    assert small.days.select("event_date", "num_events").rows() == [(DAY_1, 0)]


def test_an_empty_file_stays_known_when_a_neighbour_touches_its_day(small):
    small.deliver("2026-03-01")
    small.deliver("2026-03-02", row(1, "late"))
    small.ingest(DAY_1, DAY_2)
    versions = small.versions()
    assert small.ingest(DAY_1)["files"] == 1
    assert small.versions() == versions


# --- days


def test_a_late_row_touches_its_earlier_day_and_makes_it_stale(small):
    small.deliver("2026-03-01", row(1, "x"))
    small.deliver("2026-03-02", row(2, "y"), row(1, "late", hour=23))
    small.deliver("2026-03-03", row(3, "z"))
    small.ingest(DAY_1)
    before = small.days["events_content"].item()
    small.ingest(DAY_2, DAY_3)
    assert small.items() == ["late", "x", "y", "z"]
    first = small.days.filter(pl.col("event_date") == DAY_1).row(0, named=True)
    assert first["events_content"] != before
    assert first["num_events"] == 2
    assert small.ingest(DAY_1)["events"] == 1
    assert small.ingest(DAY_2)["events"] == 2


def test_a_late_row_keeps_what_was_rejected_on_its_day(small):
    small.deliver("2026-03-01", row(1, "x"), "bad")
    small.deliver("2026-03-02", row(1, "late"))
    small.ingest(DAY_1, DAY_2)
    assert small.reasons() == ["unparsable_row"]
    assert small.ingest(DAY_1)["rejected"] == {"unparsable_row": 1}


def test_a_late_row_that_is_taken_back_leaves_its_day_as_before(small):
    small.deliver("2026-03-01", row(1, "x"))
    small.deliver("2026-03-02", row(2, "y"))
    small.ingest(DAY_1, DAY_2)
    clean = small.tables()
    small.deliver("2026-03-02", row(2, "y"), row(1, "late"))
    small.ingest(DAY_2)
    assert small.tables() != clean
    small.deliver("2026-03-02", row(2, "y"))
    small.ingest(DAY_2)
    assert small.tables() == clean


def test_rows_outside_of_lateness_touch_no_other_day(make_small):
    small = make_small(source={"lateness": "1d"})
    small.deliver("2026-03-03", row(1, "too late"), row(2, "late"), row(4, "early"), row(3, "x"))
    counts = small.ingest(DAY_3)
    assert counts["rejected"] == {"future_time": 1, "too_late": 1}
    assert small.days["event_date"].to_list() == [DAY_2, DAY_3]
    assert small.rejected["event_date"].unique().to_list() == [DAY_3]


def test_a_file_that_is_gone_but_needed_for_another_day_is_named(small):
    path = small.deliver("2026-03-01", row(1, "x"))
    small.deliver("2026-03-02", row(1, "late"))
    small.ingest(DAY_1, DAY_2)
    path.unlink()
    small.deliver("2026-03-02", row(1, "other"))
    before = small.versions()
    with pytest.raises(
        ConfigurationError, match=r"events-2026-03-01\.csv was ingested before and is gone, but 2026-03-01"
    ):
        small.ingest(DAY_2)
    assert small.versions() == before


def test_new_rows_of_a_later_file_are_added_without_reading_the_files_of_their_day_again(small, monkeypatch):
    small.deliver("2026-03-01", row(1, "x"), row(1, "y"), "broken")
    small.ingest(DAY_1)
    small.deliver("2026-03-02", row(1, "late"), row(1, "x"), row(2, "z"), row(1, "late"))
    read = []
    monkeypatch.setattr(
        ingest_module, "read_raw_log", lambda paths, source: read.extend(paths) or read_raw_log(paths, source)
    )
    counts = small.ingest(DAY_2)
    assert [Path(path).name for path in read] == ["events-2026-03-02.csv"]
    assert (counts["events"], counts["duplicates"]) == (2, 2)
    assert small.items() == ["late", "x", "y", "z"]


@pytest.mark.parametrize("order", [(DAY_1, DAY_2, DAY_3), (DAY_3, DAY_1, DAY_2), (DAY_2, DAY_3, DAY_1)], ids=str)
def test_added_rows_leave_what_a_rebuilt_day_would_be(make_small, order):
    """In time the late rows are added; in another order, or with all events told anew, the day is rebuilt."""

    def deliver(small):
        small.deliver("2026-03-01", row(1, "x"), row(1, "y"), "broken")
        small.deliver("2026-03-02", row(1, "late"), row(1, "x"), row(2, "z"), row(3, "early"))
        small.deliver("2026-03-03", row(1, "later"), row(2, "z"), row(2, "late too"), "broken, too,,")
        return small

    clean, small = deliver(make_small("clean")), deliver(make_small("small"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest_module, "grown_days", lambda *told: [])
        clean.ingest(DAY_1, DAY_2, DAY_3)
    small.ingest(*order)
    small.ingest(*order)
    assert small.tables() == clean.tables()


@pytest.mark.parametrize(
    ("late", "is_added"),
    [
        (["cas,,late,2026-03-01T23:00:00Z,view"], True),
        (["ann,,a fourth,2026-03-01T23:00:00Z,view"], False),
        (["bob,,a fifth,2026-03-01T23:00:00Z,view"], False),
        (["bob,,i0,2026-03-01T10:00:00Z,view"], False),
        ([",night,late,2026-03-01T23:00:00Z,view"], False),
    ],
    ids=["of a person", "that makes a bot", "of a bot", "of a bot, told again", "of a bot without a name"],
)
def test_late_rows_are_judged_with_their_visitors_whole_day(make_small, late, is_added, monkeypatch):
    """Three events a day are allowed: ann has three, bob and an anonymous visitor four."""
    counts = {"ann,": 3, "bob,": 4, ",night": 4, "cas,": 1}
    first = [f"{who},i{n},2026-03-01T10:00:00Z,view" for who, number in counts.items() for n in range(number)]
    found = {}
    for name in ("small", "clean"):
        small = make_small(name, source={"bots": {"events_per_day": 3}})
        small.deliver("2026-03-01", *first)
        small.deliver("2026-03-02", *late, row(2, "x"))
        small.ingest(DAY_1)
        read = []
        with monkeypatch.context() as patch:
            patch.setattr(
                ingest_module,
                "read_raw_log",
                lambda paths, of, read=read: read.extend(paths) or read_raw_log(paths, of),
            )
            if name == "clean":
                patch.setattr(ingest_module, "grown_days", lambda *told: [])
            small.ingest(DAY_2)
        found[name] = small.tables()
        assert (len(read) == 1) == (is_added and name == "small")
    assert found["small"] == found["clean"]


# --- input that is not there


def test_missing_input_is_an_error_and_changes_nothing(small):
    path = small.deliver("2026-03-01", row(1, "x"))
    small.ingest(DAY_1)
    tables, versions = small.tables(), small.versions()
    path.unlink()
    for day in (DAY_1, DAY_2):
        with pytest.raises(
            ConfigurationError, match=rf"no input for {day}: no file matches .*Wait for the delivery; .*hang"
        ):
            small.ingest(day)
    assert (small.tables(), small.versions()) == (tables, versions)


def test_a_log_that_is_nowhere_is_an_error(make_small):
    with pytest.raises(ConfigurationError, match=r"no file matches .*raw/all\.csv \(source\.events\)\. Relative paths"):
        make_small(source={"events": "raw/all.csv"}).ingest(DAY_1)


def test_a_folder_in_the_place_of_a_file_is_an_error(make_small):
    small = make_small(source={"events": "raw/{date}"})
    (small.home / "raw/2026-03-01").mkdir()
    with pytest.raises(ConfigurationError, match=r"cannot read .*raw/2026-03-01: Is a directory"):
        small.ingest(DAY_1)


def test_a_missing_column_is_an_error_and_changes_nothing(small):
    small.deliver("2026-03-01", "ann,x", header="user,item")
    with pytest.raises(ConfigurationError, match="has no column 'time'"):
        small.ingest(DAY_1)
    assert small.versions() == dict.fromkeys(small.versions())


def test_a_store_that_cannot_be_written_is_one_sentence_and_exit_code_2(make_small):
    small = make_small(store="file/store")
    (small.home / "file").write_text("no folder")
    with pytest.raises(ConfigurationError, match="Is the store writable") as error:
        open_store(small.site)
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)


def test_a_row_that_is_lost_is_noticed_before_anything_is_published(small, monkeypatch):
    small.deliver("2026-03-01", row(1, "x"), row(1, "y"))
    judge = ingest_module.judge

    def lose_one(candidates: pl.DataFrame, *told: Any) -> Any:
        return judge(candidates.head(-1), *told)

    monkeypatch.setattr(ingest_module, "judge", lose_one)
    with pytest.raises(ContractError, match=r"2 rows were read but 1 are accounted for .* of .*events-2026-03-01\.csv"):
        small.ingest(DAY_1)
    assert small.versions() == dict.fromkeys(small.versions())


# --- a log without delivery days


@pytest.fixture
def undated(make_small: Callable[..., Any]) -> Any:
    return make_small(source={"events": "raw/*.csv"})


def test_a_log_without_days_is_taken_in_at_once(undated):
    undated.deliver("a", row(1, "x"), row(2, "y"))
    undated.deliver("b", row(2, "z"), row(3, "future"))
    assert undated.ingest(DAY_1)["events"] == 4
    assert undated.days["event_date"].to_list() == [DAY_1, DAY_2, DAY_3]
    versions = undated.versions()
    assert undated.ingest(DAY_2)["rows_read"] == 0
    assert undated.versions() == versions


def test_a_file_that_has_grown_is_taken_up_by_the_next_ingest(undated):
    undated.deliver("a", row(1, "x"), "bad")
    undated.ingest(DAY_1)
    undated.deliver("a", row(1, "x"), row(2, "y"), "bad", "worse")
    assert undated.ingest(DAY_2) == {
        "files": 1,
        "rows_read": 4,
        "events": 2,
        "duplicates": 0,
        "rejected": {"unparsable_row": 2},
    }
    assert undated.items() == ["x", "y"]
    assert len(undated.reasons()) == 2
    assert undated.ingest(DAY_1)["rows_read"] == 0


def test_a_log_without_days_gives_the_same_events_as_one_with_days(undated, make_small):
    dated = make_small("dated")
    for site, name in ((undated, "x"), (dated, "2026-03")):
        site.deliver(f"{name}-01", row(1, "x"), row(1, "y", user="bob"))
        site.deliver(f"{name}-02", row(2, "x"))
    undated.ingest(DAY_2)
    dated.ingest(DAY_1, DAY_2)
    assert undated.events.drop("source_file").equals(dated.events.drop("source_file"))
    assert undated.days.equals(dated.days)


# --- bots


def test_a_visitor_with_too_many_events_in_a_day_is_a_bot_on_that_day(make_small):
    small = make_small(source={"bots": {"events_per_day": 2}})
    many = [row(1, item, user="bot") for item in "abc"]
    small.deliver("2026-03-01", *many, row(1, "x"), row(1, "y"), row(1, "y"))
    small.deliver("2026-03-02", row(2, "x", user="bot"))
    assert small.ingest(DAY_1) == {
        "files": 1,
        "rows_read": 6,
        "events": 2,
        "duplicates": 1,
        "rejected": {"bot": 3},
        "bots": {"events_per_day": 3},
    }
    small.ingest(DAY_2)
    assert small.events.select("visitor", "event_date").unique().sort("visitor").rows() == [
        ("ann", DAY_1),
        ("bot", DAY_2),
    ]
    fields = [json.loads(text) for text in small.rejected["fields"]]
    assert sorted(field["item"] for field in fields) == ["a", "b", "c"]


def test_a_user_and_an_anonymous_session_of_one_id_are_two_visitors(make_small):
    small = make_small(source={"bots": {"events_per_day": 2}})
    ours = [f"7,{visit},{item},2026-03-01T10:00:00Z,view" for visit, item in (("7", "x"), ("8", "y"))]
    theirs = [f",7,{item},2026-03-01T10:00:00Z,view" for item in "xy"]
    small.deliver("2026-03-01", *ours, *theirs)
    assert small.ingest(DAY_1)["events"] == 4, "nobody is a bot, and no event is told twice"
    seen = small.events.select("visitor", "user_id").unique().sort("visitor")
    assert seen.rows() == [(" session:7", None), ("7", "7")]
    assert small.events["event_id"].n_unique() == 4
    small.sessionize(DAY_1)
    assert small.sessions["session_id"].n_unique() == 3


def test_a_user_id_that_looks_like_the_mark_is_a_user(make_small):
    small = make_small()
    odd = [" session:7", "session:7", "\u00a0session:7", "\x1fsession:7"]
    small.deliver("2026-03-01", *(f"{user},,x{n},2026-03-01T10:00:00Z,view" for n, user in enumerate(odd)))
    small.deliver("2026-03-01b", ",7,y,2026-03-01T10:00:00Z,view")
    small.ingest(DAY_1)
    users = small.events.filter(pl.col("user_id").is_not_null())
    assert users["visitor"].equals(users["user_id"])
    assert set(users["visitor"]) == {"session:7", "\x1fsession:7"}
    assert small.events.filter(pl.col("user_id").is_null())["visitor"].to_list() == [" session:7"]


def test_late_rows_of_a_user_are_not_judged_with_a_session_of_the_same_id(make_small):
    small = make_small(source={"bots": {"events_per_day": 1}})
    small.deliver("2026-03-01", ",7,x,2026-03-01T10:00:00Z,view", ",7,y,2026-03-01T10:00:00Z,view")
    small.deliver("2026-03-02", "7,,x,2026-03-01T11:00:00Z,view")
    small.ingest(DAY_1)
    assert small.items() == [], "the session is a bot"
    small.ingest(DAY_2)
    assert small.events["visitor"].to_list() == ["7"]


def test_a_late_row_can_make_a_bot(make_small):
    small = make_small(source={"bots": {"events_per_day": 1}})
    small.deliver("2026-03-01", row(1, "x"))
    small.deliver("2026-03-02", row(1, "y"))
    small.ingest(DAY_1)
    assert small.items() == ["x"]
    small.ingest(DAY_2)
    assert small.items() == []
    assert small.ingest(DAY_1)["rejected"] == {"bot": 1}


ON = {"bots": {"events_per_day": 2}}


def test_a_row_of_a_bot_is_kept_whole_and_says_why(make_small):
    small = make_small(source=ON)
    small.deliver("2026-03-01-a", *(f"{row(1, item)},7" for item in "abc"), header="user,session,item,time,type,price")
    small.deliver("2026-03-01-b", row(1, "d"))
    small.ingest(DAY_1)
    assert small.rejected["detail"].unique().to_list() == ["events_per_day: 4 > 2"]
    fields = {fields["item"]: fields for fields in map(json.loads, small.rejected["fields"])}
    told = {"user": "ann", "session": None, "item": "a", "time": "2026-03-01T10:00:00Z", "type": "view"}
    assert fields["a"] == told | {"price": "7"}
    assert fields["d"] == told | {"item": "d"}, "a column of another file is not made up"


def test_a_program_is_judged_by_its_name_which_is_not_kept(make_small):
    small = make_small(source={"bots": {"user_agent": {"column": "agent", "pattern": "(?i)bot"}}})
    rows = [f"{row(1, 'x')},Mozilla/5.0", f"{row(1, 'y', user='bob')},Googlebot/2.1", f"{row(1, 'z', user='bob')},"]
    small.deliver("2026-03-01", *rows, header="user,session,item,time,type,agent")
    assert small.ingest(DAY_1)["bots"] == {"user_agent": 2}
    assert small.items() == ["x"]
    assert "agent" not in small.events.columns
    assert small.rejected["detail"].unique().to_list() == ["user_agent: Googlebot/2.1"]


@pytest.mark.parametrize("buckets", [1, 3])
def test_bots_are_the_same_in_any_order_and_number_of_buckets(make_small, buckets):
    tables = []
    for n, order in enumerate(itertools.permutations([DAY_1, DAY_2, DAY_3])):
        small = make_small(f"{n}", buckets=buckets, source=ON)
        small.deliver("2026-03-01", row(1, "a"), row(1, "b"), row(1, "b"), row(1, "c", user="bob"))
        small.deliver("2026-03-02", row(1, "late"), row(2, "x"), row(2, "y"))
        small.deliver("2026-03-03", row(2, "x"), row(2, "z"), row(1, "b", user="bob"))
        small.ingest(*order)
        tables.append({name: rows for name, rows in small.tables().items() if name != "events"})
        tables[-1]["events"] = small.events.drop("user_bucket", "source_file").rows()
    assert all(other == tables[0] for other in tables)
    assert sorted(small.reasons()) == ["bot"] * 6
    assert small.items() == ["b", "c"]


# --- the catalogue


def with_items(make_small: Any, name: str = "home", path: str = "raw/items.csv", **items: Any) -> Any:
    told = {"path": path, "columns": {"item_id": "id"}, "unknown": "reject"} | items
    return make_small(name, items=told, source={"bots": {"events_per_day": 3}})


def tell_items(small: Any, name: str, *items: str) -> None:
    (small.home / f"raw/{name}.csv").write_text("".join(f"{line}\n" for line in ("id", *items)))


def test_an_item_that_the_side_table_does_not_know_is_a_reason_where_the_site_says_so(make_small):
    for name, unknown, reasons in (("a", "reject", ["item_not_in_catalogue"]), ("b", "keep", [])):
        small = with_items(make_small, name, unknown=unknown)
        tell_items(small, "items", "x", " y ")
        small.deliver("2026-03-01", row(1, "x"), row(1, "y"), row(1, "z"))
        small.ingest(DAY_1)
        assert small.reasons() == reasons


def test_an_item_is_looked_up_on_the_day_of_its_file_in_any_order(make_small):
    tables = []
    for n, order in enumerate([(DAY_1, DAY_2), (DAY_2, DAY_1), (DAY_2, DAY_1, DAY_2)]):
        small = with_items(make_small, f"{n}", "raw/items-{date}.csv")
        tell_items(small, "items-2026-03-01", "x")
        tell_items(small, "items-2026-03-02", "y")
        small.deliver("2026-03-01", row(1, "x"), row(1, "y"))
        small.deliver("2026-03-02", row(1, "x", hour=11), row(1, "y", hour=11), row(2, "y"))
        small.ingest(*order)
        tables.append(small.tables())
    assert tables[0] == tables[1] == tables[2]
    assert small.items() == ["x", "y", "y"]
    assert small.reasons() == ["item_not_in_catalogue"] * 2


def test_without_the_side_table_of_its_day_a_file_cannot_be_judged(make_small):
    small = with_items(make_small, path="raw/items-{date}.csv")
    small.deliver("2026-03-01", row(1, "x"))
    with pytest.raises(
        ConfigurationError, match=r"no file matches .*items-2026-03-01\.csv \(items\.path\); the items of"
    ):
        small.ingest(DAY_1)
    assert small.versions() == dict.fromkeys(small.versions())


# --- rules that change


def test_a_side_table_that_was_mended_has_its_day_judged_again(make_small):
    small = with_items(make_small, path="raw/items-{date}.csv")
    tell_items(small, "items-2026-03-01", "x")
    small.deliver("2026-03-01", row(1, "x"), row(1, "y"))
    assert small.ingest(DAY_1)["events"] == 1
    tell_items(small, "items-2026-03-01", "x", "y")
    assert small.ingest(DAY_1)["events"] == 2
    versions = small.versions()
    small.ingest(DAY_1)
    assert small.versions() == versions


def test_a_rule_that_was_turned_on_has_the_day_judged_again(make_small):
    small = make_small()
    small.deliver("2026-03-01", row(1, "x"), row(1, "y"))
    assert small.ingest(DAY_1)["events"] == 2
    assert make_small(source={"bots": {"events_per_day": 1}}).ingest(DAY_1)["rejected"] == {"bot": 2}
    assert make_small().ingest(DAY_1)["events"] == 2


# --- laws

ROWS = st.builds(
    row,
    day=st.integers(1, 3),
    item=st.sampled_from(["x", "y", ""]),
    user=st.sampled_from(["ann", "bob"]),
    hour=st.integers(9, 10),
)


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_range_is_the_same_day_by_day_in_any_order(make_small, data):
    files = {day: data.draw(st.lists(ROWS, max_size=6), label=str(day)) for day in (DAY_1, DAY_2, DAY_3)}
    order = data.draw(st.permutations(list(files)), label="order")
    number = data.draw(st.uuids(), label="folder")
    forward, other = make_small(f"{number}/forward"), make_small(f"{number}/other")
    for small in (forward, other):
        for day, rows in files.items():
            small.deliver(str(day), *rows)
    forward.ingest(DAY_1, DAY_2, DAY_3)
    other.ingest(*order)
    assert forward.tables() == other.tables()
    assert forward.table(FILES)["rows_read"].sum() == sum(len(rows) for rows in files.values())


class PowerCutError(BaseException):
    """Nothing catches it."""


COMMITS = 5  # days, events, rejected, days, files


def beside_commits(monkeypatch: pytest.MonkeyPatch, act: Callable[[int, bool], None]) -> None:
    """Call `act(number, is_done)` before and after each commit."""
    commit, number = Store._swap, iter(range(1000))

    def watched(self: Store, *args: Any, **options: Any) -> int:
        this = next(number)
        act(this, False)
        version = commit(self, *args, **options)
        act(this, True)
        return version

    monkeypatch.setattr(Store, "_swap", watched)


def ingest_with_power_cut(small: Any, day: date, number: int, is_done: bool) -> None:
    """An ingest that dies before, or after, one of its commits."""

    def act(this: int, this_is_done: bool) -> None:
        if (this, this_is_done) == (number, is_done):
            raise PowerCutError

    assert small.store
    with pytest.MonkeyPatch.context() as patch:
        beside_commits(patch, act)
        with pytest.raises(PowerCutError):
            small.ingest(day)


STATES = {
    "first": ([row(1, "x"), "bad"], [row(2, "y"), row(1, "late", hour=12)]),
    "mended": ([row(1, "x"), row(1, "w")], [row(2, "y"), "worse", row(2, "z"), row(1, "later", hour=13)]),
}


def deliver(small: Any, state: str) -> None:
    for day, rows in zip((DAY_1, DAY_2), STATES[state], strict=True):
        small.deliver(str(day), *rows)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory, make_small_in: Any) -> dict[str, Any]:
    """What the store says in each state if nothing disturbs."""
    tables = {}
    for state in STATES:
        small = make_small_in(tmp_path_factory.mktemp("clean"))
        deliver(small, state)
        small.ingest(DAY_1, DAY_2)
        tables[state] = small.tables()
    return tables


def test_an_ingest_makes_five_commits(small, monkeypatch):
    deliver(small, "first")
    seen = []
    assert small.store
    beside_commits(monkeypatch, lambda number, is_done: seen.append(number))
    small.ingest(DAY_1)
    assert max(seen) + 1 == COMMITS


def test_after_a_power_cut_at_any_commit_the_next_run_finishes_the_work(small, clean):
    deliver(small, "first")
    small.ingest(DAY_1, DAY_2)
    states = itertools.cycle(["mended", "first"])
    for number, is_done, state in zip(range(COMMITS), itertools.cycle([False, True]), states, strict=False):
        deliver(small, state)
        small.ingest(DAY_1)
        ingest_with_power_cut(small, DAY_2, number, is_done)
        small.ingest(DAY_2)
        assert small.tables() == clean[state], (number, is_done)


def test_after_a_power_cut_in_a_new_store_the_next_run_finishes_the_work(make_small, clean):
    for number, is_done in ((0, True), (1, True), (3, False), (4, True)):
        small = make_small(f"cut-{number}")
        deliver(small, "first")
        ingest_with_power_cut(small, DAY_1, number, is_done)
        small.ingest(DAY_1, DAY_2)
        assert small.tables() == clean["first"], number


def test_after_a_power_cut_while_rows_are_added_the_next_run_finishes_the_work(make_small, clean):
    for number in range(COMMITS + 1):  # events are swapped in for one day, and added to another
        small = make_small(f"cut-{number}")
        deliver(small, "first")
        small.ingest(DAY_1)
        ingest_with_power_cut(small, DAY_2, number, is_done=True)
        small.ingest(DAY_2)
        assert small.tables() == clean["first"], number


def test_rows_of_an_ingest_that_died_vanish_if_the_file_was_mended_before_the_next_run(small):
    small.deliver("2026-03-01", row(1, "x"))
    small.ingest(DAY_1)
    small.deliver("2026-03-02", row(2, "y"), row(1, "slip"))
    ingest_with_power_cut(small, DAY_2, 2, True)
    assert "slip" in small.items()
    small.deliver("2026-03-02", row(2, "y"))
    small.ingest(DAY_2)
    assert small.items() == ["x", "y"]
    assert small.days["events_content"].null_count() == 0


def test_two_ingests_that_touch_one_day_lose_no_row(make_small, clean):
    """The second one runs from start to end while the first one is about to make a commit."""
    for number in range(COMMITS):
        small = make_small(f"beside-{number}")
        deliver(small, "first")
        refused = ingest_beside(small, DAY_1, DAY_2, number)
        assert refused, number
        small.ingest(*refused)
        assert small.tables() == clean["first"], number


def ingest_beside(small: Any, outer: date, inner: date, number: int) -> list[date]:
    """Ingest `inner` while `outer` is about to make a commit; return which of them were told to try again."""
    refused: list[date] = []

    def try_ingest(day: date) -> None:
        try:
            small.ingest(day)
        except RetryableError:
            refused.append(day)

    with pytest.MonkeyPatch.context() as patch:

        def act(this: int, is_done: bool) -> None:
            if this == number and not is_done:
                patch.undo()
                try_ingest(inner)

        assert small.store
        beside_commits(patch, act)
        try_ingest(outer)
    return refused


def test_two_ingests_of_days_apart_do_not_disturb_each_other(small):
    for items in ("ab", "cd"):
        small.deliver("2026-03-01", row(1, items[0]))
        small.deliver("2026-03-02", row(2, items[1]))
        assert ingest_beside(small, DAY_1, DAY_2, number=1) == []
        assert small.items() == list(items)


def test_every_known_fault_has_an_exit_code():
    assert {kind.__name__: kind.exit_code for kind in NightjarError.__subclasses__()} == {
        "RetryableError": 1,
        "ConfigurationError": 2,
        "ContractError": 3,
    }


# --- columns


def test_a_column_that_is_new_or_missing_is_told_once_and_the_rows_are_taken_in(small, caplog):
    small.deliver("2026-03-01", row(1, "x"))
    assert "columns" not in small.ingest(DAY_1)
    small.deliver("2026-03-02", row(2, "y") + ",nl", header="user,session,item,time,type,country")
    told = ["events-2026-03-02.csv: column 'country' is new"]
    counts = small.ingest(DAY_2)
    assert (counts["columns"], counts["events"]) == (told, 1)
    assert caplog.messages == told
    assert "columns" not in small.ingest(DAY_2)
    small.deliver("2026-03-03", row(3, "z"))
    assert small.ingest(DAY_3)["columns"] == ["events-2026-03-03.csv: column 'country' is missing"]
    kept = small.table(FILES).filter(pl.col("delivery_date") == DAY_1)["columns"].item()
    assert json.loads(kept) == dict.fromkeys(["user", "session", "item", "time", "type"], "text")
