from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from deltalake import DeltaTable

from pipeline.errors import ConfigurationError, RetryableError
from pipeline.publish import Store, open_store
from pipeline.tables import DAYS, SITE, events_table

DAY_1, DAY_2, DAY_3 = (date(2026, 3, day) for day in (1, 2, 3))
EVENTS = events_table(["device"])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def events(day: date, *items: str, bucket: int = 0) -> pl.DataFrame:
    told = pl.DataFrame({"item_id": items}, schema={"item_id": pl.String}).with_columns(
        event_date=pl.lit(day), user_bucket=pl.lit(bucket), visitor=pl.lit("ann")
    )
    return pl.concat([EVENTS.empty(), told], how="diagonal_relaxed")


def items(store: Store, version: int | None = None) -> dict[date, list[str]]:
    rows = store.scan(EVENTS, version).sort("item_id").collect()
    return {day: list(part["item_id"]) for (day,), part in sorted(rows.group_by("event_date"))}


def test_a_table_that_was_never_written_has_no_rows_and_all_columns(store):
    rows = store.scan(EVENTS).collect()
    assert rows.is_empty()
    assert dict(rows.schema) == dict(EVENTS.columns)
    assert store.version(EVENTS) is None


def test_rows_come_back_as_they_were_written(store):
    told = events(DAY_1, "x").with_columns(
        occurred_at=pl.lit(datetime(2026, 3, 1, 10, 0, 0, 123456, tzinfo=UTC)), device=pl.lit("ü"), user_id=pl.lit(None)
    )
    told = told.cast(dict(EVENTS.columns))
    store.replace(EVENTS, told, {"event_date": [DAY_1]})
    assert store.scan(EVENTS).collect().equals(told.select(list(EVENTS.columns)))


def test_staged_rows_are_unseen_until_they_are_committed(store):
    store.replace(EVENTS, events(DAY_1, "old"), {"event_date": [DAY_1]})
    staged = store.stage(EVENTS, pl.concat([events(DAY_1, "new"), events(DAY_1, "newer", bucket=1)]))
    assert len(staged) == 2
    assert items(store) == {DAY_1: ["old"]}
    store.commit(EVENTS, staged, {"event_date": [DAY_1]})
    assert items(store) == {DAY_1: ["new", "newer"]}


def test_files_of_several_stages_become_visible_in_one_version(store):
    files = [file for n in range(3) for file in store.stage(EVENTS, events(DAY_1, f"i{n}", bucket=n))]
    version = store.commit(EVENTS, (file for file in files), {"event_date": [DAY_1]})
    assert items(store, version) == {DAY_1: ["i0", "i1", "i2"]}
    assert items(store, version - 1) == {}


def test_other_partitions_are_left_alone(store):
    days = [DAY_1, DAY_2, DAY_3]
    store.replace(EVENTS, pl.concat(events(day, "old") for day in days), {"event_date": days})
    store.replace(EVENTS, events(DAY_2, "new"), {"event_date": [DAY_2]})
    assert items(store) == {DAY_1: ["old"], DAY_2: ["new"], DAY_3: ["old"]}


def test_no_rows_remove_the_named_partitions_and_no_other(store):
    store.replace(EVENTS, pl.concat([events(DAY_1, "x"), events(DAY_2, "y")]), {"event_date": [DAY_1, DAY_2]})
    store.replace(EVENTS, EVENTS.empty(), {"event_date": [DAY_1, DAY_3]})
    assert items(store) == {DAY_2: ["y"]}


def test_a_table_without_partitions_is_replaced_as_a_whole(store):
    for name in ("a", "b"):
        store.replace(SITE, pl.DataFrame([{"name": name, "buckets": 2}], schema=dict(SITE.columns)), {})
    assert store.scan(SITE).collect().rows() == [("b", 2, None, None)]


@pytest.mark.parametrize(
    ("replace", "said"),
    [({}, "is replaced by"), ({"item_id": ["x"]}, "is replaced by"), ({"event_date": []}, "no partition of events")],
)
def test_a_replacement_must_name_partitions(store, replace, said):
    with pytest.raises(ValueError, match=said):
        store.replace(EVENTS, events(DAY_1, "x"), replace)
    assert store.version(EVENTS) is None


