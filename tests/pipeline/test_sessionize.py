import itertools
from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dates import day_end
from pipeline.days import passed_days, present_content, read_days, update_days
from pipeline.errors import RetryableError
from pipeline.publish import Store
from pipeline.sessionize import collect_sessions, cut_runs, mark_runs, sessions_of_day, trim_sessions
from pipeline.settings import PipelineSite, Sessions

DAY_1, DAY_2, DAY_3 = (date(2026, 3, day) for day in (1, 2, 3))
DAY = 24 * 60
"""Minutes."""


def make_site(time_zone: str = "UTC", **rules: Any) -> PipelineSite:
    source = {"events": "{date}.csv", "columns": {"user_id": "u", "item_id": "i", "occurred_at": "t"}}
    told = {"name": "a", "store": "s", "time_zone": time_zone, "source": source, "sessions": rules}
    return PipelineSite.model_validate(told)


def cut(events: pl.DataFrame, site: PipelineSite) -> pl.DataFrame:
    """All sessions of some events, oldest first."""
    runs = mark_runs(events, site.sessions)
    return collect_sessions(cut_runs(runs, site.sessions), site).sort("started_at", "session_id")


def item_lists(sessions: pl.DataFrame) -> list[list[str]]:
    return sessions["item_ids"].to_list()


def on(events: pl.DataFrame, site: PipelineSite, day: date) -> list[list[str]]:
    """Item lists of the sessions that start on a day."""
    return item_lists(sessions_of_day(events.lazy(), site, day).sort("started_at", "session_id"))


# --- where a session ends


def test_a_long_silence_starts_a_new_session(make_events):
    events = make_events([("ann", 0, "a"), ("ann", 10, "b"), ("ann", 95, "c")])
    assert item_lists(cut(events, make_site())) == [["a", "b"], ["c"]]


def test_a_silence_as_long_as_the_gap_does_not(make_events):
    events = make_events([("ann", 0, "a"), ("ann", 30, "b"), ("ann", 60 + 1 / 60e6, "c")])
    assert item_lists(cut(events, make_site(gap="30m"))) == [["a", "b"], ["c"]]


def test_each_visitor_has_sessions_of_their_own(make_events):
    events = make_events([("ann", 0, "a"), ("bob", 1, "b"), ("ann", 2, "c")])
    assert item_lists(cut(events, make_site())) == [["a", "c"], ["b"]]


def test_a_given_session_id_is_a_session_of_its_own(make_events):
    rows = [("ann", 0, "a", "s1"), ("ann", 1, "b", "s2"), ("ann", 2, "c", "s1"), ("ann", 3, "d", None)]
    assert item_lists(cut(make_events(rows), make_site())) == [["a", "c"], ["b"], ["d"]]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({"gap": "30m"}, [["a", "b"], ["c", "d"]]),
        ({"gap": "24h", "max_duration": "2h"}, [["a", "b"], ["c", "d"]]),
        ({"gap": "24h", "max_events": 3}, [["a", "b", "c"], ["d"]]),
        ({"gap": "24h"}, [["a", "b", "c", "d"]]),
    ],
)
def test_given_session_ids_are_cut_by_the_same_rules(make_events, rules, expected):
    events = make_events([("ann", 0, "a"), ("ann", 20, "b"), ("ann", 125, "c"), ("ann", 130, "d")], given="s1")
    assert item_lists(cut(events, make_site(**rules))) == expected


def test_a_run_that_lasts_too_long_is_cut_where_the_time_is_over(make_events):
    events = make_events([("ann", 20 * n, f"{n}") for n in range(7)])
    sessions = cut(events, make_site(max_duration="1h"))
    assert item_lists(sessions) == [["0", "1", "2"], ["3", "4", "5"], ["6"]]


def test_a_run_of_too_many_events_is_cut_into_full_sessions(make_events):
    events = make_events([("ann", n, f"{n}") for n in range(5)])
    assert item_lists(cut(events, make_site(max_events=2))) == [["0", "1"], ["2", "3"], ["4"]]


def test_events_of_one_moment_are_ordered_by_event_id(make_events):
    events = make_events([("ann", 0, item) for item in "bca"])
    assert item_lists(cut(events, make_site())) == [["a", "b", "c"]]
    assert item_lists(cut(events.reverse(), make_site(max_events=2))) == [["a", "b"], ["c"]]


