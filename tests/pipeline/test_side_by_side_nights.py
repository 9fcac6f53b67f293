"""Data steps of neighbouring days that meet in the same moment, as in a backfill."""

import threading
from datetime import date
from typing import Any

import polars as pl
import pytest

from pipeline import validate
from pipeline.catalogue import update_items
from pipeline.days import passed_days
from pipeline.errors import ConfigurationError, OvertakenError, RetryableError
from pipeline.publish import Store, open_store
from pipeline.tables import SITE
from pipeline.validate import validate_stale

DAY_1, DAY_2 = (date(2026, 3, day) for day in (1, 2))
BEFORE_MIDNIGHT = "ann,,a,2026-03-01T23:50:00Z,view"
AFTER_MIDNIGHT = "ann,,b,2026-03-02T00:10:00Z,view"


def test_sessions_and_their_record_are_of_one_night_where_two_build_a_day(small, make_small, monkeypatch):
    """The first night has read day 1 without day 2; it publishes after the second one, which is not done yet."""
    small.deliver("2026-03-01", BEFORE_MIDNIGHT)
    small.ingest(DAY_1)
    commit, has_read, goes_on, faults = Store.commit, threading.Event(), threading.Event(), []

    def first_night() -> None:
        try:
            small.sessionize(DAY_1)
        except OvertakenError as error:
            faults.append(error)

    first = threading.Thread(target=first_night)

    def interrupted(self: Store, table: Any, *arguments: Any, **settings: Any) -> int:
        if table.name != "sessions":
            return commit(self, table, *arguments, **settings)
        if threading.current_thread() is first:
            has_read.set()
            assert goes_on.wait(30)
            return commit(self, table, *arguments, **settings)
        version = commit(self, table, *arguments, **settings)
        goes_on.set()
        first.join(30)
        return version

    monkeypatch.setattr(Store, "commit", interrupted)
    first.start()
    assert has_read.wait(30)
    small.deliver("2026-03-02", AFTER_MIDNIGHT)
    small.ingest(DAY_2)
    small.sessionize(DAY_2)
    monkeypatch.undo()
    calm = make_small("calm")
    calm.deliver("2026-03-01", BEFORE_MIDNIGHT)
    calm.deliver("2026-03-02", AFTER_MIDNIGHT)
    calm.ingest(DAY_1, DAY_2)
    calm.sessionize(DAY_1, DAY_2)
    assert small.sessions["item_ids"].to_list() == calm.sessions["item_ids"].to_list() == [["a", "b"]]
    assert "sessions" in str(faults)


@pytest.fixture
def two_days(small):
    """Day 2 is judged before day 1 is delivered, whose last session goes on after midnight."""
    small.deliver("2026-03-02", AFTER_MIDNIGHT)
    small.ingest(DAY_2)
    update_items(small.site, small.store, DAY_2)
    small.sessionize(DAY_2)
    return small


def load_day_1(small: Any) -> None:
    small.deliver("2026-03-01", BEFORE_MIDNIGHT)
    small.ingest(DAY_1)
    update_items(small.site, small.store, DAY_1)
    small.sessionize(DAY_1)


def test_the_night_that_changes_a_later_day_judges_it_again(two_days):
    site, store = two_days.site, two_days.store
    validate_stale(site, store, DAY_2)
    load_day_1(two_days)
    assert passed_days(store, DAY_1, DAY_2) == []
    validate_stale(site, store, DAY_1)
    assert passed_days(store, DAY_1, DAY_2) == [DAY_1, DAY_2]


def test_a_day_that_a_neighbour_changes_while_it_is_judged_is_judged_again(two_days, monkeypatch):
    site, store, judge, left = two_days.site, two_days.store, validate.row_checkpoint, [True]

    def interrupted(*arguments: Any) -> Any:
        if left:
            left.pop()
            load_day_1(two_days)
        return judge(*arguments)

    monkeypatch.setattr(validate, "row_checkpoint", interrupted)
    with pytest.raises(RetryableError, match="2026-03-02 are being changed"):  # and no ContractError
        validate_stale(site, store, DAY_2)
    validate_stale(site, store, DAY_2)
    assert passed_days(store, DAY_1, DAY_2) == [DAY_1, DAY_2]


@pytest.fixture
def meets(monkeypatch):
    """Another site opens its store as soon as the first one has found that there is none."""

    def arrange(neighbour: Any) -> None:
        replace, left = Store.replace, [neighbour]

        def interrupted(self: Store, *arguments: Any, **settings: Any) -> int:
            if left:
                open_store(left.pop())
            return replace(self, *arguments, **settings)

        monkeypatch.setattr(Store, "replace", interrupted)

    return arrange


def test_two_steps_make_one_store_at_the_same_moment(make_small, meets):
    site = make_small().site
    meets(site)
    store = open_store(site)
    assert store.scan(SITE).select(pl.len()).collect().item() == 1
    assert store.version(SITE) == 1


def test_of_two_sites_that_make_one_store_at_the_same_moment_the_second_is_refused(make_small, meets):
    site = make_small().site
    meets(site.model_copy(update={"name": "other"}))
    with pytest.raises(ConfigurationError, match="was made by the site 'other', not by 'small'"):
        open_store(site)
