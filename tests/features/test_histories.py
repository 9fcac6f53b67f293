from datetime import timedelta

import polars as pl
import pytest

from features.histories import active_events, first_day, last_events, last_sessions, seen_items
from pipeline.dates import day_end
from pipeline.tables import events_table, sessions_table

MONTH = timedelta(days=30)


@pytest.fixture(scope="module")
def events(loaded_shop):
    return loaded_shop.store.scan(events_table([])).collect()


def both_buckets(read, site, store, *arguments):
    return pl.concat([read(site, store, *arguments, bucket) for bucket in range(site.buckets)])


def test_a_history_is_a_users_last_items_in_time_order(loaded_shop, events):
    last = loaded_shop.days[4]
    active = both_buckets(active_events, loaded_shop.site, loaded_shop.store, last, MONTH)
    histories = last_events(active, 3, timedelta(minutes=30))
    ours = events.filter(pl.col("event_date") <= last, pl.col("user_id").is_not_null())
    assert set(histories["user_id"]) == set(ours["user_id"])
    columns = ("user_id", "item_ids", "event_type", "occurred_at", "last_at")
    for user, items, types, times, last_at in histories.select(columns).iter_rows():
        of_user = ours.filter(pl.col("user_id") == user).sort("occurred_at", "event_id")
        assert items == of_user["item_id"].to_list()[-3:]
        assert types == of_user["event_type"].to_list()[-3:]
        assert times == of_user["occurred_at"].to_list()[-3:]
        assert last_at == of_user["occurred_at"].to_list()[-1]


def test_a_history_falls_into_sessions_at_silences():
    minutes = {"u": [0, 30, 61, 62], "v": [5, 500]}
    start = pl.datetime(2026, 3, 1, time_zone="UTC", time_unit="us")
    rows = [(user, f"{user}{n}", minute) for user, told in minutes.items() for n, minute in enumerate(told)]
    events = pl.DataFrame(rows, schema=["user_id", "item_id", "minute"], orient="row").select(
        *("user_id", "item_id"),
        occurred_at=start + pl.duration(minutes="minute"),
        event_id="item_id",
        visitor="user_id",
        event_type=pl.lit("view"),
    )
    histories = last_events(events.lazy(), 3, timedelta(minutes=30))
    assert histories.select("item_ids", "session").rows() == [
        (["u1", "u2", "u3"], [0, 1, 1]),
        (["v0", "v1"], [0, 1]),
    ]


def test_nothing_after_the_end_of_the_day_is_seen(loaded_shop):
    last = loaded_shop.days[2]
    active = both_buckets(active_events, loaded_shop.site, loaded_shop.store, last, MONTH).collect()
    assert active["occurred_at"].max() < day_end(last, "UTC")


def test_events_older_than_active_within_are_left_out(loaded_shop):
    last, within = loaded_shop.days[4], timedelta(hours=30)
    active = both_buckets(active_events, loaded_shop.site, loaded_shop.store, last, within).collect()
    assert active["occurred_at"].min() >= day_end(last, "UTC") - within
    assert active["event_date"].n_unique() == 2


def test_the_first_day_is_a_day_of_the_sites_zone(loaded_shop):
    new_york = loaded_shop.with_changes(time_zone="America/New_York")
    assert str(first_day(new_york, loaded_shop.days[4], timedelta(hours=28))) == "2026-03-04"
    assert str(first_day(new_york, loaded_shop.days[4], timedelta(hours=24))) == "2026-03-05"


def test_days_that_did_not_pass_are_not_seen(copy_shop, judge):
    shop = copy_shop()
    failed = shop.days[3]
    judge(shop.store, failed, "failed")
    active = both_buckets(active_events, shop.site, shop.store, shop.days[4], MONTH).collect()
    assert failed not in active["event_date"].to_list()
    newest = both_buckets(last_sessions, shop.site, shop.store, shop.days[4], MONTH)
    of_failed_day = shop.store.scan(sessions_table([])).filter(pl.col("session_date") == failed).collect()
    assert newest.join(of_failed_day, on="session_id").is_empty()


def test_a_site_without_user_ids_lists_visitors(loaded_shop, events):
    columns = loaded_shop.site.source.columns.model_dump() | {"user_id": None}
    anonymous = loaded_shop.with_changes(source={"columns": columns})
    active = both_buckets(active_events, anonymous, loaded_shop.store, loaded_shop.days[5], MONTH).collect()
    assert set(active["user_id"]) == set(events["visitor"])


def test_seen_items_are_distinct_and_within_their_time(loaded_shop, events):
    last = loaded_shop.days[4]
    active = both_buckets(active_events, loaded_shop.site, loaded_shop.store, last, MONTH)
    seen = seen_items(active, last, timedelta(days=1), loaded_shop.site)
    of_day = events.filter(pl.col("event_date") == last, pl.col("user_id").is_not_null())
    assert sorted(seen.rows()) == sorted(set(of_day.select("user_id", "item_id").rows()))


def test_the_last_session_is_the_newest_that_had_started(loaded_shop):
    last = loaded_shop.days[3]
    newest = both_buckets(last_sessions, loaded_shop.site, loaded_shop.store, last, MONTH)
    sessions = loaded_shop.store.scan(sessions_table([])).filter(pl.col("session_date") <= last).collect()
    expected = sessions.sort("started_at", "session_id").group_by("visitor").agg(pl.col("session_id").last())
    assert newest.sort("visitor").equals(expected.sort("visitor"))
