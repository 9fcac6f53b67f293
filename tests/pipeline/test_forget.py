"""Forgetting a user: nothing of them in any table, books that still add up, and no way back."""

import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from features import build as build_module
from features.build import build_features
from features.settings import FeaturesSite
from features.tables import SEQUENCES
from pipeline import forget as forget_module
from pipeline import ingest as ingest_module
from pipeline import sessionize as sessionize_module
from pipeline.days import present_content, read_days, stale_sessions, update_days
from pipeline.errors import ConfigurationError, RetryableError
from pipeline.forget import forget
from pipeline.forgotten import forgotten_users, hash_of
from pipeline.privacy import anonymous, named_visitors
from pipeline.publish import Store
from pipeline.tables import FILES, FORGOTTEN, OPEN_SESSIONS, REJECTED, events_table, sessions_table
from pipeline.upkeep import vacuum
from serving_export.tables import RECOMMENDATIONS

DAY_1, DAY_2, DAY_3 = (date(2026, 3, day) for day in (1, 2, 3))
COPIES = [(SEQUENCES, "visitor"), (RECOMMENDATIONS, "user_id")]
USER = "user-4711"


def line(user: str, item: str, day: int = 1, hour: int = 10, kind: str = "view") -> str:
    return f"{user},,{item},2026-03-{day:02}T{hour:02}:00:00Z,{kind}"


FIRST = [
    line("ann", "a"),
    line(USER, "b"),
    line(USER, "b"),
    line(USER, ""),
    line(" " + USER, "c", hour=11),
    line("bo", ""),
]
SECOND = [line("bo", "d", 2), line(USER, "e", 2), line(USER, "late", 1), line("bo", "late", 1), f"{USER},torn,"]


@pytest.fixture
def told(make_small):
    """Two days of a log, sessionized and passed, in features and in lists."""
    small = make_small()
    deliver(small)
    fill(small)
    return small


def deliver(small) -> None:
    small.deliver("2026-03-01", *FIRST)
    small.deliver("2026-03-02", *SECOND)


def fill(small) -> None:
    small.ingest(DAY_1, DAY_2)
    small.sessionize(DAY_1, DAY_2)
    passed = read_days(small.store).select("event_date", validated_content=present_content(), verdict=pl.lit("passed"))
    update_days(small.store, passed)
    at = datetime(2026, 3, 1, tzinfo=UTC)
    for night in (DAY_2, DAY_3):
        rows = [{"night": night, "session_id": user, "visitor": user, "started_at": at} for user in (USER, "ann")]
        small.store.replace(SEQUENCES, frame(SEQUENCES, rows), {"night": [night]}, {"night": night})
    lists = [{"user_bucket": n % 2, "user_id": user, "rank": 1} for n, user in enumerate((USER, "ann", "bo"))]
    small.store.replace(RECOMMENDATIONS, frame(RECOMMENDATIONS, lists), {"user_bucket": [0, 1]})


def frame(table, rows) -> pl.DataFrame:
    return pl.concat([table.empty(), pl.DataFrame(rows)], how="diagonal_relaxed")


def everything(small) -> str:
    """All that the tables say now."""
    tables = [SEQUENCES, RECOMMENDATIONS, FORGOTTEN, OPEN_SESSIONS]
    return str(small.tables()) + str([small.store.scan(table).collect().rows() for table in tables])


def check_books(small) -> None:
    """rows_read = events + rejected + duplicates, by file and day, and as the tables have them."""
    files = small.table(FILES)
    assert (files["rows_read"] == files["events"] + files["duplicates"] + files["rejected"]).all()
    for rows, column in ((small.events, "events"), (small.rejected, "rejected")):
        here = rows.group_by("event_date", path="source_file").agg(n=pl.len().cast(pl.Int64))
        joined = files.join(here, on=["path", "event_date"], how="left").with_columns(pl.col("n").fill_null(0))
        assert joined["n"].to_list() == joined[column].to_list(), column
    days = small.days
    totals = files.group_by("event_date").agg(pl.col("events", "rejected", "duplicates").sum()).sort("event_date")
    assert days["num_events"].to_list() == totals["events"].to_list()
    assert days["num_rejected"].to_list() == totals["rejected"].to_list()


def without_places(small) -> dict[str, list]:
    """What the store says, but for the record numbers that a table can no longer tell."""
    tables = small.tables()
    rejected = small.rejected.drop("record")
    return tables | {"rejected": sorted(map(small.homeless, rejected.rows()), key=str)}


