"""What a step reads stays as it was when the step began, whatever other steps write meanwhile."""

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.catalogue import latest_items, update_items
from pipeline.days import stale_sessions
from pipeline.errors import RetryableError
from pipeline.publish import Store
from pipeline.tables import DAYS, FILES, ITEMS

DAY_1, DAY_2 = (date(2026, 3, day) for day in (1, 2))


def write_day(store: Store, content: str | None) -> int:
    row = {"event_date": DAY_1, "events_content": content}
    rows = pl.concat([DAYS.empty(), pl.DataFrame([row])], how="diagonal_relaxed")
    return store.replace(DAYS, rows, {"event_date": [DAY_1]})


def write_item(store: Store, title: str) -> int:
    row = {"snapshot_date": DAY_1, "item_id": "a", "title": title}
    rows = pl.concat([ITEMS.empty(), pl.DataFrame([row])], how="diagonal_relaxed")
    return store.replace(ITEMS, rows, {"snapshot_date": [DAY_1]})


def update(store: Store, content: str) -> None:
    """As a step does it: the record of what there is is taken back before it changes."""
    write_day(store, None)
    write_item(store, content)
    write_day(store, content)


def seen(store: Store) -> tuple[Any, Any]:
    return tuple(store.scan(table).collect()[name][0] for table, name in ((DAYS, "events_content"), (ITEMS, "title")))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path / "store"))
    update(store, "old")
    return store


def test_reads_of_a_pinned_store_do_not_see_later_commits(store):
    pinned = store.pinned()
    versions = {table.name: store.version(table) for table in (DAYS, ITEMS)}
    update(store, "new")
    store.replace(FILES, FILES.empty(), {"delivery_date": [DAY_1]})
    assert (seen(pinned), seen(store)) == (("old", "old"), ("new", "new"))
    assert {table.name: pinned.version(table) for table in (DAYS, ITEMS)} == versions
    assert not pinned.has(FILES), "nor a table that was made since"
    assert pinned.newest_version(ITEMS) == store.version(ITEMS)
    assert pinned.pinned() is pinned


def test_a_pinned_store_sees_what_is_written_through_it(store):
    pinned = store.pinned()
    version = write_item(pinned, "mine")
    assert (pinned.version(ITEMS), seen(pinned)) == (version, ("old", "mine"))


@pytest.mark.parametrize("opened", range(1, 6))
def test_pinned_tables_belong_together_whenever_a_neighbour_writes(store, monkeypatch, opened):
    monkeypatch.setattr("pipeline.publish.OPENED_AT_ONCE", 1)
    read, calls = Store._open, iter(range(1, 1000))
    neighbour = Store(store.root)

    def interrupted(self: Store, *arguments: Any) -> Any:
        table = read(self, *arguments)
        if self is not neighbour and next(calls) == opened:
            update(neighbour, "new")
        return table

    monkeypatch.setattr(Store, "_open", interrupted)
    assert seen(store.pinned()) in (("old", "old"), ("new", "new"))


def test_a_store_that_never_stands_still_is_a_fault_that_may_pass(store, monkeypatch):
    read, writing = Store._open, []

    def interrupted(self: Store, *arguments: Any) -> Any:
        table = read(self, *arguments)
        if not writing:
            writing.append(True)
            write_day(Store(store.root), "new")
            writing.clear()
        return table

    monkeypatch.setattr(Store, "_open", interrupted)
    with pytest.raises(RetryableError, match="are changed all the time"):
        store.pinned()


@pytest.fixture
def after_pin(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], None]:
    """Do something as soon as a step has pinned what it reads, once."""

    def arrange(work: Callable[[], Any]) -> None:
        pin, left = Store.pinned, [work]

        def pinned(self: Store) -> Store:
            copy = pin(self)
            if left:
                left.pop()()
            return copy

        monkeypatch.setattr(Store, "pinned", pinned)

    return arrange


def row(day: int, item: str, hour: int = 10) -> str:
    return f"ann,,{item},2026-03-{day:02}T{hour:02}:00:00Z,view"


def test_catalogues_lose_nothing_that_a_neighbour_wrote_between(small, after_pin):
    """Of two ingests side by side that both bring the catalogue of one day up to date."""
    for day, item in ((1, "a"), (2, "b")):
        small.deliver(f"2026-03-{day:02}", row(day, item))
        small.ingest(date(2026, 3, day))
        update_items(small.site, small.store, date(2026, 3, day))
    small.deliver("2026-03-01", row(1, "a"), row(1, "late"))
    small.ingest(DAY_1)

    def neighbour() -> None:
        small.deliver("2026-03-02", row(2, "b"), row(2, "fresh"))
        small.ingest(DAY_2)
        update_items(small.site, Store(small.store.root), DAY_2)

    after_pin(neighbour)
    update_items(small.site, small.store, DAY_1)
    assert sorted(latest_items(small.store, DAY_2)["item_id"]) == ["a", "b", "fresh", "late"]
    assert sorted(latest_items(small.store, DAY_1)["item_id"]) == ["a", "late"]


def test_sessions_are_recorded_as_made_from_the_events_that_were_read(small, after_pin, make_small):
    """A neighbour's ingest of the day after, in the midst of sessionize, makes the day stale and loses nothing."""
    days = {"2026-03-01": [row(1, "a", 23)], "2026-03-02": ["ann,,b,2026-03-02T00:10:00Z,view"]}
    small.deliver("2026-03-01", *days["2026-03-01"])
    small.ingest(DAY_1)

    def neighbour() -> None:
        small.deliver("2026-03-02", *days["2026-03-02"])
        small.ingest(DAY_2)

    after_pin(neighbour)
    small.sessionize(DAY_1)
    assert DAY_1 in stale_sessions(small.store, small.site.sessions)
    small.sessionize(DAY_2)
    calm = make_small("calm")
    for name, rows in days.items():
        calm.deliver(name, *rows)
    calm.ingest(DAY_1, DAY_2)
    calm.sessionize(DAY_1, DAY_2)
    assert small.sessions.equals(calm.sessions)