def test_a_session_tells_its_events_as_lists(make_events):
    events = make_events([("ann", 0, "a"), ("ann", 1.5, "b")], given="s1")
    row = cut(events, make_site()).row(0, named=True)
    assert row["offsets_seconds"] == [0.0, 90.0]
    assert row["event_types"] == ["view", "view"]
    assert (row["num_events"], row["user_id"], row["visitor"]) == (2, "ann", "ann")
    assert row["started_at"] == datetime(2026, 3, 1, tzinfo=UTC)
    assert row["ended_at"] == datetime(2026, 3, 1, 0, 1, 30, tzinfo=UTC)


def test_a_session_keeps_its_id_while_its_first_event_stays(make_events):
    few = cut(make_events([("ann", 0, "a")]), make_site())
    more = cut(make_events([("ann", 0, "a"), ("ann", 1, "b")]), make_site())
    other = cut(make_events([("ann", 0, "b"), ("ann", 1, "a")]), make_site())
    assert few["session_id"].item() == more["session_id"].item() != other["session_id"].item()


# --- which day a session belongs to


def test_a_session_over_midnight_belongs_to_the_day_of_its_first_event(make_events):
    events = make_events([("ann", DAY - 1, "a"), ("ann", DAY + 1, "b"), ("ann", DAY + 100, "c")])
    assert on(events, make_site(), DAY_1) == [["a", "b"]]
    assert on(events, make_site(), DAY_2) == [["c"]]


def test_a_day_is_a_day_in_the_zone_of_the_site(make_events):
    events = make_events([("ann", 60 * hour, f"{hour}") for hour in (4, 5, 28, 29)])
    new_york = make_site("America/New_York")  # midnight is at 5:00 UTC
    local = pl.col("occurred_at").dt.convert_time_zone("America/New_York").dt.date()
    events = events.with_columns(event_date=local)
    assert [on(events, new_york, day) for day in (DAY_1 - timedelta(days=1), DAY_1, DAY_2)] == [
        [["4"]],
        [["5"], ["28"]],
        [["29"]],
    ]


def test_a_day_of_25_hours_is_one_day(make_events):
    start = 238 * DAY - 120  # midnight of 25 October 2026 in Berlin, two hours ahead of UTC
    hours = {name: start + 60 * hour for name, hour in (("first", 0), ("last", 24.99), ("next", 25))}
    events = make_events([("ann", minute, name) for name, minute in hours.items()])
    local = pl.col("occurred_at").dt.convert_time_zone("Europe/Berlin").dt.date()
    events = events.with_columns(event_date=local)
    berlin = make_site("Europe/Berlin", gap="20s")
    assert on(events, berlin, date(2026, 10, 25)) == [["first"], ["last"]]
    assert on(events, berlin, date(2026, 10, 26)) == [["next"]]


def test_a_visit_of_many_days_is_cut_from_its_beginning(make_events):
    """A visitor who never falls silent: the sessions of each day are those of cutting everything at once."""
    events = make_events([("bot", 50 * n, f"{n}") for n in range(200)])
    site = make_site(gap="1h", max_events=9, max_duration="7h")
    days = [DAY_1 + timedelta(days=n) for n in range(8)]
    by_day = [session for day in days for session in on(events, site, day)]
    assert by_day == item_lists(cut(events, site))


# --- laws


@st.composite
def event_rows(draw: st.DrawFn) -> list[tuple[str, float, str, str | None]]:
    """Up to 25 events of two visitors within three days, with silences short and long."""
    silences = st.sampled_from([0, 0, 1, 29, 30, 31, 200, 900])
    rows, minute = [], draw(st.integers(0, DAY))
    for n in range(draw(st.integers(0, 25))):
        minute += draw(silences)
        rows.append((draw(st.sampled_from("ab")), minute, f"{n}", draw(st.sampled_from([None, None, "s"]))))
    return [row for row in rows if row[1] < 3 * DAY]


RULES = st.fixed_dictionaries(
    {
        "gap": st.sampled_from(["1m", "30m", "5h", "30h"]),
        "max_events": st.integers(2, 5),
        "max_duration": st.sampled_from(["30m", "2h", "24h"]),
    }
)