def test_nothing_of_a_user_is_left_in_any_table_and_others_lose_nothing(told):
    before = everything(told)
    assert before.count(USER) > 10
    others = told.events.filter(pl.col("user_id") != USER)
    facts = forget(told.site, told.store, [USER], COPIES)
    assert USER not in everything(told)
    assert told.events.equals(others)
    removed = {"events": 4, "rejected": 1, "sessions": 3, "sequences": 2, "recommendations": 1, "open_sessions": 0}
    assert facts["removed"] == removed
    assert facts["stale_days"] == [DAY_1, DAY_2]
    assert sorted(told.store.scan(RECOMMENDATIONS).collect()["user_id"]) == ["ann", "bo"]
    assert told.store.scan(SEQUENCES).collect()["visitor"].to_list() == ["ann", "ann"]


def test_the_books_still_add_up(told):
    forget(told.site, told.store, [USER], COPIES)
    check_books(told)
    assert told.rejected.filter(pl.col("reason") == "forgotten").height == 5
    gone = told.rejected.filter(pl.col("reason") == "forgotten")
    assert gone["fields"].is_null().all()
    assert told.rejected.filter(pl.col("reason") == "missing_item")["fields"].str.contains("bo").to_list() == [True]
    assert told.ingest(DAY_1)["rejected"] == {"forgotten": 3, "missing_item": 1}


def test_touched_days_are_stale_and_the_next_night_mends_them(told):
    forget(told.site, told.store, [USER], COPIES)
    assert stale_sessions(told.store, told.site.sessions)[:2] == [DAY_1, DAY_2]
    told.sessionize(DAY_1, DAY_2)
    assert stale_sessions(told.store, told.site.sessions) == []
    assert told.days["num_sessions"].to_list() == [2, 1]
    assert USER not in everything(told)


def test_the_store_is_what_an_ingest_that_knew_of_it_would_have_made(told, make_small):
    forget(told.site, told.store, [USER], COPIES)
    told.sessionize(DAY_1, DAY_2)
    other = make_small("other")
    forget(other.site, other.store, [USER], COPIES)
    deliver(other)
    other.ingest(DAY_1, DAY_2)
    other.sessionize(DAY_1, DAY_2)
    check_books(other)
    mine, theirs = without_places(told), without_places(other)
    for name in ("events", "sessions", "rejected", "files"):
        assert mine[name] == theirs[name], name
    columns = ["event_date", "events_content", "num_events", "num_rejected", "num_duplicates", "sessions_content"]
    assert told.days.select(columns).equals(other.days.select(columns))


@pytest.mark.parametrize("name", ["2026-03-01-again", "2026-03-01", "2026-03-02-late"])
def test_a_later_delivery_does_not_bring_the_user_back(told, name):
    forget(told.site, told.store, [USER], COPIES)
    told.deliver(name, *FIRST, line(USER, "new", 1), line("bo", "new", 1))
    told.ingest(date.fromisoformat(name[:10]))
    told.sessionize(DAY_1, DAY_2)
    assert USER not in everything(told)
    assert "new" in told.events["item_id"].to_list()
    check_books(told)


def test_a_bot_that_is_forgotten_is_blank_too(make_small):
    small = make_small(source={"bots": {"events_per_day": 1}})
    small.deliver("2026-03-01", line(USER, "a"), line(USER, "b"), line("ann", "a"), line("ann", "b"))
    small.ingest(DAY_1)
    assert forget(small.site, small.store, [USER], [])["removed"]["rejected"] == 2
    assert USER not in str(small.tables())
    assert small.reasons() == ["bot", "bot", "forgotten", "forgotten"]
    small.deliver("2026-03-01b", line(USER, "c"))
    small.ingest(DAY_1)
    assert small.reasons() == ["bot", "bot", "forgotten", "forgotten", "forgotten"]
    assert USER not in str(small.tables())
    check_books(small)


