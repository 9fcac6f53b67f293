"""Drift of a small shop: what is planted is found, what is missing is said, and a second run changes nothing."""

import json
from datetime import timedelta

import numpy as np
import polars as pl
import pytest

from pipeline.catalogue import latest_items
from pipeline.errors import ConfigurationError
from pipeline.tables import ITEMS, events_table, sessions_table
from serving_export.day_counts import GAP_STEPS, count_days
from serving_export.drift import MEASURES, drift
from serving_export.drift_picture import drift_picture
from serving_export.export import export
from serving_export.list_overlap import list_overlap
from serving_export.reader import Recommendations
from serving_export.shifts import shares_apart
from serving_export.tables import DRIFT, RECOMMENDATIONS
from training.tracking import Tracking

SHORT = {"window": {"length": "2d", "min_item_count": 2, "min_days": 2}}


def rows_of(shop, day):
    return {
        (row["measure"], row["part"]): row
        for row in shop.store.scan(DRIFT).filter(pl.col("event_date") == day).collect().iter_rows(named=True)
    }


@pytest.fixture
def short(released):
    """The released shop, its windows two days long: five days are enough to tell what is usual."""
    return released.with_changes(**SHORT)


def test_counts_are_those_of_a_plain_count(loaded_shop):
    day, store = loaded_shop.days[2], loaded_shop.store
    catalogue = latest_items(store, day)
    counts = count_days(
        loaded_shop.site, store, [loaded_shop.days[1], day], catalogue.filter(pl.col("item_id") != "sku-00001")
    )
    events = store.scan(events_table([])).filter(pl.col("event_date") == day).collect()
    n = events.height
    assert counts.items_DI[1].sum() == counts.categories_DK[1].sum() == counts.event_types_DK[1].sum() == n
    assert counts.items_DI[1][-1] == (events["item_id"] == "sku-00001").sum() > 0, "what is not in the catalogue"
    types = events["event_type"].value_counts().sort("event_type")["count"].to_list()
    assert counts.event_types_DK[1].tolist() == types
    categories = (
        events.join(catalogue, on="item_id").filter(pl.col("item_id") != "sku-00001")["category"].value_counts()
    )
    assert counts.categories_DK[1][:-1].tolist() == categories.sort("category")["count"].to_list()
    sessions = store.scan(sessions_table([])).filter(pl.col("session_date") == day).collect()
    assert counts.lengths_DK[1].tolist() == np.bincount(sessions["num_events"], minlength=201).tolist()
    gaps = np.concatenate([np.diff(offsets) for offsets in sessions["offsets_seconds"]])
    assert counts.gaps_DK[1].sum() == len(gaps)
    middle = np.searchsorted(counts.gaps_DK[1].cumsum(), len(gaps) / 2) / GAP_STEPS
    assert middle == pytest.approx(np.log2(1 + np.median(gaps)), abs=2 / GAP_STEPS)


def test_a_day_is_measured_and_a_second_run_changes_nothing(released, short):
    day = released.days[3]
    told = drift(short, released.store, day)
    rows = rows_of(released, day)
    assert {measure for measure, _ in rows} == set(MEASURES)
    first, second = (released.days[n] for n in (1, 2))
    assert rows["item_shift", "all"]["compared_with"] == f"{first} to {second}, 2 days"
    catalogue = latest_items(released.store, day)
    counts = count_days(short, released.store, [first, second, day], catalogue)
    assert rows["item_shift", "all"]["value"] == pytest.approx(
        shares_apart(counts.items_DI[2], counts.items_DI[:2].sum(0)), abs=1e-6
    )
    assert rows["list_overlap", "all"]["value"] is None
    assert rows["list_overlap", "all"]["note"] == "there is no release before"
    assert rows["cold_event_share", "all"]["value"] == 0
    assert rows["cold_event_share", "all"]["compared_with"] == "the model through 2026-03-04"
    assert rows["unknown_event_share", "all"]["value"] == 0
    assert told["alerts"] == []
    metrics = Tracking(short).client.get_run(told["run_id"]).data.metrics
    assert metrics["drift/item_shift"] == told["values"]["item_shift"] == rows["item_shift", "all"]["value"]
    version = released.store.version(DRIFT)
    assert drift(short, released.store, day) == told
    assert rows_of(released, day) == rows
    assert released.store.version(DRIFT) == version + 1


def test_a_first_day_says_what_it_lacks(released):
    day = released.days[0]
    told = drift(released.site, released.store, day)
    notes = {measure: row["note"] for (measure, _), row in rows_of(released, day).items()}
    assert notes["item_shift"] == "no passed day in the window before"
    assert notes["cold_event_share"] == "no model serves yet"
    assert notes["list_overlap"] == "no lists were published for the day"
    assert told["values"] == {"unknown_event_share": 0}
    with pytest.raises(ConfigurationError, match=r"no sessions of 2020-01-01. Run `nightjar ingest`"):
        drift(released.site, released.store, day.replace(year=2020, month=1, day=1))


