import logging
import re
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from pipeline.catalogue import update_items
from pipeline.contract import contract
from pipeline.data_docs import day_page, docs_folder, write_index
from pipeline.days import passed_days, read_days, update_days
from pipeline.errors import ConfigurationError, ContractError
from pipeline.explain import explain, in_lines
from pipeline.measures import EVENTS_AT_ONCE
from pipeline.settings import PipelineSite
from pipeline.tables import events_table, sessions_table
from pipeline.validate import validate_stale

NO_SESSION_IDS = {"events.given_session_id_null_share": {"high": 1}}  # the log of these tests has none
DAY_1, DAY_2, DAY_3, DAY_4, DAY_5 = (date(2026, 3, day) for day in (1, 2, 3, 4, 5))


def row(day: int, item: str, minute: int = 0, user: str = "ann") -> str:
    return f"{user},,{item},2026-03-{day:02}T10:{minute:02}:00Z,view"


def prepare(small: Any, *days: date) -> None:
    """Everything before validation."""
    small.ingest(*days)
    for day in days:
        update_items(small.site, small.store, day)
    small.sessionize(*days)


def verdicts(small: Any) -> dict[date, str]:
    return dict(read_days(small.store).select("event_date", "verdict").iter_rows())


def broken_rules(error: Exception) -> list[str]:
    """Names of the rules that an error tells of."""
    return re.findall(r"^  [\d-]+: ([\w.]+):", str(error), flags=re.MULTILINE)


def explained(small: Any, day: date, name: str) -> pl.DataFrame:
    return pl.concat(explain(small.site, small.store, day, name)[1])


class Heard(logging.Handler):
    """What anyone logged."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture(scope="module")
def judged(make_small_in: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Day 1 is good; day 2 has too few events, too many rejected rows and, as a warning, too many ties."""
    rules = {"day.num_events": {"low": 3}, "day.rejected_share": {"high": 0.4}, "events.tie_share": {"high": 0.9}}
    small = make_small_in(tmp_path_factory.mktemp("home"), validation={"rules": NO_SESSION_IDS | rules})
    small.deliver("2026-03-01", row(1, "a"), row(1, "b", 1), row(1, "c", 2), "bad")
    small.deliver("2026-03-02", row(2, "a"), row(2, "b"), "bad", "worse")
    prepare(small, DAY_1, DAY_2)
    heard = Heard()
    logging.getLogger().addHandler(heard)
    with pytest.raises(ContractError) as error:
        validate_stale(small.site, small.store, DAY_2)
    logging.getLogger().removeHandler(heard)
    docs = small.home / "data_docs/small"
    return SimpleNamespace(small=small, error=error.value, docs=docs, heard=heard.records, verdicts=verdicts(small))


# Verdicts


def test_a_good_day_passes_and_a_bad_one_fails(judged):
    assert judged.verdicts == {DAY_1: "passed", DAY_2: "failed"}
    assert passed_days(judged.small.store, DAY_1, DAY_2) == [DAY_1]


def test_a_broken_contract_says_which_promise_of_which_day_what_was_found_and_where_the_report_lies(judged):
    assert judged.error.exit_code == 3
    lines = str(judged.error).splitlines()
    assert lines[0] == "small: the data broke its contract; no model will see these days:"
    assert lines[1] == "  2026-03-02: day.num_events: the day has events; found 2, allowed is at least 3"
    assert lines[2].startswith("  2026-03-02: day.rejected_share: ")
    assert lines[2].endswith("; found 0.5, allowed is at most 0.4")
    assert len(lines) == 4
    assert str(judged.docs / "index.html") in lines[3]


def test_a_broken_warning_is_told_counted_and_stops_nothing(judged):
    (told,) = [record for record in judged.heard if record.levelno == logging.WARNING]
    assert "2026-03-02: events.tie_share: " in told.getMessage()
    assert told.getMessage().endswith("found 1, allowed is at most 0.9")
    warnings = read_days(judged.small.store).select("event_date", "num_warnings").rows()
    assert warnings == [(DAY_1, 0), (DAY_2, 1)]


def test_great_expectations_is_silent(judged):
    assert [record.name for record in judged.heard if record.name.startswith("great_expectations")] == []


