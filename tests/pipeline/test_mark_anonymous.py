"""Stores made before anonymous visitors were marked: whole and unmarked before an ingest, whole and marked after it."""

from datetime import date

import polars as pl
import pytest

from pipeline import normalise
from pipeline.days import present_content, read_days, update_days
from pipeline.errors import RetryableError
from pipeline.forget import forget
from pipeline.ids import ANONYMOUS
from pipeline.publish import Store
from pipeline.tables import SITE, Table

DAY_1, DAY_2, DAY_3 = (date(2026, 3, day) for day in (1, 2, 3))
OLD_SITE = Table("site", "", {name: SITE.columns[name] for name in ("name", "buckets", "user_id_secret")}, ())
ROWS = {
    DAY_1: [",8,a,2026-03-01T10:00:00Z,view", "8,,b,2026-03-01T10:00:00Z,view", ",9,c,2026-03-01T23:59:00Z,view"],
    DAY_2: [",9,d,2026-03-02T00:01:00Z,view", ",7,,2026-03-02T10:00:00Z,view", ",late,x,2026-03-01T10:00:00Z,view"],
    DAY_3: ["ann,1,a,2026-03-03T10:00:00Z,view", ",1,a,2026-03-03T10:00:00Z,view"],
}


def deliver(small) -> None:
    for day, rows in ROWS.items():
        small.deliver(str(day), *rows)


@pytest.fixture
def make_old(make_small, monkeypatch):
    """A store as an earlier nightjar left it after two of three days."""

    def make(name: str):
        small = make_small(name)
        old = pl.DataFrame([{"name": "small", "buckets": 2, "user_id_secret": None}], schema=dict(OLD_SITE.columns))
        Store(f"{small.home}/store").replace(OLD_SITE, old, {})
        deliver(small)
        with monkeypatch.context() as patch:
            patch.setattr(normalise, "visitor", pl.coalesce)
            patch.setattr("pipeline.ingest.mark_anonymous", lambda site, store: None)
            small.ingest(DAY_1, DAY_2)
            small.sessionize(DAY_1, DAY_2)
        passed = read_days(small.store).select(
            "event_date", validated_content=present_content(), verdict=pl.lit("passed")
        )
        update_days(small.store, passed)
        return small

    return make


@pytest.fixture
def new(make_small):
    """The store that the same three days make today."""
    small = make_small("new")
    deliver(small)
    finish(small, DAY_1, DAY_2)
    return small


def finish(small, *days: date) -> None:
    small.ingest(*days, DAY_3)
    small.sessionize(DAY_1, DAY_2, DAY_3)


def told(small) -> dict[str, list]:
    """What the store says; verdicts, which only the old one was given, are left out."""
    days = small.days.drop("verdict", "validated_content")
    return small.tables() | {"days": days.rows()}


def test_the_next_ingest_marks_a_store_of_before_and_it_is_what_it_would_be_today(make_old, new):
    old = make_old("old")
    assert set(old.events["visitor"]) == {"8", "9", "late"}
    known = old.events.filter(pl.col("user_id").is_not_null())
    finish(old)
    assert set(old.events["visitor"]) == {"8", " session:8", " session:9", " session:late", "ann", " session:1"}
    assert told(old) == told(new)
    assert old.events.filter(pl.col("user_id") == "8").equals(known), "ids and buckets of users stay"


def test_the_days_that_were_marked_must_be_judged_again(make_old):
    old = make_old("old")
    old.ingest(DAY_3)
    passed = (pl.col("verdict") == "passed") & (pl.col("validated_content") == present_content())
    assert old.days.filter(passed).is_empty()


def test_a_store_is_marked_once(make_old):
    old = make_old("old")
    finish(old)
    versions = old.versions()
    old.ingest(DAY_1, DAY_2, DAY_3)
    assert old.versions() == versions


class PowerCut(BaseException):
    """The process is gone."""


def test_after_a_power_cut_at_any_commit_the_next_ingest_finishes_the_marking(make_old, new, monkeypatch):
    commit, num_commits = Store.commit, 0
    for num_commits in range(5):
        old = make_old(f"cut{num_commits}")
        left = [num_commits]

        def counted(self, *args, left=left, **kwargs):
            if left[0] == 0:
                raise PowerCut
            left[0] -= 1
            return commit(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(Store, "commit", counted)
            with pytest.raises(PowerCut):
                old.ingest(DAY_3)
        is_marked = old.events.filter(pl.col("user_id").is_null())["visitor"].str.starts_with(ANONYMOUS)
        assert is_marked.all() or not is_marked.any(), "never by halves"
        finish(old)
        assert told(old) == told(new), num_commits


def test_forget_marks_a_store_of_before_and_takes_no_stranger(make_old):
    old = make_old("old")
    forget(old.site, old.store, ["8"], [])
    assert set(old.events["visitor"]) == {" session:8", " session:9", " session:late"}
    assert old.sessions.filter(pl.col("visitor") == "8")["user_id"].null_count() == 1, (
        "the session's, to be built again"
    )
    forget(old.site, old.store, [" session:8"], [])
    assert set(old.events["visitor"]) == {" session:9", " session:late"}
    assert "8" not in old.sessions["visitor"]


def test_a_neighbour_that_changes_a_day_meanwhile_is_a_retry(make_old, monkeypatch):
    old = make_old("old")
    commit = Store.commit

    def late(self, table, *args, **kwargs):
        if table.name == "events":
            monkeypatch.setattr(Store, "commit", commit)
            rows = self.scan(table).filter(pl.col("event_date") == DAY_1).collect()
            self.replace(table, rows, {"event_date": [DAY_1]})
        return commit(self, table, *args, **kwargs)

    monkeypatch.setattr(Store, "commit", late)
    with pytest.raises(RetryableError, match="changed by another writer"):
        old.ingest(DAY_3)
    finish(old)
    assert old.events.filter(pl.col("user_id").is_null())["visitor"].str.starts_with(ANONYMOUS).all()