@settings(max_examples=30, deadline=None)
@given(rows=event_rows(), rules=RULES)
def test_every_event_is_in_one_session_and_no_session_breaks_a_rule(make_events, rows, rules):
    events, site = make_events(rows), make_site(**rules)
    sessions = cut(events, site)
    assert sorted(item for items in item_lists(sessions) for item in items) == sorted(events["item_id"])
    limits: Sessions = site.sessions
    for session in sessions.iter_rows(named=True):
        offsets = session["offsets_seconds"]
        silences = [later - earlier for earlier, later in itertools.pairwise(offsets)]
        assert all(0 <= silence <= limits.gap.total_seconds() for silence in silences)
        assert len(offsets) == session["num_events"] <= limits.max_events
        assert session["ended_at"] - session["started_at"] <= limits.max_duration
        assert offsets[-1] == (session["ended_at"] - session["started_at"]).total_seconds()
    assert sessions["session_id"].is_unique().all()


@settings(max_examples=15, deadline=None)
@given(rows=event_rows(), rules=RULES, random=st.randoms())
def test_neither_order_nor_days_matter(make_events, rows, rules, random):
    events, site = make_events(rows), make_site(**rules)
    shuffled = make_events(random.sample(rows, len(rows)))
    at_once = cut(events, site).drop("run", "time_part", "event_part")
    assert cut(shuffled, site).drop("run", "time_part", "event_part").equals(at_once)
    days = [DAY_1 + timedelta(days=n) for n in range(3)]
    by_day = pl.concat(sessions_of_day(shuffled.lazy(), site, day) for day in days).sort("started_at", "session_id")
    assert by_day.drop("run", "time_part", "event_part").equals(at_once)


@settings(max_examples=20, deadline=None)
@given(rows=event_rows(), minutes=st.integers(0, 59_999_999))
def test_a_trimmed_session_is_the_one_of_the_events_up_to_the_end_of_the_day(make_events, rows, minutes):
    site = make_site(gap="30m")
    shifted = [(user, minute + minutes / 60e6, item, given) for user, minute, item, given in rows]
    events = make_events(shifted)
    known = events.filter(pl.col("occurred_at") < day_end(DAY_1, "UTC"))
    drop = ("run", "time_part", "event_part", "first_event")
    trimmed = trim_sessions(cut(events, site).drop(drop).lazy(), DAY_1, site).collect()
    expected = cut(known, site).drop(drop)
    assert trimmed.sort("started_at", "session_id").equals(expected)


# --- sessions after the end of a day


@pytest.mark.parametrize("microseconds", [15, 19, 249, 251])
def test_not_a_microsecond_after_the_end_of_the_day_is_left(make_events, microseconds):
    """These as a fraction of a second, times a million, can be a little less than themselves."""
    sessions = cut(make_events([("ann", DAY - microseconds / 60e6, "a"), ("ann", DAY, "b")]), make_site()).lazy()
    assert item_lists(trim_sessions(sessions, DAY_1, make_site()).collect()) == [["a"]]


def test_nothing_after_the_end_of_the_day_is_left(make_events):
    rows = [
        ("ann", DAY - 10, "a"),
        ("ann", DAY - 1 / 60e6, "b"),
        ("ann", DAY, "c"),
        ("bob", DAY + 5, "d"),
        ("cas", 5, "e"),
    ]
    sessions = cut(make_events(rows), make_site()).lazy()
    trimmed = trim_sessions(sessions, DAY_1, make_site()).collect().sort("started_at")
    assert item_lists(trimmed) == [["e"], ["a", "b"]]
    assert trimmed["num_events"].to_list() == [1, 2]
    assert trimmed["ended_at"].to_list()[1] == datetime(2026, 3, 1, 23, 59, 59, 999_999, tzinfo=UTC)
    assert trimmed.schema == sessions.collect_schema()


# --- in the store


def row(day: int, item: str, hour: float = 10, user: str = "ann") -> str:
    at = datetime(2026, 3, day, tzinfo=UTC) + timedelta(hours=hour)
    return f"{user},,{item},{at.isoformat()},view"