def test_a_day_that_comes_again_has_no_verdict_until_it_is_judged_again(make_small):
    small = make_small(validation={"rules": NO_SESSION_IDS | {"day.num_events": {"low": 2}}})
    small.deliver("2026-03-01", row(1, "a"), row(1, "b"))
    prepare(small, DAY_1)
    first = validate_stale(small.site, small.store, DAY_1)
    index = small.home / "data_docs/small/index.html"
    assert first == {"verdict": "passed", "warnings": {"2026-03-01": ["events.tie_share"]}, "report": str(index)}
    small.deliver("2026-03-01", row(1, "a"), row(1, "b", 1), row(1, "c", 2))
    prepare(small, DAY_1)
    assert passed_days(small.store, DAY_1, DAY_1) == []
    write_index(small.site, small.store)
    assert "outdated</span>" in index.read_text()
    assert validate_stale(small.site, small.store, DAY_1)["warnings"] == {}
    assert passed_days(small.store, DAY_1, DAY_1) == [DAY_1]
    assert "outdated</span>" not in index.read_text()


@pytest.mark.parametrize("has_events", [False, True])
def test_a_day_without_sessions_is_refused(small, has_events):
    if has_events:
        small.deliver("2026-03-04", row(4, "a"))
        small.ingest(DAY_4)
    for judge in (validate_stale, lambda *told: explain(*told, "day.volume")):
        with pytest.raises(ConfigurationError, match=r"2026-03-04 has no sessions to validate\. Run `nightjar ingest`"):
            judge(small.site, small.store, DAY_4)


def test_an_empty_day_passes_where_none_is_expected(make_small):
    small = make_small(validation={"rules": {"day.num_events": {"low": 0}}})
    small.deliver("2026-03-01")
    prepare(small, DAY_1)
    assert validate_stale(small.site, small.store, DAY_1)["verdict"] == "passed"
    assert "not judged" in day_page(small.site, DAY_1).read_text()


# Each promise can be broken, by what only a fault of ours could bring about