def test_a_table_without_partitions_cannot_be_replaced_in_part(store):
    with pytest.raises(ValueError, match="site is replaced by"):
        store.replace(SITE, SITE.empty(), {"name": ["a"]})


def test_a_pinned_version_does_not_change(store):
    version = store.replace(EVENTS, events(DAY_1, "old"), {"event_date": [DAY_1]})
    pinned, unpinned = store.scan(EVENTS, version), store.scan(EVENTS)
    store.replace(EVENTS, events(DAY_1, "new"), {"event_date": [DAY_1]})
    assert pinned.collect()["item_id"].to_list() == ["old"]
    assert unpinned.collect()["item_id"].to_list() == ["old"]
    assert items(store) == {DAY_1: ["new"]}


def test_metadata_is_kept_with_the_commit(store):
    store.replace(EVENTS, events(DAY_1, "x"), {"event_date": [DAY_1]}, {"data_through": DAY_1, "run": 7})
    commit = DeltaTable(store.table_uri("events")).history(1)[0]
    assert (commit["data_through"], commit["run"]) == ("2026-03-01", "7")


def test_other_readers_can_filter_text(store):
    store.replace(EVENTS, events(DAY_1, "x", "y"), {"event_date": [DAY_1]})
    table = DeltaTable(store.table_uri("events"))
    filters = [("item_id", "=", "y"), ("event_date", "=", DAY_1)]
    assert table.to_pyarrow_table(filters=filters).num_rows == 1
    assert table.to_pandas(filters=[("visitor", "=", "ann")])["item_id"].tolist() == ["x", "y"]


def test_a_new_context_column_is_null_on_earlier_days(store):
    store.replace(EVENTS, events(DAY_1, "x"), {"event_date": [DAY_1]})
    wider = events_table(["device", "region"])
    rows = events(DAY_2, "y").with_columns(region=pl.lit("north"))
    store.replace(wider, rows, {"event_date": [DAY_2]})
    assert store.scan(wider).sort("event_date").collect()["region"].to_list() == [None, "north"]
    assert items(store) == {DAY_1: ["x"], DAY_2: ["y"]}


def test_a_column_that_was_declared_later_is_null_before_it_is_first_written(store):
    store.replace(EVENTS, events(DAY_1, "x"), {"event_date": [DAY_1]})
    rows = store.scan(events_table(["device", "region"])).collect()
    assert rows["item_id"].to_list() == ["x"]
    assert rows["region"].to_list() == [None]


def test_a_table_keeps_its_versions_for_as_long_as_the_site_says(tmp_path):
    store = Store(str(tmp_path / "store"), timedelta(days=10))
    store.replace(EVENTS, events(DAY_1, "x"), {"event_date": [DAY_1]})
    told = DeltaTable(store.table_uri("events")).metadata().configuration
    assert told["delta.deletedFileRetentionDuration"] == "interval 240 hours"
    assert told["delta.logRetentionDuration"] == "interval 480 hours"


def test_the_log_of_a_table_is_summed_up_often_so_that_opening_it_stays_cheap(store):
    for n in range(21):
        store.replace(EVENTS, events(DAY_1, f"x{n}"), {"event_date": [DAY_1]})
    log = Path(store.table_uri("events")) / "_delta_log"
    assert len(list(log.glob("*.checkpoint.parquet"))) == 2
    assert items(store) == {DAY_1: ["x20"]}
    assert store.open(EVENTS, version=3).version() == 3


# --- several writers


def replace_day(store: Store, day: date, item: str, base: int | None = None) -> str:
    try:
        store.replace(EVENTS, events(day, item), {"event_date": [day]}, base=base)
    except RetryableError as error:
        return str(error)
    return "done"


def test_writers_of_different_days_do_not_disturb_each_other(store):
    days = [date(2026, 3, day) for day in range(1, 13)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda day: replace_day(store, day, str(day)), days)) == ["done"] * len(days)
    assert items(store) == {day: [str(day)] for day in days}


