import itertools
from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dates import day_end, days_between
from pipeline.days import passed_days, present_content, read_days, update_days
from pipeline.errors import ConfigurationError, RetryableError
from pipeline.publish import Store
from pipeline.sessionize import sessions_of_day
from pipeline.sessions import trim_sessions
from pipeline.settings import PipelineSite, Sessions
from pipeline.tables import OPEN_SESSIONS, sessions_table

DAY_1, DAY_2, DAY_3 = (date(2026, 3, day) for day in (1, 2, 3))
DAY = 24 * 60
"""Minutes."""


def make_site(time_zone: str = "UTC", **rules: Any) -> PipelineSite:
    source = {"events": "{date}.csv", "columns": {"user_id": "u", "item_id": "i", "occurred_at": "t"}}
    told = {"name": "a", "store": "s", "time_zone": time_zone, "source": source, "sessions": rules}
    return PipelineSite.model_validate(told)


def cut(events: pl.DataFrame, site: PipelineSite) -> pl.DataFrame:
    """All sessions of some events, made day by day, oldest first."""
    opened, parts = OPEN_SESSIONS.empty(), [sessions_table([]).empty()]
    days = events["event_date"].sort()
    for day in days_between(days[0], days[-1]) if events.height else []:
        made = sessions_of_day(opened.lazy(), events.lazy(), site, day)
        opened = made.still_open
        parts.append(made.sessions)
    return pl.concat(parts, how="diagonal_relaxed").sort("started_at", "session_id")


def item_lists(sessions: pl.DataFrame) -> list[list[str]]:
    return sessions["item_ids"].to_list()


def on(events: pl.DataFrame, site: PipelineSite, day: date) -> list[list[str]]:
    """Item lists of the sessions that start on a day."""
    return item_lists(cut(events, site).filter(pl.col("session_date") == day))


def slowly(events: pl.DataFrame, site: PipelineSite) -> list[tuple[Any, ...]]:
    """The rules in plain Python, over all events at once: (visitor, start, end, items), oldest first."""
    rules, sessions, last = site.sessions, [], None
    key = pl.col("visitor", "given_session_id").fill_null("")
    for row in events.sort(key, "occurred_at", "event_id").iter_rows(named=True):
        at, run_of, kind = (
            row["occurred_at"],
            (row["visitor"], row["given_session_id"]),
            (row["item_id"], row["event_type"]),
        )
        if last is None or last[0] != run_of or at - last[1] > rules.gap or at >= end_of(sessions[-1], site):
            sessions.append([row["visitor"], at, at, [row["item_id"]], row["event_date"]])
        elif rules.repeats == "drop" and kind == last[2]:
            sessions[-1][2] = at
        elif len(sessions[-1][3]) == rules.max_events:
            sessions.append([row["visitor"], at, at, [row["item_id"]], row["event_date"]])
        else:
            sessions[-1][2] = at
            sessions[-1][3].append(row["item_id"])
        last = (run_of, at, kind)
    return sorted(tuple(session) for session in sessions)


def end_of(session: list[Any], site: PipelineSite) -> datetime:
    """The instant from which on nothing belongs to a session: it lasted too long, or a third day begins."""
    return min(session[1] + site.sessions.max_duration, day_end(session[4] + timedelta(days=1), site.time_zone))


def as_told_slowly(sessions: pl.DataFrame) -> list[tuple[Any, ...]]:
    return sorted(sessions.select("visitor", "started_at", "ended_at", "item_ids", "session_date").rows())


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


# --- repeats


REPEATS = [("ann", 0, "a"), ("ann", 20, "a"), ("ann", 40, "a"), ("ann", 60, "b"), ("ann", 61, "a"), ("bob", 62, "a")]


def test_repeats_of_an_item_are_kept_or_dropped_as_the_site_says(make_events):
    assert item_lists(cut(make_events(REPEATS), make_site())) == [["a", "a", "a", "b", "a"], ["a"]]
    assert item_lists(cut(make_events(REPEATS), make_site(repeats="drop"))) == [["a", "b", "a"], ["a"]]