def shifted(rows, table, day):
    """A day on which everyone did other things than before."""
    kept = rows.filter(pl.col(table.partition_by[0]) == day)
    if table.name == "events":
        return kept.with_columns(item_id=pl.lit("sku-new"), event_type=pl.lit("purchase"))
    slower = pl.col("offsets_seconds").list.eval(pl.element() * 64)
    return kept.with_columns(offsets_seconds=slower)


def test_a_planted_shift_raises_an_alert_for_each_measure(released, short):
    day = released.days[5]
    for table in (events_table([]), sessions_table([])):
        rows = shifted(released.store.scan(table).collect(), table, day)
        released.store.replace(table, rows, {table.partition_by[0]: [day]})
    told = drift(short, released.store, day)
    rows = rows_of(released, day)
    broken = {measure for (measure, _), row in rows.items() if not row["held"]}
    assert broken == {
        "item_shift",
        "category_shift",
        "event_type_shift",
        "gap_shift",
        "cold_event_share",
        "unknown_event_share",
    }
    assert rows["session_length_shift", "all"]["usual"] is not None
    assert len(told["alerts"]) == len(broken)
    assert any(
        alert.startswith("small, 2026-03-06: gap_shift, time between events (Wasserstein, doublings), is ")
        and alert.endswith("against 2026-03-04 to 2026-03-05, 2 days")
        for alert in told["alerts"]
    )
    silent = short.model_copy(update={"drift": short.drift.model_copy(update=dict.fromkeys(MEASURES))})
    assert drift(silent, released.store, day)["alerts"] == []


def test_lists_are_held_against_the_release_before(released, short):
    before, day = released.days[3], released.days[4]
    export(released.site, released.store, day)
    drift(short, released.store, day)
    row = rows_of(released, day)["list_overlap", "home"]
    versions = {before: released.store.version(RECOMMENDATIONS) - 1, day: None}
    rows = {each: released.store.scan(RECOMMENDATIONS, version).collect() for each, version in versions.items()}
    lists = {each: dict(frame.group_by("user_id").agg("item_id").rows()) for each, frame in rows.items()}
    shares = [
        len(set(now) & set(lists[before][user])) / max(len(now), len(lists[before][user]))
        for user, now in lists[day].items()
        if user in lists[before]
    ]
    assert row["value"] == pytest.approx(np.mean(shares), abs=1e-6)
    assert 0 < row["value"] < 1
    assert row["compared_with"] == "the lists of 2026-03-04"
    same = Recommendations(released.store.root, when_stale="ignore")
    assert list_overlap(same, same) == {"home": 1.0}
    picky = short.model_copy(update={"drift": short.drift.model_copy(update={"list_overlap": 1.0})})
    assert "list_overlap/home, share of a user's list" in drift(picky, released.store, day)["alerts"][0]


def test_a_site_without_a_side_table_says_so(released, short):
    plain = short.model_copy(update={"items": None})
    drift(plain, released.store, released.days[3])
    assert rows_of(released, released.days[3])["unknown_event_share", "all"]["note"] == "the site has no side table"


def test_items_that_the_side_table_does_not_describe_are_counted(released, short):
    day = released.days[3]
    items = latest_items(released.store, day)
    nothing = [
        pl.when(pl.col("item_id") != "sku-00001").then(name).alias(name) for name in ("title", "category", "price")
    ]
    days = released.store.scan(ITEMS).select("snapshot_date").unique().collect().to_series().to_list()
    released.store.replace(
        ITEMS, items.with_columns(nothing, snapshot_date=pl.lit(day)), {"snapshot_date": [*days, day]}
    )
    events = released.store.scan(events_table([])).filter(pl.col("event_date") == day).collect()
    value = drift(short, released.store, day)["values"]["unknown_event_share"]
    assert value == pytest.approx((events["item_id"] == "sku-00001").mean(), abs=1e-6)
    assert value > 0


def test_the_command_ends_with_its_alerts(released, command, caplog):
    code, out, err = command(released.home, "drift", "--site", released.file, "--date", released.days[3])
    assert code == 0, err
    told = json.loads(out)
    assert told["step"] == "drift"
    assert told["alerts"] == []
    assert "item_shift: too few days before to tell what is usual" in caplog.text
    code, _, err = command(released.home, "drift", "--site", released.file, "--date", "2020-01-01")
    assert code == 2


def test_the_picture_is_drawn_of_any_rows(released, short):
    last = released.days[3]
    for rows in (DRIFT.empty(), released.store.scan(DRIFT).collect()):
        assert drift_picture(rows, last - timedelta(days=27), last).startswith(b"\x89PNG")