def test_json_lines_are_searched_by_path(make_small):
    source = {
        "events": "raw/{date}.jsonl",
        "columns": {"user_id": "user.id", "item_id": "item", "occurred_at": "at"},
        "event_type": {"constant": "view"},
    }
    small = make_small(source=source)
    rows = [
        {"user": {"id": user}, "item": item, "at": at, "note": "kept whole"}
        for user, item, at in [(USER, "", "2026-03-01"), ("ann", "", "2026-03-01"), (USER, "x", "2026-03-01")]
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows) + f"[{USER!r}\n"
    (small.home / "raw/2026-03-01.jsonl").write_text(text)
    small.ingest(DAY_1)
    assert forget(small.site, small.store, [USER], [])["removed"]["rejected"] == 1
    assert USER not in str(small.tables())
    assert small.reasons() == ["forgotten", "forgotten", "missing_item", "unparsable_row"]


def test_of_a_hashed_site_the_id_of_the_log_is_given(make_small, monkeypatch):
    monkeypatch.setenv("NIGHTJAR_USER_ID_SECRET", "s" * 32)
    small = make_small(privacy={"hash_user_ids": True})
    deliver(small)
    fill(small)
    hashed = small.events.filter(pl.col("item_id") == "b")["user_id"].item()
    facts = forget(small.site, small.store, named_visitors(small.site, [f" {USER} "], []), COPIES)
    assert facts["removed"]["events"] == 4
    assert facts["removed"]["rejected"] == 1
    tables = str(small.tables())
    assert hashed not in tables
    small.deliver("2026-03-01", *FIRST)
    small.ingest(DAY_1)
    assert hashed not in str(small.tables())
    check_books(small)


def test_reports_about_the_touched_days_are_removed(told):
    pages = [told.home / f"data_docs/small/validations/events/{day}/1/page.html" for day in (DAY_1, DAY_3)]
    for page in pages:
        page.parent.mkdir(parents=True)
        page.write_text(USER)
    forget(told.site, told.store, [USER], COPIES)
    assert [page.exists() for page in pages] == [False, True]


def test_the_day_is_told_after_which_a_vacuum_leaves_nothing(told):
    facts = forget(told.site, told.store, [USER], COPIES)
    assert facts["gone_after"] == (datetime.now(UTC) + timedelta(days=31)).date()


def test_a_vacuum_after_that_day_leaves_no_file_that_tells_of_the_user(told):
    forget(told.site, told.store, [USER], COPIES)
    told.sessionize(DAY_1, DAY_2)

    def naming_files() -> list[Path]:
        files = [file for file in Path(told.store.root).rglob("*") if file.is_file()]
        return [file for file in files if USER in file.read_bytes().decode("latin-1") or USER in unpacked(file)]

    assert {file.suffix for file in naming_files()} == {".parquet"}, "earlier versions do, and only they"
    vacuum(Store(told.store.root, timedelta(0)), dry_run=False)
    assert naming_files() == []


def unpacked(file: Path) -> str:
    return str(pq.read_table(file, partitioning=None).to_pylist()) if file.suffix == ".parquet" else ""


# --- crashes and neighbours


class PowerCut(BaseException):
    """The process is gone."""


def cut_after(monkeypatch, num_commits: int) -> None:
    commit, left = Store.commit, [num_commits]

    def counted(self, *args, **kwargs):
        if left[0] == 0:
            raise PowerCut
        left[0] -= 1
        return commit(self, *args, **kwargs)

    monkeypatch.setattr(Store, "commit", counted)


@pytest.mark.slow
def test_after_a_power_cut_at_any_commit_the_same_command_finishes_the_work(make_small, monkeypatch):
    whole = make_small("whole")
    deliver(whole)
    fill(whole)
    forget(whole.site, whole.store, [USER], COPIES)
    wanted = without_places(whole)
    num_commits = 0
    while True:
        small = make_small(f"cut{num_commits}")
        deliver(small)
        fill(small)
        with monkeypatch.context() as patch:
            cut_after(patch, num_commits)
            try:
                forget(small.site, small.store, [USER], COPIES)
                break
            except PowerCut:
                pass
        forget(small.site, small.store, [USER], COPIES)
        assert without_places(small) == wanted, num_commits
        assert USER not in everything(small)
        check_books(small)
        num_commits += 1
    assert num_commits >= 10


