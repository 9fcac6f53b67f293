from datetime import date, timedelta

import polars as pl
import pytest

from features.build import build_features, check_features, read_training_rows, read_vocabulary, training_rows
from features.sequences import encode_sessions, read_sequences
from features.settings import Window
from features.tables import SEQUENCES, VOCABULARY
from features.vocabulary import learn_vocabulary
from features.window import data_digest, earlier_sessions, held_out_sessions, sessions_until, window_days
from pipeline.dates import day_end
from pipeline.errors import ConfigurationError, ContractError
from pipeline.tables import events_table, sessions_table


def test_training_rows_hold_known_items_only_and_at_least_one_of_them(sessions_of):
    vocabulary = learn_vocabulary(sessions_of([["a", "b", "a", "b"]]), 1)
    rows = training_rows(sessions_of([["a", "?", "b"], ["a", "?"], ["?"], ["b", "b"]]), vocabulary, date(2026, 3, 1))
    assert rows.select("item_codes", "offsets_seconds").rows() == [
        ([1, 2], [0.0, 120.0]),
        ([1], [0.0]),
        ([2, 2], [0.0, 60.0]),
    ]


def test_rows_read_back_are_the_sessions_encoded(loaded_shop):
    days = loaded_shop.days[:3]
    sessions = sessions_until(loaded_shop.site, loaded_shop.store, days, days[-1])
    vocabulary = learn_vocabulary(sessions, 2)
    read = read_sequences(training_rows(sessions, vocabulary, days[-1]))
    encoded = encode_sessions(sessions, vocabulary).known_only().at_least(1)
    assert read.item_codes.tolist() == encoded.item_codes.tolist()
    assert read.offsets.tolist() == encoded.offsets.tolist()
    assert read.occurred_at.tolist() == encoded.occurred_at.tolist()


def test_building_twice_gives_the_same_tables_and_the_same_digest(copy_shop):
    shop = copy_shop()
    night = shop.days[4]
    first, tables = build_features(shop.site, shop.store, night), []
    tables.append((shop.store.scan(VOCABULARY).collect(), shop.store.scan(SEQUENCES).collect()))
    assert build_features(shop.site, shop.store, night) == first
    again = (shop.store.scan(VOCABULARY).collect(), shop.store.scan(SEQUENCES).collect())
    assert all(one.equals(other) for one, other in zip(tables[0], again, strict=True))
    assert first["days"] == 4
    assert first["sequences"] == read_training_rows(shop.store, night).height
    assert first["items"] == read_vocabulary(shop.store, night).items.height


def test_a_window_holds_passed_days_only_and_no_later_ones(copy_shop, judge):
    shop = copy_shop()
    assert window_days(shop.site, shop.store, shop.days[4]) == shop.days[1:5]
    judge(shop.store, shop.days[2], "failed")
    assert window_days(shop.site, shop.store, shop.days[4]) == [shop.days[1], *shop.days[3:5]]


def test_sessions_are_trimmed_at_the_end_of_the_window(loaded_shop):
    site, store, last = loaded_shop.site, loaded_shop.store, loaded_shop.days[3]
    end = day_end(last, site.time_zone)
    stored = store.scan(sessions_table([])).filter(pl.col("session_date") == last).collect()
    straddling = stored.filter(pl.col("ended_at") >= end)
    assert straddling.height > 0, "the shop has visits over midnight"
    trimmed = sessions_until(site, store, [last], last)
    assert trimmed.height == stored.height
    assert trimmed["ended_at"].max() < end
    cut = trimmed.join(straddling.select("session_id", whole="item_ids"), on="session_id")
    for kept, whole in cut.select("item_ids", "whole").iter_rows():
        assert kept == whole[: len(kept)]
        assert 1 <= len(kept) < len(whole)


def test_later_days_in_the_store_change_nothing(copy_shop):
    shop = copy_shop()
    store, night = shop.store, shop.days[4]
    build_features(shop.site, store, night)
    with_later_days = read_training_rows(store, night)
    for table in (sessions_table([]), events_table([])):
        store.replace(table, table.empty(), {table.partition_by[0]: shop.days[4:]})
    build_features(shop.site, store, night)
    assert read_training_rows(store, night).equals(with_later_days)


def test_too_few_days_are_refused_with_the_command_that_helps(loaded_shop):
    site = loaded_shop.with_changes(window={"min_days": 4})
    with pytest.raises(
        ConfigurationError, match=r"3 validated days from 2026-02-28 to 2026-03-03.*min_days.*4.*nightjar run"
    ):
        window_days(site, loaded_shop.store, loaded_shop.days[2])


def test_a_window_lasts_whole_days():
    with pytest.raises(ValueError, match="whole days"):
        Window(length=timedelta(hours=36))
    with pytest.raises(ValueError, match="whole days"):
        Window(length=timedelta(0))


def test_nothing_frequent_enough_is_an_error_that_names_both_ways_out(loaded_shop):
    site = loaded_shop.with_changes(window={"min_item_count": 10_000})
    with pytest.raises(ContractError, match=r"10000 events. Lower window.min_item_count or lengthen window.length"):
        build_features(site, loaded_shop.store, loaded_shop.days[4])


def test_a_day_that_failed_is_not_tested_on(copy_shop, judge):
    shop = copy_shop()
    judge(shop.store, shop.days[4], "failed")
    with pytest.raises(ContractError, match="2026-03-05 has not passed validation"):
        held_out_sessions(shop.site, shop.store, shop.days[4])


def test_features_of_other_data_are_refused(copy_shop, judge):
    shop = copy_shop()
    night = shop.days[4]
    with pytest.raises(ConfigurationError, match="Run `nightjar features`"):
        check_features(shop.site, shop.store, night)
    digest = build_features(shop.site, shop.store, night)["data_digest"]
    build_features(shop.site, shop.store, shop.days[5])
    assert check_features(shop.site, shop.store, night) == digest
    judge(shop.store, shop.days[2], "failed")
    with pytest.raises(ConfigurationError, match=r"built from other data.*features.*again"):
        check_features(shop.site, shop.store, night)


def test_the_digest_follows_the_data_and_the_settings(copy_shop):
    shop = copy_shop()
    days = shop.days[:3]
    digest = data_digest(shop.store, days, 2)
    assert digest == data_digest(shop.store, days, 2)
    assert digest != data_digest(shop.store, days, 3)
    assert digest != data_digest(shop.store, days[:2], 2)


def test_earlier_sessions_are_the_newest_of_the_days_visitors_in_the_window_before(loaded_shop):
    site, store, day = loaded_shop.site, loaded_shop.store, loaded_shop.days[5]
    sessions = held_out_sessions(site, store, day)
    every = earlier_sessions(site, store, sessions, day, 50)
    days = loaded_shop.days[1:5]
    expected = sessions_until(site, store, days, days[-1]).join(sessions, on="visitor", how="semi")
    assert set(every["session_id"]) == set(expected["session_id"])
    assert every["started_at"].max() < sessions["started_at"].min()
    newest = earlier_sessions(site, store, sessions, day, 1)
    assert newest["visitor"].is_unique().all()
    last = every.sort("started_at", "session_id").group_by("visitor").agg(pl.col("session_id").last())
    assert set(newest["session_id"]) == set(last["session_id"])