def test_a_dropped_repeat_keeps_its_session_alive_and_does_not_fill_it(make_events):
    sessions = cut(make_events(REPEATS[:3]), make_site(repeats="drop", gap="25m"))
    assert item_lists(sessions) == [["a"]]
    assert sessions["ended_at"].item() - sessions["started_at"].item() == timedelta(minutes=40)
    assert item_lists(cut(make_events(REPEATS[:5]), make_site(repeats="drop", max_events=2))) == [["a", "b"], ["a"]]


def test_an_item_that_is_viewed_and_then_bought_is_no_repeat(make_events):
    events = make_events(REPEATS[:2]).with_columns(event_type=pl.Series(["view", "purchase"]))
    assert item_lists(cut(events, make_site(repeats="drop"))) == [["a", "a"]]


def test_repeats_over_midnight_are_seen(make_events):
    events = make_events([("ann", DAY - 1, "a"), ("ann", DAY + 1, "a"), ("ann", DAY + 2, "b")])
    assert item_lists(cut(events, make_site(repeats="drop"))) == [["a", "b"]]


# --- ties


def test_ties_are_counted(make_events):
    rows = [("ann", 0, "a"), ("ann", 0, "b"), ("ann", 1, "c"), ("bob", 0, "a"), ("ann", 1, "d", "s")]
    made = sessions_of_day(OPEN_SESSIONS.empty().lazy(), make_events(rows).lazy(), make_site(), DAY_1)
    assert made.num_tied == 2


def test_two_visitors_whose_hashes_clash_are_told_apart(make_events, monkeypatch):
    monkeypatch.setattr(pl.Expr, "hash", lambda self, *seeds: pl.int_range(pl.len()).cast(pl.UInt64) * 0)
    events = make_events([("ann", 0, "a"), ("bob", 1, "b"), ("ann", 2, "c"), ("ann", 2, "d")])
    assert item_lists(cut(events, make_site())) == [["a", "c", "d"], ["b"]]


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


def test_a_session_never_touches_a_third_day(make_events):
    """Where a day has 23 hours, 24 hours can reach over two midnights."""
    start = 7 * DAY + 4 * 60 + 40  # 23:40 in New York, on the eve of a day of 23 hours
    events = make_events([("ann", start + 30 * n, f"{n}") for n in range(48)])
    local = pl.col("occurred_at").dt.convert_time_zone("America/New_York").dt.date()
    sessions = cut(events.with_columns(event_date=local), make_site("America/New_York", gap="2h"))
    assert sessions["num_events"].to_list() == [47, 1]
    assert sessions["session_date"].to_list() == [date(2026, 3, 7), date(2026, 3, 9)]


def test_a_visit_of_many_days_is_cut_from_its_beginning(make_events):
    """A visitor who never falls silent: the sessions of each day are those of cutting everything at once."""
    events = make_events([("bot", 50 * n, f"{n}") for n in range(200)])
    site = make_site(gap="1h", max_events=9, max_duration="7h")
    days = [DAY_1 + timedelta(days=n) for n in range(8)]
    by_day = [session for day in days for session in on(events, site, day)]
    assert by_day == item_lists(cut(events, site))


# --- laws


@st.composite
def event_rows(
    draw: st.DrawFn, items: st.SearchStrategy[str] | None = None
) -> list[tuple[str, float, str, str | None]]:
    """Up to 25 events of two visitors within three days, with silences short and long; each of an item of its own."""
    silences = st.sampled_from([0, 0, 1, 29, 30, 31, 200, 900])
    rows, minute = [], draw(st.integers(0, DAY))
    for n in range(draw(st.integers(0, 25))):
        minute += draw(silences)
        item = draw(items) if items is not None else f"{n}"
        rows.append((draw(st.sampled_from("ab")), minute, item, draw(st.sampled_from([None, None, "s"]))))
    return [row for row in rows if row[1] < 3 * DAY]