def test_many_visitors_are_forgotten_in_one_commit_a_table(told):
    told.deliver("2026-03-02b", f",{USER},x,2026-03-02T10:00:00Z,view", ",s9,y,2026-03-02T11:00:00Z,view")
    told.ingest(DAY_2)
    told.sessionize(DAY_2)
    tables = [events_table([]), REJECTED, SEQUENCES, RECOMMENDATIONS]
    before = [told.store.version(table) for table in tables]
    names = named_visitors(told.site, [USER, "bo", "nobody", USER], ["s9"])
    facts = forget(told.site, told.store, names, COPIES)
    assert [told.store.version(table) for table in tables] == [version + 1 for version in before]
    assert sorted(told.events["visitor"]) == [f" session:{USER}", "ann"]
    assert facts["removed"]["events"] == 7
    assert facts["removed"]["rejected"] == 2
    assert facts["removed"]["recommendations"] == 2
    assert told.store.scan(FORGOTTEN).collect().height == 4
    check_books(told)
    told.deliver("2026-03-02c", ",s9,new,2026-03-02T12:00:00Z,view", "bo,,new,2026-03-02T12:00:00Z,view")
    told.ingest(DAY_2)
    assert "new" not in told.items()


def test_an_anonymous_session_is_forgotten_and_the_user_of_the_same_id_stays(make_small):
    small = make_small()
    rows = [f",{USER},x,2026-03-01T10:00:00Z,view", f",{USER},,2026-03-01T10:00:00Z,view", line(USER, "y")]
    small.deliver("2026-03-01", *rows, line(USER, ""))
    small.ingest(DAY_1)
    facts = forget(small.site, small.store, named_visitors(small.site, [], [f" {USER} "]), [])
    assert (facts["removed"]["events"], facts["removed"]["rejected"]) == (1, 1)
    assert small.items() == ["y"]
    assert small.reasons() == ["forgotten", "forgotten", "missing_item"]
    small.deliver("2026-03-01b", *rows, f",{USER},z,2026-03-01T12:00:00Z,view")
    small.ingest(DAY_1)
    assert small.items() == ["y"]
    check_books(small)


def test_what_was_left_open_for_several_is_finished_by_the_one_that_is_given_again(told, monkeypatch):
    with monkeypatch.context() as patch:
        cut_after(patch, 4)
        with pytest.raises(PowerCut):
            forget(told.site, told.store, [USER, "ann"], COPIES)
    forget(told.site, told.store, [USER], COPIES)
    check_books(told)
    forget(told.site, told.store, ["ann"], COPIES)
    told.sessionize(DAY_1, DAY_2)
    check_books(told)
    assert set(told.events["user_id"]) == {"bo"}
    assert told.days["events_content"].null_count() == 0


@pytest.mark.parametrize("step", ["sessionize", "features"])
def test_a_step_that_read_before_publishes_nothing_of_the_forgotten(told, monkeypatch, step):
    """It runs on another machine, so forget does not see its lock."""
    module, name = {"sessionize": (sessionize_module, "bucket_facts"), "features": (build_module, "data_digest")}[step]
    called, tables = getattr(module, name), [sessions_table([]), OPEN_SESSIONS, SEQUENCES]

    def forget_meanwhile(*args):
        monkeypatch.setattr(module, name, called)
        forget(told.site, told.store, [USER], COPIES)
        return called(*args)

    monkeypatch.setattr(module, name, forget_meanwhile)
    with pytest.raises(RetryableError, match="somebody was forgotten while this step was at work"):
        told.sessionize(DAY_1) if step == "sessionize" else build_features(night_site(told), told.store, DAY_3)
    left = [str(told.store.scan(table).collect().rows()) for table in tables]
    assert not any(USER in rows for rows in left)


def night_site(small) -> FeaturesSite:
    values = small.site.model_dump() | {"window": {"length": "2d", "min_days": 1, "min_item_count": 1}}
    return FeaturesSite.model_validate(values)


def test_days_that_were_left_open_are_refused_until_the_work_is_finished(told, monkeypatch):
    with monkeypatch.context() as patch:
        cut_after(patch, 4)  # the list, its open days, `days`, `events`
        with pytest.raises(PowerCut):
            forget(told.site, told.store, [USER], COPIES)
    with pytest.raises(RetryableError, match="in change"):
        told.sessionize(DAY_1)
    with pytest.raises(RetryableError, match=r"in change.*on the list"):
        forget(told.site, told.store, ["bo"], COPIES)
    forget(told.site, told.store, [USER], COPIES)
    forget(told.site, told.store, ["bo"], COPIES)
    told.sessionize(DAY_1, DAY_2)
    assert told.sessions["user_id"].to_list() == ["ann"]


