from datetime import date

import pytest

from pipeline.errors import ConfigurationError
from pipeline.thresholds import suggest_thresholds

DAY = date(2026, 3, 2)


def row(item: str, user: str, day: int = 2, minute: int = 0) -> str:
    return f"{user},,{item},2026-03-{day:02}T10:{minute:02}:00Z,view"


def test_limits_are_told_from_the_rows_of_the_day_without_a_store(make_small):
    small = make_small(source={"bots": {"events_per_day": 2, "distinct_items_from": 4}})
    people = [row("x", f"v{n}") for n in range(9)]
    crawler = [row(f"i{n}", "crawler", minute=n) for n in range(10)]
    late, again = [row("x", "v1", day=1)] * 5, [row("x", "v1")] * 3
    small.deliver("2026-03-02", *people, *crawler, *late, *again)
    told = {(line["measure"], line["quantile"]): line for line in suggest_thresholds(small.site, DAY)}
    half = {"measure": "events_per_day", "quantile": "50 %", "limit": 1, "visitors": 1, "events": 10 / 19}
    assert told["events_per_day", "50 %"] == half, (
        "a bot under the rules of now counts; duplicates and late rows do not"
    )
    assert told["events_per_minute", "max"]["limit"] == 1
    assert told["distinct_items_share", "max"]["visitors"] == 1
    assert [path.name for path in small.home.iterdir()] == ["raw"]


def test_no_row_of_the_day_is_nothing_to_choose_from(make_small):
    small = make_small()
    small.deliver("2026-03-02", row("", "v"), row("x", "v", day=1))
    assert suggest_thresholds(small.site, DAY) == []


def test_a_day_without_files_is_an_error(make_small):
    with pytest.raises(ConfigurationError, match="no input for 2026-03-02"):
        suggest_thresholds(make_small().site, DAY)
