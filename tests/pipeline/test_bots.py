from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.bots import fewest_events, find_bots, measure, suggest
from pipeline.settings import Bots

DAY = date(2026, 3, 1)
START = datetime(2026, 3, 1, tzinfo=UTC)


def events(*rows: tuple[str, float, str], agent: str | None = None) -> pl.DataFrame:
    """Events from (visitor, minute, item)."""
    told = [(v, DAY, START + timedelta(minutes=minute), item, agent) for v, minute, item in rows]
    schema = {"visitor": pl.String, "event_date": pl.Date, "occurred_at": pl.Datetime("us", "UTC")}
    return pl.DataFrame(told, schema=schema | {"item_id": pl.String, "told_agent": pl.String}, orient="row")


def clicks(visitor: str, number: int, pause: float = 10.0, items: int = 1) -> list[tuple[str, float, str]]:
    return [(visitor, n * pause, f"i{n % items}") for n in range(number)]


def found(rows: pl.DataFrame, **rules: Any) -> dict[str, str]:
    bots = find_bots(rows, Bots.model_validate(rules))
    assert bots["event_date"].unique().to_list() in ([], [DAY])
    return dict(bots.select("visitor", "detail").iter_rows())


def test_without_rules_nobody_is_a_bot():
    assert found(events(*clicks("v", 500, 0.001, 500), agent="bot")) == {}
    assert not Bots().are_judged


def test_a_bot_has_more_events_in_a_day_than_the_limit():
    rows = events(*clicks("at", 3), *clicks("over", 4))
    assert found(rows, events_per_day=3) == {"over": "events_per_day: 4 > 3"}


def test_a_bot_has_more_events_in_a_minute_of_the_clock():
    slow, fast = clicks("slow", 4, 1.0), [("fast", 7 + n / 10, "x") for n in range(4)]
    over_two = [("over two", 0.8 + n / 10, "x") for n in range(4)]
    assert found(events(*slow, *fast, *over_two), events_per_minute=3) == {"fast": "events_per_minute: 4 > 3"}


def test_a_bot_takes_in_a_catalogue_item_by_item():
    rows = events(*clicks("crawler", 10, items=9), *clicks("person", 10, items=5), *clicks("short", 9, items=9))
    rules = {"distinct_items_share": 0.9, "distinct_items_from": 10}
    assert found(rows, **rules) == {"crawler": "distinct_items_share: 0.9 >= 0.9 in 10 events"}


def test_a_bot_calls_itself_one_in_any_of_its_events():
    rows = pl.concat(
        [events(("v", 1, "x"), agent=agent) for agent in ("Mozilla/5.0", "zebot/1", "Robot/2", None)]
        + [events(("w", 1, "x"), agent="Mozilla/5.0"), events(("u", 1, "x"))]
    )
    rule = {"column": "ua", "pattern": "(?i)bot"}
    assert found(rows, user_agent=rule) == {"v": "user_agent: Robot/2"}


def test_the_first_rule_that_holds_is_told():
    rows = events(*clicks("v", 4, 0.01, 4), agent="bot")
    every = {"events_per_day": 3, "events_per_minute": 3, "distinct_items_share": 1.0, "distinct_items_from": 2}
    agent = {"user_agent": {"column": "ua", "pattern": "bot"}}
    told = [found(rows, **rules)["v"].split(":")[0] for rules in (every | agent, every, dict(list(every.items())[1:]))]
    assert told == ["user_agent", "events_per_day", "events_per_minute"]


def test_days_are_judged_apart():
    rows = pl.concat(
        [events(*clicks("v", 3)), events(*clicks("v", 3)).with_columns(event_date=DAY + timedelta(days=1))]
    )
    assert found(rows, events_per_day=3) == {}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 4), st.sampled_from("xy")), max_size=20), st.data())
def test_the_verdict_does_not_depend_on_the_order_and_measures_are_what_they_say(rows, data):
    rules = {"events_per_day": 5, "events_per_minute": 2, "distinct_items_share": 0.6, "distinct_items_from": 3}
    verdict = found(events(*rows), **rules)
    assert found(events(*data.draw(st.permutations(rows))), **rules) == verdict
    broken = set()
    for visitor in "abc":
        own = [(minute, item) for who, minute, item in rows if who == visitor]
        fastest = max([sum(minute == m for minute, _ in own) for m in range(5)])
        is_crawling = len(own) >= 3 and len({item for _, item in own}) / len(own) >= 0.6
        if len(own) > 5 or fastest > 2 or is_crawling:
            broken.add(visitor)
    assert set(verdict) == broken


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({"events_per_day": 300, "events_per_minute": 30}, 31),
        ({"events_per_day": 300, "distinct_items_share": 0.9, "distinct_items_from": 40}, 40),
    ],
)
def test_only_the_busy_are_measured(rules, expected):
    assert fewest_events(Bots.model_validate(rules)) == expected


def test_a_suggestion_says_what_a_limit_would_cut():
    rows = events(*[(f"v{n}", 1, "x") for n in range(99)], *clicks("crawler", 101, 0.001, 101))
    told = {(row["measure"], row["quantile"]): row for row in suggest(measure(rows), Bots())}
    assert told["events_per_day", "50 %"] == {
        "measure": "events_per_day",
        "quantile": "50 %",
        "limit": 1,
        "visitors": 1,
        "events": 101 / 200,
    }
    assert told["events_per_day", "max"]["limit"] == 101
    assert told["events_per_day", "max"]["visitors"] == 0
    assert told["distinct_items_share", "50 %"]["limit"] == 1.0, "only the crawler has enough events to be told"
    assert told["distinct_items_share", "50 %"]["visitors"] == 1


def test_no_events_suggest_nothing():
    assert suggest(measure(events()), Bots()) == []