def test_forgetting_again_finds_nothing_to_do(told):
    forget(told.site, told.store, [USER], COPIES)
    before, versions = everything(told), told.versions()
    facts = forget(told.site, told.store, [USER], COPIES)
    assert set(facts["removed"].values()) == {0}
    assert facts["stale_days"] == []
    assert everything(told) == before
    assert told.versions() == versions


def test_an_ingest_that_read_before_is_told_to_try_again(told, monkeypatch):
    check_counts = ingest_module.check_counts

    def check_late(*args):
        monkeypatch.setattr(ingest_module, "check_counts", check_counts)
        forget(told.site, told.store, [USER], COPIES)
        check_counts(*args)

    monkeypatch.setattr(ingest_module, "check_counts", check_late)
    told.deliver("2026-03-01b", line(USER, "new"))
    with pytest.raises(RetryableError, match="a user was forgotten while raw files were read"):
        told.ingest(DAY_1)
    told.ingest(DAY_1)
    assert USER not in everything(told)
    check_books(told)


def test_rows_that_a_running_step_wrote_meanwhile_are_told(told, monkeypatch):
    rows = told.store.scan(SEQUENCES).collect()
    remove_pages = forget_module.remove_pages

    def write_late(*args):
        told.store.replace(SEQUENCES, rows, {"night": [DAY_2, DAY_3]})
        remove_pages(*args)

    with monkeypatch.context() as patch:
        patch.setattr(forget_module, "remove_pages", write_late)
        with pytest.raises(RetryableError, match="wrote rows of a forgotten visitor to sequences"):
            forget(told.site, told.store, [USER], COPIES)
    assert forget(told.site, told.store, [USER], COPIES)["removed"]["sequences"] == 2
    assert USER not in everything(told)


# --- who can be forgotten


def test_a_site_without_user_ids_has_no_users(make_small):
    small = make_small(source={"columns": {"session_id": "session", "item_id": "item", "occurred_at": "time"}})
    with pytest.raises(ConfigurationError, match="has no user ids"):
        named_visitors(small.site, [USER], [])


def test_a_site_without_session_ids_has_no_anonymous_visitors(make_small):
    small = make_small(source={"columns": {"user_id": "user", "item_id": "item", "occurred_at": "time"}})
    with pytest.raises(ConfigurationError, match="has no session ids"):
        named_visitors(small.site, [], ["s1"])


def test_an_id_is_trimmed_as_ingest_trims_it(make_small):
    small = make_small()
    small.deliver("2026-03-01", line("\x1fann", "hers"), line("ann", "his"))
    small.ingest(DAY_1)
    forget(small.site, small.store, named_visitors(small.site, ["\x1fann"], []), [])
    assert small.items() == ["his"]


def test_an_empty_id_is_refused(told):
    with pytest.raises(ConfigurationError, match="--user ID"):
        named_visitors(told.site, [" "], [])


def test_a_visit_that_carries_the_id_as_its_session_id_is_somebody_else(make_small):
    small = make_small()
    small.deliver("2026-03-01", f",{USER},x,2026-03-01T10:00:00Z,view", line(USER, "y"))
    small.ingest(DAY_1)
    assert forget(small.site, small.store, [USER], [])["removed"]["events"] == 1
    assert small.events["item_id"].to_list() == ["x"]


def test_on_a_site_without_user_ids_lists_of_before_the_marking_are_forgotten_too(make_small):
    small = make_small(source={"columns": {"session_id": "session", "item_id": "item", "occurred_at": "time"}})
    small.deliver("2026-03-01", ",s1,x,2026-03-01T10:00:00Z,view", ",s2,x,2026-03-01T10:00:00Z,view")
    small.ingest(DAY_1)
    rows = [{"user_bucket": 0, "user_id": name, "rank": 1} for name in ("s1", "s2", anonymous("s1"), anonymous("s2"))]
    small.store.replace(RECOMMENDATIONS, frame(RECOMMENDATIONS, rows), {"user_bucket": [0]})
    forget(small.site, small.store, [anonymous("s1")], COPIES)
    left = small.store.scan(RECOMMENDATIONS).collect()["user_id"]
    assert sorted(left) == [anonymous("s2"), "s2"]
    users = forgotten_users(small.store)
    assert pl.select(hash_of(pl.lit("s1"))).item() in users, "a rollback leaves them out as well"
