"""Compact and vacuum: the same rows in fewer files, and nothing removed that a kept version or a writer needs."""

import os
import re
import time
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from pipeline import upkeep
from pipeline.errors import RetryableError
from pipeline.publish import Store
from pipeline.tables import SITE, events_table
from pipeline.upkeep import compact, vacuum

DAY_1, DAY_2 = date(2026, 3, 1), date(2026, 3, 2)
EVENTS = replace(events_table([]), sort_by=("visitor",))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"), timedelta(days=10))


def events(day: date, *visitors: str, bucket: int = 0) -> pl.DataFrame:
    told = pl.DataFrame({"visitor": visitors}, schema={"visitor": pl.String}).with_columns(
        event_date=pl.lit(day), user_bucket=pl.lit(bucket)
    )
    return pl.concat([EVENTS.empty(), told], how="diagonal_relaxed")


def write_scattered(store: Store, day: date) -> int:
    """Bucket 0 in three files, bucket 1 in one."""
    parts = [(["c", "f"], 0), (["a", "e"], 0), (["b", "d"], 0), (["x"], 1)]
    staged = [file for visitors, bucket in parts for file in store.stage(EVENTS, events(day, *visitors, bucket=bucket))]
    return store.commit(EVENTS, staged, {"event_date": [day]})


def data_files(store: Store) -> list[Path]:
    return sorted(Path(store.root).rglob("*.parquet*"))


def make_older(files: list[Path], days: float) -> None:
    then = time.time() - days * 86_400
    for file in files:
        os.utime(file, (then, then))


def committed_ago(store: Store, table: str, days: dict[int, float]) -> None:
    """Let versions have been committed some days ago: what they added, and what they removed."""
    for version, ago in days.items():
        log = Path(store.table_uri(table)) / f"_delta_log/{version:020}.json"
        earlier = re.sub(
            r'("(?:deletionTimestamp|timestamp)":)(\d+)',
            lambda m, by=ago: f"{m[1]}{int(m[2]) - int(by * 86_400_000)}",
            log.read_text(),
        )
        log.write_text(earlier)
        make_older([log], ago)


# --- compact


def test_the_files_of_a_partition_become_one_in_the_tables_order(store):
    for day in (DAY_1, DAY_2):
        write_scattered(store, day)
    before = store.scan(EVENTS).sort("event_date", "visitor").collect()
    assert compact(store, [EVENTS, SITE]) == [{"table": "events", "partitions": 2, "files_before": 6, "files_after": 2}]
    assert store.scan(EVENTS).sort("event_date", "visitor").collect().equals(before)
    files = [Path(path) for path in store.open(EVENTS).file_uris()]
    assert len(files) == 4
    orders = [pq.read_table(file, partitioning=None)["visitor"].to_pylist() for file in files]
    assert sorted(orders) == [["a", "b", "c", "d", "e", "f"]] * 2 + [["x"]] * 2


def test_compacting_again_does_nothing(store):
    write_scattered(store, DAY_1)
    compact(store, [EVENTS])
    version = store.version(EVENTS)
    assert compact(store, [EVENTS]) == []
    assert store.version(EVENTS) == version


def test_row_groups_stay_small_enough_to_find_one_user(store):
    many = [f"{n:06}" for n in range(40_000)]
    staged = store.stage(EVENTS, events(DAY_1, *many[::2])) + store.stage(EVENTS, events(DAY_1, *many[1::2]))
    store.commit(EVENTS, staged, {"event_date": [DAY_1]})
    compact(store, [EVENTS])
    (file,) = store.open(EVENTS).file_uris()
    facts = pq.ParquetFile(file).metadata
    assert [facts.row_group(n).num_rows for n in range(facts.num_row_groups)] == [16_384, 16_384, 7_232]
    assert pq.ParquetFile(file).read(columns=["visitor"])["visitor"].to_pylist() == many