def test_a_session_over_midnight_is_whole_once_the_next_day_is_in(small):
    small.deliver("2026-03-01", row(1, "a", 23.9))
    small.deliver("2026-03-02", row(2, "b", 0.1), row(2, "c", 5))
    small.ingest(DAY_1)
    assert small.sessionize(DAY_1) == {"events": 1, "sessions": 1}
    first = small.sessions
    small.ingest(DAY_2)
    assert small.sessionize(DAY_2) == {"events": 2, "sessions": 1}
    assert small.sessions.sort("started_at").select("session_date", "item_ids").rows() == [
        (DAY_1, ["a", "b"]),
        (DAY_2, ["c"]),
    ]
    assert first["session_id"].item() in small.sessions["session_id"]


def test_sessionizing_twice_changes_nothing(small):
    small.deliver("2026-03-01", row(1, "a"), row(1, "b", user="bob"))
    small.ingest(DAY_1)
    small.sessionize(DAY_1)
    before = small.tables()
    small.sessionize(DAY_1)
    assert small.tables() == before


def test_a_late_row_rebuilds_the_sessions_of_its_day_at_the_next_night(small):
    small.deliver("2026-03-01", row(1, "a", 10))
    small.deliver("2026-03-02", row(2, "x"), row(1, "late", 10.2))
    small.ingest(DAY_1)
    small.sessionize(DAY_1)
    small.ingest(DAY_2)
    small.sessionize(DAY_2)
    assert item_lists(small.sessions.sort("started_at")) == [["a", "late"], ["x"]]


def test_a_day_that_was_emptied_loses_its_sessions(small):
    path = small.deliver("2026-03-01", row(1, "a"))
    small.ingest(DAY_1)
    small.sessionize(DAY_1)
    path.write_text("")
    small.ingest(DAY_1)
    assert small.sessionize(DAY_1) == {"events": 0, "sessions": 0}
    assert small.sessions.is_empty()


def test_a_day_that_was_never_ingested_has_no_sessions_and_that_is_known(small):
    assert small.sessionize(DAY_1) == {"events": 0, "sessions": 0}
    before = small.tables()
    assert small.days["num_sessions"].item() == 0
    small.sessionize(DAY_1)
    assert small.tables() == before
    small.deliver("2026-03-01", row(1, "a"))
    small.ingest(DAY_1)
    assert small.sessionize(DAY_1) == {"events": 1, "sessions": 1}


def test_a_day_in_change_is_not_sessionized(small):
    small.deliver("2026-03-01", row(1, "a"))
    small.ingest(DAY_1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "commit", fail_at(Store.commit, 1))
        small.deliver("2026-03-01", row(1, "b"))
        with pytest.raises(OSError, match="power"):
            small.ingest(DAY_1)
    with pytest.raises(RetryableError, match=r"events of 2026-03-01 are in change: .* run `nightjar ingest` again"):
        small.sessionize(DAY_1)
    small.ingest(DAY_1)
    small.sessionize(DAY_1)
    assert item_lists(small.sessions) == [["b"]]


def say_passed(store: Store, day: date) -> None:
    """The verdict of a validation."""
    content = read_days(store).filter(pl.col("event_date") == day).select(present_content()).item()
    update_days(store, pl.DataFrame({"event_date": [day], "validated_content": [content], "verdict": ["passed"]}))


def fail_at(commit: Any, number: int) -> Any:
    """A commit that fails at its number-th call."""
    calls = itertools.count()

    def failing(self: Store, *args: Any, **options: Any) -> int:
        if next(calls) == number:
            raise OSError("power is gone")
        return commit(self, *args, **options)

    return failing


@pytest.mark.parametrize("number", range(3))
def test_after_a_power_cut_no_old_verdict_holds_for_new_sessions_and_the_next_run_finishes_the_work(small, number):
    small.deliver("2026-03-01", row(1, "a", 23.9))
    small.ingest(DAY_1)
    small.sessionize(DAY_1)
    say_passed(small.store, DAY_1)
    assert passed_days(small.store, DAY_1, DAY_2) == [DAY_1]
    small.deliver("2026-03-02", row(2, "b", 0.1))
    small.ingest(DAY_2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "commit", fail_at(Store.commit, number))
        with pytest.raises(OSError, match="power"):
            small.sessionize(DAY_2)
    assert passed_days(small.store, DAY_1, DAY_2) == ([] if number else [DAY_1])
    small.sessionize(DAY_2)
    assert item_lists(small.sessions) == [["a", "b"]]
    assert small.days["num_sessions"].to_list() == [1, 0]
