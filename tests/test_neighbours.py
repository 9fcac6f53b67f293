"""Every model step beside a neighbour that rewrites all tables it reads, between any two reads of it."""

import shutil
from collections.abc import Callable, Iterator
from datetime import date
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable

import nightjar
from features.tables import SEQUENCES, VOCABULARY
from pipeline.publish import Store
from pipeline.tables import (
    DAYS,
    FILES,
    ITEMS,
    OPEN_SESSIONS,
    OUTCOME_KEY,
    REJECTED,
    SITE,
    Table,
    events_table,
    sessions_table,
)
from serving_export.reader import facts_of
from serving_export.tables import DRIFT, LIST_CHECKS, POPULAR_ITEMS, RECOMMENDATIONS, RELATED_ITEMS

READ = (events_table([]), sessions_table([]), OPEN_SESSIONS, ITEMS, DAYS, FILES, REJECTED, VOCABULARY, SEQUENCES)
WRITTEN = (VOCABULARY, SEQUENCES, RECOMMENDATIONS, POPULAR_ITEMS, RELATED_ITEMS, LIST_CHECKS, DRIFT)
PINNED = {"items_version": ITEMS, "sessions_version": sessions_table([]), "days_version": DAYS, "files_version": FILES}
OF_A_RUN = ("run_id", "page", "report", "comparison")


def rewrite(store: Store, tables: tuple[Table, ...]) -> None:
    """Leave a third of the rows of each table, and change the catalogue."""
    for table in tables:
        rows = store.scan(table).collect()
        if rows.height:
            key = table.partition_by[0]
            left = rows.gather_every(3)
            if table is ITEMS:
                left = left.with_columns(category=pl.lit("changed"))
            store.replace(table, left, {key: rows[key].unique().to_list()})


class Neighbour:
    """Rewrites what a step reads as soon as the step has pinned it, and puts it back when the step has ended."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store, self.monkeypatch = store, monkeypatch

    def run(self, step: Callable[[Store], Any], writes: tuple[Table, ...] = ()) -> Any:
        tables = tuple(table for table in READ if self.store.has(table) and table not in writes)
        before = {table.name: self.store.version(table) or 0 for table in tables}
        pin, read = Store.pinned, Store.open
        busy: list[bool] = []

        def pinned(store: Store) -> Store:
            busy.append(True)
            copy = pin(store)
            if copy is not store and len(busy) == 1:
                rewrite(Store(store.root), tables)
            busy.pop()
            return copy

        def opened(store: Store, table: Table, version: int | None = None) -> Any:
            is_pinned = version is not None or store._pins is not None or table in (SITE, OUTCOME_KEY)
            assert busy or is_pinned, f"{table.name} is read, and was not pinned"
            return read(store, table, version)

        with self.monkeypatch.context() as patched:
            patched.setattr(Store, "pinned", pinned)
            patched.setattr(Store, "open", opened)
            result = step(self.store)
        for table in tables:
            rewritten = self.store.version(table) or 0
            assert rewritten > before[table.name], f"the neighbour did not come to {table.name}"
            DeltaTable(self.store.table_uri(table.name)).restore(before[table.name])
        return result


def plain(result: Any) -> Any:
    """What a step returned, without what differs from run to run."""
    if isinstance(result, dict):
        kept = {key: plain(value) for key, value in result.items() if key not in OF_A_RUN}
        return {key: value for key, value in kept.items() if not key.endswith("_seconds") and "per_second" not in key}
    return result


def rows_of(store: Store, table: Table) -> list[tuple[Any, ...]]:
    frame = store.scan(table).collect().drop("model_version", "run_id", strict=False)
    flat = [name for name in frame.columns if not frame.schema[name].is_nested()]
    return frame.sort(flat, nulls_last=True).rows()


@pytest.fixture
def twins(tmp_path, popular_shop, write_site) -> list[Any]:
    """Two copies of a shop with a release of the fourth night."""
    shops = []
    for name in ("alone", "disturbed"):
        home = tmp_path / name
        shutil.copytree(popular_shop.home / "store", home / "store")
        shutil.copy(popular_shop.home / "mlflow.db", home / "mlflow.db")
        shops.append(write_site(home, training={"recipes": {"popularity": None}}))
    return shops


def steps_of_a_night(site: Any, night: date) -> Iterator[tuple[str, Callable[[Store], Any]]]:
    yield "features", lambda store: nightjar.features(site, store, night)
    for recipe in site.training.recipes:
        yield f"train {recipe}", lambda store, recipe=recipe: nightjar.train(site, store, night, recipe, 1)
    for name, step in nightjar.AFTER_TRAINING.items():
        yield name, lambda store, step=step: step(site, store, night)


def test_every_model_step_reads_the_store_as_it_was_when_the_step_began(twins, monkeypatch):
    alone, disturbed = twins
    night = alone.days[4]
    neighbour = Neighbour(disturbed.store, monkeypatch)
    versions: dict[str, int | None] = {}
    pairs = zip(steps_of_a_night(alone.site, night), steps_of_a_night(disturbed.site, night), strict=True)
    for (name, step), (_, same) in pairs:
        if name == "export":
            versions = {name: disturbed.store.version(table) for name, table in PINNED.items()}
        writes = (VOCABULARY, SEQUENCES) if name == "features" else ()
        assert plain(neighbour.run(same, writes)) == plain(step(alone.store)), name
    for table in WRITTEN:
        assert rows_of(disturbed.store, table) == rows_of(alone.store, table), table.name
    release = facts_of(disturbed.store.open(RECOMMENDATIONS))
    assert {name: int(release[name]) for name in PINNED} == versions
