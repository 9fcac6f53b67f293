import logging
import re
from datetime import date
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from pipeline.days import passed_days, read_days
from pipeline.errors import ConfigurationError, ContractError
from pipeline.validate import validate_stale, write_index

DAY_1, DAY_2, DAY_3, DAY_4 = (date(2026, 3, day) for day in (1, 2, 3, 4))


def row(day: int, item: str) -> str:
    return f"ann,,{item},2026-03-{day:02}T10:00:00Z,view"


def verdicts(small: Any) -> dict[date, str]:
    return dict(read_days(small.store).select("event_date", "verdict").iter_rows())


class Heard(logging.Handler):
    """What anyone logged."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.names.append(record.name)


@pytest.fixture(scope="module")
def judged(make_small_in: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Day 1 is good; day 2 has too few events and too many rejected rows. Great Expectations is slow: judged once."""
    rules = {"min_events": 2, "max_rejected_share": 0.4}
    small = make_small_in(tmp_path_factory.mktemp("home"), validation=rules)
    small.deliver("2026-03-01", row(1, "a"), row(1, "b"), row(1, "c"), "bad")
    small.deliver("2026-03-02", row(2, "a"), "bad", "worse")
    small.ingest(DAY_1, DAY_2)
    small.sessionize(DAY_2)
    heard = Heard()
    logging.getLogger().addHandler(heard)
    with pytest.raises(ContractError) as error:
        validate_stale(small.site, small.store, DAY_2)
    logging.getLogger().removeHandler(heard)
    docs = small.home / "data_docs/small"
    return SimpleNamespace(small=small, error=error.value, docs=docs, heard=heard.names, verdicts=verdicts(small))


def test_a_good_day_passes_and_a_bad_one_fails(judged):
    assert judged.verdicts == {DAY_1: "passed", DAY_2: "failed"}
    assert passed_days(judged.small.store, DAY_1, DAY_2) == [DAY_1]


def test_a_broken_contract_says_which_promise_of_which_day_and_where_the_report_lies(judged):
    assert judged.error.exit_code == 3
    lines = str(judged.error).splitlines()
    assert lines[0] == "small: the data broke its contract; no model will see these days:"
    assert re.fullmatch(r"  2026-03-02: day\.num_events: .* \{'min_value': 2.*; 1 rows break it, like \[1\]", lines[1])
    assert re.fullmatch(r"  2026-03-02: day\.rejected_share: .* \{'max_value': 0\.4.*\[0\.66\d*\]", lines[2])
    assert len(lines) == 4
    assert str(judged.docs / "index.html") in lines[3]


def test_great_expectations_is_silent(judged):
    assert [name for name in judged.heard if name.startswith("great_expectations")] == []


def test_every_judged_day_has_its_pages(judged):
    for day, table in ((DAY_1, "events"), (DAY_1, "sessions"), (DAY_1, "day"), (DAY_2, "day")):
        (page,) = judged.docs.glob(f"validations/{table}/{day}/*/*.html")
        assert "Expectation" in page.read_text()


def test_the_index_lists_every_judged_day_newest_first_and_links_to_its_pages(judged):
    text = (judged.docs / "index.html").read_text()
    rows = re.findall(
        r'<tr class="(\w+)"><td>([\d-]+)</td><td>(\w+)</td><td>(\d+)</td><td>(\d+)</td><td>(\d+)</td>', text
    )
    assert rows == [
        ("failed", "2026-03-02", "failed", "1", "1", "2"),
        ("passed", "2026-03-01", "passed", "3", "1", "1"),
    ]
    links = re.findall(r'href="([^"]+)"', text)
    assert len(links) == 6
    assert all((judged.docs / link).is_file() for link in links)


def test_the_index_needs_no_network_and_escapes_what_it_shows(judged):
    text = (judged.docs / "index.html").read_text()
    assert "//" not in text.replace("<!doctype html>", "")
    assert "<script" not in text
    named = judged.small.site.model_copy(update={"name": "<b>shop</b>"})
    write_index(named, judged.small.store, judged.docs.parent / "named")
    named_text = (judged.docs.parent / "named/index.html").read_text()
    assert "&lt;b&gt;shop" in named_text
    assert "<b>" not in named_text


def test_a_day_that_comes_again_has_no_verdict_until_it_is_judged_again(judged):
    small = judged.small
    small.deliver("2026-03-01", row(1, "a"), row(1, "b"))
    small.deliver("2026-03-02", row(2, "a"), row(2, "b"))
    small.ingest(DAY_1, DAY_2)
    assert passed_days(small.store, DAY_1, DAY_2) == []
    small.sessionize(DAY_2)
    assert passed_days(small.store, DAY_1, DAY_2) == []
    write_index(small.site, small.store, judged.docs)
    assert (judged.docs / "index.html").read_text().count('class="outdated"') == 2
    answer = validate_stale(small.site, small.store, DAY_2)
    assert answer == {"verdict": "passed", "report": str(judged.docs / "index.html")}
    assert passed_days(small.store, DAY_1, DAY_2) == [DAY_1, DAY_2]
    assert (judged.docs / "index.html").read_text().count('class="passed"') == 2


@pytest.mark.parametrize("has_events", [False, True])
def test_a_day_without_sessions_is_refused(small, has_events):
    if has_events:
        small.deliver("2026-03-04", row(4, "a"))
        small.ingest(DAY_4)
    with pytest.raises(ConfigurationError, match=r"2026-03-04 has no sessions to validate\. Run `nightjar ingest`"):
        validate_stale(small.site, small.store, DAY_4)


def test_an_empty_day_passes_where_none_is_expected(make_small):
    small = make_small(validation={"min_events": 0})
    small.deliver("2026-03-01")
    small.ingest(DAY_1)
    small.sessionize(DAY_1)
    assert validate_stale(small.site, small.store, DAY_1)["verdict"] == "passed"


def test_rows_of_another_day_or_twice_the_same_break_the_contract(make_small):
    """What only a fault of ours could bring about: events written past ingest."""
    from pipeline.tables import events_table

    small = make_small()
    small.deliver("2026-03-01", row(1, "a"))
    small.ingest(DAY_1)
    small.sessionize(DAY_1)
    table = events_table([])
    rows = small.store.scan(table).collect()
    moved = rows.with_columns(pl.col("occurred_at").dt.offset_by("1d"), event_type=pl.lit("?"), item_id=pl.lit(None))
    small.store.replace(table, pl.concat([rows, moved], how="vertical_relaxed"), {"event_date": [DAY_1]})
    with pytest.raises(ContractError) as error:
        validate_stale(small.site, small.store, DAY_1)
    broken = re.findall(r"events\.(\w+):", str(error.value))
    assert sorted(broken) == ["event_id", "event_type", "item_id", "occurred_at"]
