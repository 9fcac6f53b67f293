from datetime import date, timedelta

import polars as pl
import pytest

from pipeline.dates import day_end, day_start, days_between
from pipeline.days import passed_days, read_days, stale_sessions, stale_verdicts, update_days, with_inputs
from pipeline.errors import RetryableError
from pipeline.publish import Store
from pipeline.settings import Sessions
from pipeline.tables import DAYS

RULES = Sessions()
DAY_1, DAY_2, DAY_3, DAY_4 = (date(2026, 3, day) for day in (1, 2, 3, 4))


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(str(tmp_path / "store"))


def tell(store: Store, *days: date, **facts: str | int | None) -> None:
    """Set facts of some days."""
    types = {name: DAYS.columns[name] for name in facts}
    told = [{"event_date": day} | facts for day in days]
    update_days(store, pl.DataFrame(told, schema={"event_date": pl.Date} | types, orient="row"))


def sessionize(store: Store, *days: date, still_open: str = "open") -> None:
    """What sessionize leaves in `days`: what sessions were built from, what they are, and which are open at the end."""
    for day in days:
        inputs = with_inputs(read_days(store), RULES).filter(pl.col("event_date") == day)["inputs"].item()
        tell(store, day, sessions_built_from=inputs, sessions_content=f"sessions {inputs}", open_content=still_open)


def validate(store: Store, *days: date, verdict: str = "passed") -> None:
    """What validate leaves in `days`."""
    for day in days:
        row = read_days(store).filter(pl.col("event_date") == day).row(0, named=True)
        tell(store, day, validated_content=f"{row['events_content']}/{row['sessions_content']}", verdict=verdict)


def test_a_day_goes_from_midnight_to_midnight_of_its_zone():
    assert day_start(DAY_1, "UTC").isoformat() == "2026-03-01T00:00:00+00:00"
    assert day_start(DAY_1, "Europe/Berlin").isoformat() == "2026-02-28T23:00:00+00:00"
    for day, hours in ((date(2026, 3, 29), 23), (date(2026, 3, 30), 24), (date(2026, 10, 25), 25)):
        assert day_end(day, "Europe/Berlin") - day_start(day, "Europe/Berlin") == timedelta(hours=hours)


def test_a_range_of_days_has_both_ends():
    assert days_between(DAY_1, DAY_3) == [DAY_1, DAY_2, DAY_3]
    assert days_between(DAY_1, DAY_1) == [DAY_1]
    assert days_between(DAY_2, DAY_1) == []


def test_an_update_keeps_other_columns_and_other_days(store):
    tell(store, DAY_1, DAY_2, events_content="a", num_events=5)
    tell(store, DAY_1, verdict="passed")
    tell(store, DAY_1, events_content=None)
    rows = read_days(store).select("event_date", "events_content", "num_events", "verdict").rows()
    assert rows == [(DAY_1, None, 5, "passed"), (DAY_2, "a", 5, None)]


def test_an_update_of_no_day_changes_nothing(store):
    tell(store, DAY_1, events_content="a")
    version = store.version(DAYS)
    tell(store, events_content="b")
    assert store.version(DAYS) == version


def test_an_update_that_rests_on_an_older_state_is_refused(store):
    base = update_days(store, pl.DataFrame({"event_date": [DAY_1], "num_events": [1]}))
    tell(store, DAY_1, verdict="passed")
    change = pl.DataFrame({"event_date": [DAY_1], "num_events": [2]})
    with pytest.raises(RetryableError):
        update_days(store, change, base)
    update_days(store, change.with_columns(event_date=pl.lit(DAY_2)), base)
    assert read_days(store)["num_events"].to_list() == [1, 2]


def test_an_update_without_a_base_is_made_again_on_what_a_neighbour_wrote(store, monkeypatch):
    tell(store, DAY_1, num_events=1)
    replace = Store.replace

    def overtaken(self: Store, *args: object, **options: object) -> int:
        monkeypatch.undo()
        tell(store, DAY_1, verdict="passed")
        return replace(self, *args, **options)

    monkeypatch.setattr(Store, "replace", overtaken)
    tell(store, DAY_1, num_events=2)
    assert read_days(store).select("num_events", "verdict").rows() == [(2, "passed")]


# --- stale sessions


def test_sessions_that_were_never_built_are_stale(store):
    tell(store, DAY_1, DAY_2, events_content="a")
    assert stale_sessions(store, RULES) == [DAY_1, DAY_2]


def test_sessions_are_stale_when_their_day_or_the_day_after_changed(store):
    days = [DAY_1, DAY_2, DAY_3, DAY_4]
    tell(store, *days, events_content="a")
    sessionize(store, *days)
    assert stale_sessions(store, RULES) == []
    tell(store, DAY_2, events_content="b")
    assert stale_sessions(store, RULES) == [DAY_1, DAY_2]
    sessionize(store, DAY_2)
    assert stale_sessions(store, RULES) == [DAY_1]


def test_a_day_is_stale_when_the_sessions_open_at_its_first_midnight_changed(store):
    days = [DAY_1, DAY_2, DAY_3]
    tell(store, *days, events_content="a")
    sessionize(store, *days)
    sessionize(store, DAY_1)
    assert stale_sessions(store, RULES) == []
    sessionize(store, DAY_1, still_open="others")
    assert stale_sessions(store, RULES) == [DAY_2]


def test_all_days_are_stale_under_other_rules(store):
    tell(store, DAY_1, DAY_2, events_content="a")
    sessionize(store, DAY_1, DAY_2)
    assert stale_sessions(store, Sessions(max_events=7)) == [DAY_1, DAY_2]


def test_the_day_after_makes_a_day_stale_when_it_comes_in(store):
    tell(store, DAY_1, events_content="a")
    sessionize(store, DAY_1)
    assert stale_sessions(store, RULES) == []
    tell(store, DAY_2, events_content="b")
    assert stale_sessions(store, RULES) == [DAY_1, DAY_2]


def test_a_day_in_change_is_left_to_its_ingest(store):
    tell(store, DAY_1, DAY_2, events_content="a")
    sessionize(store, DAY_1, DAY_2)
    tell(store, DAY_2, events_content=None)
    assert stale_sessions(store, RULES) == [DAY_1]


# --- verdicts


def test_a_verdict_is_stale_when_it_is_missing_or_about_something_else(store):
    tell(store, DAY_1, DAY_2, events_content="a")
    assert stale_verdicts(store, DAY_2) == []
    sessionize(store, DAY_1, DAY_2)
    assert stale_verdicts(store, DAY_2) == [DAY_1, DAY_2]
    validate(store, DAY_1, DAY_2)
    assert stale_verdicts(store, DAY_2) == []
    tell(store, DAY_1, sessions_content="other")
    assert stale_verdicts(store, DAY_2) == [DAY_1]


@pytest.mark.parametrize("column", ["events_content", "sessions_content"])
@pytest.mark.parametrize("content", ["other", None])
def test_only_days_that_passed_at_their_present_content_may_be_seen(store, column, content):
    tell(store, DAY_1, DAY_2, DAY_3, events_content="a")
    sessionize(store, DAY_1, DAY_2, DAY_3)
    assert passed_days(store, DAY_1, DAY_3) == []
    validate(store, DAY_1, DAY_2)
    validate(store, DAY_3, verdict="failed")
    assert passed_days(store, DAY_1, DAY_3) == [DAY_1, DAY_2]
    assert passed_days(store, DAY_2, DAY_3) == [DAY_2]
    tell(store, DAY_2, **{column: content})
    assert passed_days(store, DAY_1, DAY_3) == [DAY_1]