def test_of_writers_of_one_day_one_stands_and_the_others_are_told_to_try_again(store):
    names = [f"writer {n}" for n in range(12)]
    with ThreadPoolExecutor(4) as pool:
        told = list(pool.map(lambda name: replace_day(store, DAY_1, name), names))
    winners = [name for name, answer in zip(names, told, strict=True) if answer == "done"]
    assert items(store)[DAY_1][0] in winners
    assert len(items(store)[DAY_1]) == 1
    assert all("was changed by another writer" in answer for answer in told if answer != "done")


@pytest.mark.parametrize("before", [[], ["old"]])
def test_a_day_that_was_replaced_since_the_base_is_not_overwritten(store, before):
    base = store.replace(EVENTS, events(DAY_1, *before), {"event_date": [DAY_1]})
    assert replace_day(store, DAY_1, "faster", base) == "done"
    assert "run the step again" in replace_day(store, DAY_1, "slower", base)
    assert items(store) == {DAY_1: ["faster"]}
    assert replace_day(store, DAY_2, "neighbour", base) == "done"
    assert items(store) == {DAY_1: ["faster"], DAY_2: ["neighbour"]}


def test_a_claim_is_as_good_as_a_replacement(store):
    base = store.replace(EVENTS, events(DAY_1, "x"), {"event_date": [DAY_1]})
    claim = [f"event_date={DAY_3}"]
    store.commit(EVENTS, store.stage(EVENTS, events(DAY_1, "y")), {"event_date": [DAY_1]}, also_claim=claim)
    assert "run the step again" in replace_day(store, DAY_3, "z", base)


def test_a_rewrite_of_the_same_rows_stops_no_writer_that_began_before_it(store):
    base = store.replace(EVENTS, events(DAY_1, "x"), {"event_date": [DAY_1]})
    store.rewrite(EVENTS, store.stage(EVENTS, events(DAY_1, "x")), {"event_date": [DAY_1]}, base)
    assert replace_day(store, DAY_1, "new", base) == "done"
    assert items(store) == {DAY_1: ["new"]}


def test_a_rewrite_of_what_was_replaced_meanwhile_is_refused(store):
    base = store.replace(EVENTS, events(DAY_1, "old"), {"event_date": [DAY_1]})
    staged = store.stage(EVENTS, events(DAY_1, "old"))
    store.replace(EVENTS, events(DAY_1, "new"), {"event_date": [DAY_1]})
    with pytest.raises(RetryableError, match="was changed by another writer"):
        store.rewrite(EVENTS, staged, {"event_date": [DAY_1]}, base)
    assert items(store) == {DAY_1: ["new"]}


# --- a site's store


def test_a_store_is_made_at_first_use_and_found_again(small):
    assert small.store.scan(SITE).collect().rows() == [("small", 2, None, True)]
    assert small.store.version(SITE) == small.store.version(SITE) == 1


def test_the_store_of_another_site_is_refused(small, make_small):
    assert small.store
    with pytest.raises(
        ConfigurationError, match=r"was made by the site 'small', not by 'other'\. Give this site a `store`"
    ):
        open_store(make_small().site.model_copy(update={"name": "other"}))


def test_other_buckets_are_refused(small, make_small):
    assert small.store
    with pytest.raises(ConfigurationError, match=r"made with 2 buckets, the site file says 3\. Set `buckets: 2`"):
        open_store(make_small(buckets=3).site)


def test_a_place_that_cannot_be_written_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "file").write_text("no folder")
    store = Store(str(tmp_path / "file/store"))
    for write in (
        lambda: store.replace(EVENTS, events(DAY_1, "x"), {"event_date": [DAY_1]}),
        lambda: store.commit(DAYS, [], {"event_date": [DAY_1]}),
    ):
        with pytest.raises(ConfigurationError, match="Is the store writable"):
            write()


@pytest.mark.parametrize("folder", ["my store", "störe", "a%20b"])
def test_a_path_that_polars_could_not_find_again_is_refused(make_small, folder):
    small = make_small(store=folder)
    with pytest.raises(ConfigurationError, match="which polars cannot find again"):
        open_store(small.site)
    assert not (small.home / folder).exists()