@pytest.fixture(scope="module")
def tampered(make_small_in: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A day in whose tables nearly everything is wrong, written past ingest and sessionize."""
    source = {"context": ["page"], "columns": COLUMNS}
    small = make_small_in(tmp_path_factory.mktemp("home"), source=source, validation={"rules": NO_SESSION_IDS})
    rows = [f"{user},,{item},2026-03-01T10:{n:02}:00Z,view,p" for n, (user, item) in enumerate(SEEN)]
    small.deliver("2026-03-01", *rows, header="user,session,item,time,type,page")
    prepare(small, DAY_1)
    spoil_events(small)
    spoil_sessions(small)
    with pytest.raises(ContractError) as error:
        validate_stale(small.site, small.store, DAY_1)
    return SimpleNamespace(small=small, error=error.value)


COLUMNS = {"user_id": "user", "session_id": "session", "item_id": "item", "occurred_at": "time"}
SEEN = [("ann", "a"), ("ann", "b"), ("bob", "a"), ("eve", "a")]


def spoil_events(small: Any) -> None:
    """Ann's events again, a day later, of no known type and without what is promised; no page anywhere."""
    table = events_table(["page"])
    events = small.store.scan(table).collect().with_columns(page=pl.lit(None, pl.String))
    nothing = dict.fromkeys(("item_id", "source_file"), pl.lit(None, pl.String)) | {"visitor": pl.lit("")}
    later = events.filter(visitor="ann").with_columns(
        pl.col("occurred_at").dt.offset_by("1d"), event_type=pl.lit("?"), **nothing
    )
    unknown = pl.when(visitor="bob").then(pl.lit("never told")).otherwise("item_id")
    nowhere = pl.when(visitor="eve").then(None).otherwise("event_id")
    first = events.with_columns(item_id=unknown, event_id=nowhere)
    worse = pl.when(visitor="eve").then(None)
    first = first.with_columns(occurred_at=worse.otherwise("occurred_at"), event_type=worse.otherwise("event_type"))
    small.store.replace(table, pl.concat([first, later]), {"event_date": [DAY_1]})


def spoil_sessions(small: Any) -> None:
    """Ann's session falls back in time, bob's is too long by name and lacks an item, eve's stands twice elsewhere."""
    table = sessions_table(["page"])
    ann, bob, eve = (small.store.scan(table).filter(visitor=name).collect() for name in ("ann", "bob", "eve"))
    ann = ann.with_columns(
        offsets_seconds=pl.lit([5.0, 1.0]), ended_at=pl.col("started_at").dt.offset_by("-1m"), visitor=None
    )
    bob = bob.with_columns(num_events=pl.lit(900), item_ids=pl.lit([None], pl.List(pl.String)))
    eve = eve.with_columns(started_at=pl.col("started_at").dt.offset_by("-2d"), session_id=None)
    again = pl.concat([bob, ann, eve], how="vertical_relaxed")
    small.store.replace(table, pl.concat([again, bob], how="vertical_relaxed"), {"session_date": [DAY_1]})


TAMPERED = {  # rule -> rows that break it
    "events.complete": None,
    "events.event_id_present": 1,
    "events.event_id_unique": 4,
    "events.visitor_present": 2,
    "events.item_id_present": 2,
    "events.event_type_present": 1,
    "events.occurred_at_present": 1,
    "events.source_file_present": 2,
    "events.occurred_at_in_day": 2,
    "events.event_type_known": 2,
    "events.item_id_known": 3,
    "sessions.complete": None,
    "sessions.session_id_present": 1,
    "sessions.session_id_unique": 2,
    "sessions.visitor_present": 1,
    "sessions.num_events_in_range": 2,
    "sessions.started_at_in_day": 1,
    "sessions.duration_in_range": 2,
    "sessions.lists_equally_long": 2,
    "sessions.elements_present": 2,
    "sessions.offsets_start_at_zero": 1,
    "sessions.offsets_in_order": 1,
}


def test_every_promise_that_is_broken_is_told(tampered):
    assert broken_rules(tampered.error) == list(TAMPERED)
    assert read_days(tampered.small.store)["num_warnings"].to_list() == [1]  # no page anywhere


@pytest.mark.parametrize("name", TAMPERED)
def test_the_rows_that_break_a_promise_are_shown(tampered, name):
    rows = explained(tampered.small, DAY_1, name)
    if TAMPERED[name] is not None:
        assert rows.height == TAMPERED[name]


def test_what_breaks_a_promise_is_shown_with_the_value_that_was_judged(tampered):
    fallen = explained(tampered.small, DAY_1, "sessions.offsets_in_order")
    assert fallen["smallest_step_seconds"].to_list() == [-4.0]
    assert explained(tampered.small, DAY_1, "events.event_type_known")["event_type"].to_list() == ["?", "?"]
    booked = explained(tampered.small, DAY_1, "events.complete")
    assert booked["num_rows"].sum() == 6
    assert booked["booked_of_all_buckets"].unique().to_list() == [4]


def test_a_table_of_other_types_breaks_the_contract(make_small, monkeypatch):
    small = make_small()
    small.deliver("2026-03-01", row(1, "a"))
    prepare(small, DAY_1)
    asked = {"num_events": pl.Float64}
    monkeypatch.setattr(
        "pipeline.measures.sessions_table",
        lambda context: (table := sessions_table(context)).__class__(
            table.name, table.grain, table.columns | asked, table.partition_by
        ),
    )
    with pytest.raises(ContractError) as error:
        validate_stale(small.site, small.store, DAY_1)
    assert broken_rules(error.value) == ["sessions.columns"]
    told = explained(small, DAY_1, "sessions.columns")["column"].to_list()
    assert told == ["num_events is Int64, declared as Float64"]


def test_parts_of_a_day_are_judged_as_one(make_small, monkeypatch):
    """An id that stands twice in two parts, and counts over all parts."""
    small = make_small(buckets=4)
    users = [f"u{n}" for n in range(30)]
    small.deliver("2026-03-01", *(row(1, "a", n, user) for n, user in enumerate(users)))
    prepare(small, DAY_1)
    table = events_table([])
    events = small.store.scan(table).collect()
    twice = events.head(1).with_columns(user_bucket=(pl.col("user_bucket") + 1) % 4, event_type=pl.lit("?"))
    changed = pl.concat([events.with_columns(event_type=pl.lit("?")), twice])
    small.store.replace(table, changed, {"event_date": [DAY_1]})
    told = []
    for size in (1, EVENTS_AT_ONCE):
        monkeypatch.setattr("pipeline.measures.EVENTS_AT_ONCE", size)
        with pytest.raises(ContractError) as error:
            validate_stale(small.site, small.store, DAY_1)
        told.append(str(error.value))
        assert explained(small, DAY_1, "events.event_id_unique").height == 2
    assert told[0] == told[1]
    assert broken_rules(error.value) == ["events.complete", "events.event_id_unique", "events.event_type_known"]
    assert "found 31 of 31 rows break it, like ?, allowed is one of purchase, view" in told[0]


# Volume


@pytest.fixture(scope="module")
def volumes(make_small_in: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Four days of 4, 6, 5 and 2 events, after an empty one."""
    rules = {"day.num_events": {"low": 0}, "day.volume_usual": {"low": 0.5}}
    small = make_small_in(tmp_path_factory.mktemp("home"), validation={"rules": NO_SESSION_IDS | rules})
    for day, number in ((1, 0), (2, 4), (3, 6), (4, 5), (5, 2)):
        small.deliver(f"2026-03-{day:02}", *(row(day, "a", n) for n in range(number)))
        prepare(small, date(2026, 3, day))
    return SimpleNamespace(small=small, answer=validate_stale(small.site, small.store, DAY_5))


def test_volume_is_judged_against_the_median_of_days_with_events_once_there_are_three(volumes):
    assert volumes.answer["warnings"] == {"2026-03-05": ["day.volume_usual"]}
    assert "not judged</span></td><td><code>day.volume<" in day_page(volumes.small.site, DAY_4).read_text()
    assert "<td>0.4</td>" in day_page(volumes.small.site, DAY_5).read_text()


def test_the_days_behind_a_volume_are_shown(volumes):
    told = explained(volumes.small, DAY_5, "day.volume")
    assert told.rows() == [(DAY_2, 4, None), (DAY_3, 6, None), (DAY_4, 5, None), (DAY_5, 2, 0.4)]


def test_a_day_that_did_not_pass_is_no_measure_for_others(volumes):
    facts = pl.DataFrame({"event_date": [DAY_3], "verdict": ["failed"]})
    update_days(volumes.small.store, facts)
    told = explained(volumes.small, DAY_5, "day.volume")
    assert told.rows() == [(DAY_2, 4, None), (DAY_4, 5, None), (DAY_5, 2, None)]
    update_days(volumes.small.store, facts.with_columns(verdict=pl.lit("passed")))


# What a site may set


def test_rules_are_named_by_their_table_and_each_name_stands_once(small):
    names = [rule.name for rule in contract(small.site)]
    assert len(set(names)) == len(names) >= 30
    assert all(re.fullmatch(r"(events|sessions|day)\.[a-z][a-z_]*", name) for name in names)


def test_rules_follow_from_what_a_site_has(make_small):
    items = {"path": "items.csv", "columns": {"item_id": "id", "title": "title"}}
    source = {"context": ["page"], "event_type": {"column": "type"}}
    names = {rule.name for rule in contract(make_small(items=items, source=source).site)}
    plain = {rule.name for rule in contract(make_small().site)}
    assert names - plain == {"events.item_id_described", "events.page_null_share"}
    assert plain - names == {"events.event_type_known"}
    assert {"events.user_id_null_share", "events.given_session_id_null_share"} <= plain


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"events.volum": {"low": 1}}, "'events.volum' is no rule of the contract; did you mean `day.volume`?"),
        ({"xyz": {"low": 1}}, "'xyz' is no rule of the contract; there are events.columns, "),
        ({"events.occurred_at_in_day": {"low": 1}}, "events.occurred_at_in_day is about each row and has no limits"),
        ({"day.volume": {"low": 20}}, "day.volume allows nothing between low 20.0 and high 10"),
        ({"day.volume": {"severity": "fatal"}}, "Input should be 'critical' or 'warning'"),
        ({"day.volume": {"lo": 1}}, "Extra inputs are not permitted"),
    ],
)
def test_a_setting_that_means_nothing_is_refused(make_small, rules, message):
    with pytest.raises(ValidationError, match=re.escape(message)):
        make_small(validation={"rules": rules})


def test_a_site_sets_severity_and_limits(make_small):
    rules = {"day.volume": {"severity": "warning", "low": 0.3}, "events.occurred_at_in_day": {"severity": "warning"}}
    told = {rule.name: rule for rule in contract(make_small(validation={"rules": rules}).site)}
    assert (told["day.volume"].severity, told["day.volume"].low, told["day.volume"].high) == ("warning", 0.3, 10)
    assert told["events.occurred_at_in_day"].severity == "warning"
    assert told["day.num_events"].severity == "critical"


def test_site_files_of_ours_name_rules_that_exist():
    from pipeline.site_file import load_site
    from training.settings import TrainingSite

    class Site(TrainingSite):
        schedule: Any = None

    for path in sorted((Path(__file__).parents[2] / "conf").glob("*.yaml")):
        assert load_site(path, Site, Path()).name
    assert issubclass(Site, PipelineSite)


def test_the_page_about_the_contract_tells_every_rule_with_its_severity_and_limits(small):
    lines = (Path(__file__).parents[2] / "docs/contract.md").read_text().splitlines()
    for rule in contract(small.site):
        name = re.sub(r"\.\w+_null_share", ".*column*_null_share", rule.name)
        (line,) = [
            line
            for line in lines
            if line[:1] == "|" and re.search(rf"[| ]{re.escape(name)}[, ]", line.split(" | ")[0] + " ")
        ]
        assert f"| {rule.severity} |" in line
        if not rule.of_each_row and (rule.low or rule.high):
            assert all(f"{limit:g}" in line for limit in (rule.low, rule.high) if limit)


# Explanations


def test_an_unknown_rule_is_refused_with_the_nearest_name_and_all_names(judged):
    with pytest.raises(ConfigurationError, match=r"did you mean `day\.volume`\? There are events\.columns, .*day\.vol"):
        explain(judged.small.site, judged.small.store, DAY_1, "day.volum")


def test_shares_are_explained_by_the_files_and_reasons_behind_them(judged):
    reasons = explained(judged.small, DAY_2, "day.rejected_share")
    assert reasons.select("reason", "num_rows", "first_record").rows() == [("unparsable_row", 2, 3)]
    files = explained(judged.small, DAY_2, "day.duplicate_share")
    assert files.select("rows_read", "events", "duplicates", "rejected").rows() == [(4, 2, 0, 2)]
    assert explained(judged.small, DAY_2, "events.tie_share").height == 2
    assert explained(judged.small, DAY_1, "events.tie_share").height == 0
    assert explained(judged.small, DAY_1, "events.given_session_id_null_share").height == 3


def test_the_first_rows_become_lines_and_all_are_counted():
    frames = [pl.DataFrame({"n": range(15), "long": ["x" * 90] * 15})] * 3
    lines, total = in_lines(iter(frames))
    assert (lines[0], len(lines), total) == (["n", "long"], 21, 45)
    assert lines[-1] == ["4", "x" * 9 + "…" + "x" * 30]


# Pages


def test_every_judged_day_has_a_page_that_the_index_links_to_newest_first(judged):
    text = (judged.docs / "index.html").read_text()
    assert re.findall(r'href="([^"]+)"', text) == ["2026-03-02.html", "2026-03-01.html"]
    assert re.findall(r'<td><span class="badge" style="[^"]+">(\w+)', text) == ["failed", "passed"]
    assert re.findall(r'<td class="number">(\d+)</td>', text) == ["1", "2", "1", "2", "0", "0", "3", "1", "1", "0"]


def test_the_page_of_a_day_tells_every_rule_in_words(judged):
    text = day_page(judged.small.site, DAY_2).read_text()
    top, rest = text.split("<h2>Events</h2>")
    assert re.findall(r"<code>([\w.]+)</code><br>", top) == ["events.tie_share", "day.num_events", "day.rejected_share"]
    names = [rule.name for rule in contract(judged.small.site)]
    assert re.findall(r"<code>([\w.]+)</code><br>", rest) == names
    assert "values must be less than or equal to 0.4" in rest
    assert "--date 2026-03-02 --explain events.tie_share" in top


def test_pages_load_nothing(judged, tampered, volumes):
    pages = [
        page for small in (judged.small, tampered.small, volumes.small) for page in docs_folder(small.site).rglob("*")
    ]
    assert len(pages) == 3 + 2 + 6  # days and an index
    for page in pages:
        text = page.read_text()
        assert page.suffix == ".html"
        assert "//" not in text.replace("<!doctype html>", "")
        assert not re.search(r"<script|<link|@import|url\(|src=", text)


def test_pages_escape_what_they_show(make_small):
    source = {
        "columns": COLUMNS,
        "context": ["<b>page"],
    }
    small = make_small(source=source | {"event_type": {"column": "type", "map": {"view": "<i>view"}}})
    small.deliver("2026-03-01", row(1, "a") + ",p", header="user,session,item,time,type,<b>page")
    prepare(small, DAY_1)
    table = events_table(["<b>page"])
    events = small.store.scan(table).collect()
    small.store.replace(table, events.with_columns(event_type=pl.lit("<script>")), {"event_date": [DAY_1]})
    with pytest.raises(ContractError):
        validate_stale(small.site, small.store, DAY_1)
    text = day_page(small.site, DAY_1).read_text()
    assert "&lt;script&gt;" in text
    assert "&lt;i&gt;view" in text
    assert "&lt;b&gt;page" in text
    assert not re.search(r"<(script|i|b>page)", text)