def test_a_partition_that_is_big_already_is_left_alone(store, monkeypatch):
    write_scattered(store, DAY_1)
    monkeypatch.setattr(upkeep, "MOST_BYTES", 100)
    assert compact(store, [EVENTS]) == []


def test_a_step_that_is_faster_stands_and_compact_is_told_to_try_again(store, monkeypatch):
    write_scattered(store, DAY_1)
    stage = store.stage

    def stage_late(table, rows):
        monkeypatch.setattr(store, "stage", stage)
        store.replace(EVENTS, events(DAY_1, "new"), {"event_date": [DAY_1]})
        return stage(table, rows)

    monkeypatch.setattr(store, "stage", stage_late)
    with pytest.raises(RetryableError, match="changed by another writer"):
        compact(store, [EVENTS])
    assert store.scan(EVENTS).collect()["visitor"].to_list() == ["new"]


def test_a_step_that_began_before_goes_on_undisturbed(store):
    base = write_scattered(store, DAY_1)
    compact(store, [EVENTS])
    store.replace(EVENTS, events(DAY_1, "new"), {"event_date": [DAY_1]}, base=base)
    assert store.scan(EVENTS).collect()["visitor"].to_list() == ["new"]


# --- vacuum


def test_files_that_no_kept_version_needs_are_removed_and_counted(store):
    versions = [store.replace(EVENTS, events(DAY_1, name), {"event_date": [DAY_1]}) for name in "abcd"]
    make_older(data_files(store), 40)
    committed_ago(store, "events", {0: 40, 1: 30, 2: 20, 3: 11, 4: 5})  # "b" was replaced 11 days ago, "c" 5 days ago
    sizes = {file: file.stat().st_size for file in data_files(store)}
    found = vacuum(store, dry_run=True)
    assert data_files(store) == sorted(sizes)
    assert vacuum(store, dry_run=False) == found
    gone = set(sizes) - set(data_files(store))
    assert found == [{"table": "events", "files": 2, "bytes": sum(sizes[file] for file in gone)}]
    for version, name in zip(versions[2:], "cd", strict=True):
        assert store.scan(EVENTS, version).collect()["visitor"].to_list() == [name], "a kept version can be read"
    store.open(EVENTS).restore(versions[2])
    assert store.scan(EVENTS).collect()["visitor"].to_list() == ["c"]
    with pytest.raises(FileNotFoundError):
        store.scan(EVENTS, versions[1]).collect()


def test_what_a_killed_writer_left_goes_when_it_is_old_enough_and_never_earlier(store):
    store.replace(EVENTS, events(DAY_1, "a"), {"event_date": [DAY_1]})
    kept = data_files(store)
    (staged,) = store.stage(EVENTS, events(DAY_1, "never committed"))
    orphan = Path(store.table_uri("events")) / staged.path
    half = orphan.with_name("part-0001.parquet#1")
    half.write_bytes(b"half")
    make_older(data_files(store), 9.9)
    assert vacuum(store, dry_run=False) == [{"table": "events", "files": 0, "bytes": 0}]
    assert len(data_files(store)) == 3
    make_older(data_files(store), 10.1)
    size = orphan.stat().st_size + 4
    assert vacuum(store, dry_run=False) == [{"table": "events", "files": 2, "bytes": size}]
    assert data_files(store) == kept


def test_a_site_that_keeps_versions_longer_says_so_in_its_tables(store):
    store.replace(EVENTS, events(DAY_1, "a"), {"event_date": [DAY_1]})
    vacuum(Store(store.root, timedelta(days=20)), dry_run=False)
    assert store.open(EVENTS).metadata().configuration["delta.deletedFileRetentionDuration"] == "interval 480 hours"


def test_versions_are_kept_for_a_week_at_least(make_small):
    assert make_small(keep_versions_for="7d").store.keep_versions_for == timedelta(days=7)
    with pytest.raises(ValueError, match="versions are kept for at least 7d"):
        make_small(keep_versions_for="6d")