RULES = st.fixed_dictionaries(
    {
        "gap": st.sampled_from(["1m", "30m", "5h", "30h"]),
        "max_events": st.integers(2, 5),
        "max_duration": st.sampled_from(["30m", "2h", "24h"]),
        "repeats": st.sampled_from(["keep", "drop"]),
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


@settings(max_examples=60, deadline=None)
@given(
    rows=event_rows(items=st.sampled_from("xxy")),
    rules=RULES,
    zone=st.sampled_from(["UTC", "America/New_York"]),
    first_day=st.sampled_from([0, 6]),  # 8 March has 23 hours in New York
    random=st.randoms(),
)
def test_day_by_day_gives_what_the_rules_say_in_plain_python(make_events, rows, rules, zone, first_day, random):
    site = make_site(zone, **rules)
    shuffled = [(user, first_day * DAY + minute, *rest) for user, minute, *rest in random.sample(rows, len(rows))]
    local = pl.col("occurred_at").dt.convert_time_zone(zone).dt.date()
    events = make_events(shuffled).with_columns(event_date=local)
    assert as_told_slowly(cut(events, site)) == slowly(events, site)


@settings(max_examples=20, deadline=None)
@given(rows=event_rows(), minutes=st.integers(0, 59_999_999))
def test_a_trimmed_session_is_the_one_of_the_events_up_to_the_end_of_the_day(make_events, rows, minutes):
    site = make_site(gap="30m")
    shifted = [(user, minute + minutes / 60e6, item, given) for user, minute, item, given in rows]
    events = make_events(shifted)
    known = events.filter(pl.col("occurred_at") < day_end(DAY_1, "UTC"))
    trimmed = trim_sessions(cut(events, site).lazy(), DAY_1, site).collect()
    expected = cut(known, site)
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


# --- the law: day by day, in any order, with re-runs, late files and any number of buckets, is as all at once


DAYS = (DAY_1, DAY_2, DAY_3)


@st.composite
def deliveries(draw: st.DrawFn) -> dict[str, list[str]]:
    """Files of rows, most of them in time, some late, some twice; with long chains, and given ids that come back."""
    files: dict[str, list[str]] = {f"{day}": [] for day in DAYS} | {f"{day}-late": [] for day in DAYS}
    rows = draw(event_rows(items=st.sampled_from("xxyz")))
    for user, minute, item, given_id in rows:
        at = datetime(2026, 3, 1, tzinfo=UTC) + timedelta(minutes=minute)
        line = f"{user},{given_id or ''},{item},{at.isoformat()},view"
        for _ in range(draw(st.sampled_from([1, 1, 2]))):
            files[f"{at.date()}{draw(st.sampled_from(['', '', '-late']))}"].append(line)
    return files


@st.composite
def orders(draw: st.DrawFn) -> list[tuple[str, date]]:
    """Steps of days in any order, some of them twice; at the end, each day sessionized once more."""
    steps = [(step, day) for step in ("ingest", "sessionize") for day in DAYS]
    return draw(st.permutations(steps + draw(st.lists(st.sampled_from(steps), max_size=3))))


LAW = {
    "files": deliveries(),
    "order": orders(),
    "late_order": orders(),
    "rules": RULES,
    "buckets": st.integers(1, 3),
}


@settings(max_examples=2, deadline=None)
@given(**LAW)
def test_any_order_of_nights_is_as_all_at_once(make_small_in, tmp_path_factory, **drawn):
    check_the_law(make_small_in, tmp_path_factory.mktemp("law"), **drawn)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(**LAW)
def test_any_order_of_many_nights_is_as_all_at_once(make_small_in, tmp_path_factory, **drawn):
    check_the_law(make_small_in, tmp_path_factory.mktemp("law"), **drawn)


def check_the_law(make_small_in, home, files, order, late_order, rules, buckets):
    """Nights in some order, then late files and nights in another order, against one pass over everything."""
    once = make_small_in(home / "once", buckets=1, sessions=rules)
    small = make_small_in(home / "small", buckets=buckets, sessions=rules)
    for name, rows in files.items():
        once.deliver(name, *rows)
        small.deliver(name, *([] if name.endswith("late") else rows))
    run_steps(once, [(step, day) for step in ("ingest", "sessionize") for day in DAYS])
    run_steps(small, order)
    for name, rows in files.items():
        small.deliver(name, *rows)
    run_steps(small, late_order)
    run_steps(small, [("sessionize", day) for _, day in late_order])
    told, expected = (each.sessions.drop("user_bucket").sort("session_id") for each in (small, once))
    assert told.equals(expected)
    assert as_told_slowly(small.sessions) == slowly(once.events, once.site)
    assert small.days.equals(once.days)


def run_steps(small, steps):
    for step, day in steps:
        if step == "sessionize" and day not in read_days(small.store)["event_date"]:
            with pytest.raises(ConfigurationError, match="no ingest has brought any"):
                small.sessionize(day)
        else:
            getattr(small, step)(day)


# --- in the store


def row(day: int, item: str, hour: float = 10, user: str = "ann") -> str:
    at = datetime(2026, 3, day, tzinfo=UTC) + timedelta(hours=hour)
    return f"{user},,{item},{at.isoformat()},view"


def test_a_session_over_midnight_is_whole_once_the_next_day_is_in(small):
    small.deliver("2026-03-01", row(1, "a", 23.9))
    small.deliver("2026-03-02", row(2, "b", 0.1), row(2, "c", 5))
    small.ingest(DAY_1)
    assert small.sessionize(DAY_1).items() >= {"events": 1, "sessions": 1}.items()
    first = small.sessions
    small.ingest(DAY_2)
    assert small.sessionize(DAY_2).items() >= {"events": 2, "sessions": 1}.items()
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


def test_a_change_goes_on_day_by_day_until_the_sessions_open_at_midnight_are_what_they_were(small):
    """A visit without silence over two days: a row before its first one moves all of its cuts."""
    hours = [*range(12, 47), *range(48, 60)]
    for day in (1, 2, 3, 4):
        rows = [row(1, f"{hour}", hour) for hour in hours if hour // 24 == day - 1]
        small.deliver(f"2026-03-0{day}", *rows, row(day, "x", 20, "bob"))
    small = small.with_rules(gap="1h", max_duration="5h")
    days = [date(2026, 3, day) for day in (1, 2, 3, 4)]
    small.ingest(*days)
    small.sessionize(*days)
    assert small.sessionize(DAY_1)["days_built"] == ["2026-03-01"]
    small.deliver("2026-03-01-late", row(1, "first", 11))
    small.ingest(DAY_1)
    assert small.sessionize(DAY_1)["days_built"] == ["2026-03-01", "2026-03-02"]
    small.deliver("2026-03-01-later", row(1, "unheard of", 15, "cas"))
    small.ingest(DAY_1)
    assert small.sessionize(DAY_1)["days_built"] == ["2026-03-01"]
    assert as_told_slowly(small.sessions) == slowly(small.events, small.site)


def test_other_rules_make_all_days_stale(small):
    small.deliver("2026-03-01", row(1, "a", 10), row(1, "b", 10.4))
    small.ingest(DAY_1)
    small.sessionize(DAY_1)
    small.deliver("2026-03-02")
    small.ingest(DAY_2)
    small = small.with_rules(gap="20m")
    small.sessionize(DAY_2)
    assert item_lists(small.sessions.sort("started_at")) == [["a"], ["b"]]


def test_a_day_that_was_emptied_loses_its_sessions(small):
    path = small.deliver("2026-03-01", row(1, "a"))
    small.ingest(DAY_1)
    small.sessionize(DAY_1)
    path.write_text("")
    small.ingest(DAY_1)
    assert small.sessionize(DAY_1).items() >= {"events": 0, "sessions": 0}.items()
    assert small.sessions.is_empty()


def test_a_day_that_was_never_delivered_is_refused_and_one_that_was_delivered_empty_is_a_fact(small):
    with pytest.raises(ConfigurationError, match="no events of 2026-03-01: no ingest has brought any"):
        small.sessionize(DAY_1)
    assert small.days.is_empty()
    small.deliver("2026-03-01")
    small.ingest(DAY_1)
    assert small.sessionize(DAY_1).items() >= {"events": 0, "sessions": 0}.items()
    before = small.tables()
    assert small.days["num_sessions"].item() == 0
    small.sessionize(DAY_1)
    assert small.tables() == before
    small.deliver("2026-03-01", row(1, "a"))
    small.ingest(DAY_1)
    assert small.sessionize(DAY_1).items() >= {"events": 1, "sessions": 1}.items()


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
