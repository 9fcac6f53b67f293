"""The table of days says which step must run again, and never that a day is fine when it is not."""

from datetime import date

import polars as pl

from pipeline.day_report import day_report
from pipeline.days import present_content, read_days, update_days

DAY_1, DAY_2 = date(2026, 3, 1), date(2026, 3, 2)
ROW = "ann,,{item},2026-03-0{day}T10:00:00Z,view"


def states(small) -> list[str]:
    return day_report(small.store, small.site.sessions)["state"].to_list()


def judge(small, verdict: str) -> None:
    told = read_days(small.store).select("event_date", validated_content=present_content(), verdict=pl.lit(verdict))
    update_days(small.store, told)


def test_a_day_goes_from_stale_to_passed_and_back(small):
    small.deliver("2026-03-01", ROW.format(item="x", day=1))
    small.ingest(DAY_1)
    assert states(small) == ["stale: run sessionize, validate"]
    small.sessionize(DAY_1)
    assert states(small) == ["stale: run validate"]
    judge(small, "passed")
    assert states(small) == ["passed as it is now"]
    judge(small, "failed")
    assert states(small) == ["failed as it is now: feeds nothing"]
    judge(small, "passed")
    small.deliver("2026-03-02", ROW.format(item="late", day=1), ROW.format(item="y", day=2))
    small.ingest(DAY_2)
    assert states(small) == ["stale: run sessionize, validate"] * 2
    update_days(small.store, pl.DataFrame({"event_date": [DAY_1], "events_content": [None]}))
    assert states(small)[0].startswith("in change: run ingest")


def test_a_day_has_the_counts_of_all_its_files(small):
    small.deliver("2026-03-01", ROW.format(item="x", day=1), ROW.format(item="x", day=1), "torn")
    small.deliver("2026-03-02", ROW.format(item="late", day=1))
    small.ingest(DAY_1, DAY_2)
    small.sessionize(DAY_1, DAY_2)
    first, second = day_report(small.store, small.site.sessions).drop("verdict", "state").rows()
    assert first == (DAY_1, 2, 2, 1, 1, 1)
    assert second == (DAY_2, 0, 0, 0, 0, 0)


def test_a_range_of_days_is_shown_and_nothing_of_an_empty_store(small):
    assert day_report(small.store, small.site.sessions).is_empty()
    for day in (DAY_1, DAY_2):
        small.deliver(str(day), ROW.format(item="x", day=day.day))
    small.ingest(DAY_1, DAY_2)
    assert day_report(small.store, small.site.sessions, DAY_2)["event_date"].to_list() == [DAY_2]
    assert day_report(small.store, small.site.sessions, DAY_1, DAY_1)["event_date"].to_list() == [DAY_1]
