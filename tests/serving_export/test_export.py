from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from deltalake import DeltaTable

from pipeline.errors import ContractError, RetryableError
from pipeline.forget import remember
from pipeline.ids import ANONYMOUS
from pipeline.tables import ITEMS, events_table, sessions_table
from serving_export import export as exporting
from serving_export.export import export
from serving_export.loaded import load
from serving_export.online.lookups import exported_lists, find_users
from serving_export.online.versions import Edition
from serving_export.popular import popular_items
from serving_export.reader import Recommendations
from serving_export.recommend import read_history
from serving_export.rollback import rollback_recommendations
from serving_export.tables import POPULAR_ITEMS, RECOMMENDATIONS
from training.settings import TrainingSite


@pytest.fixture(scope="module")
def night(served_shop):
    return served_shop.days[4]


@pytest.fixture(scope="module")
def lists(served_shop):
    return served_shop.store.scan(RECOMMENDATIONS).collect()


@pytest.fixture(scope="module")
def before(served_shop, night):
    """What could be known on the evening."""
    return served_shop.store.scan(events_table([])).filter(pl.col("event_date") <= night).collect()


def test_every_active_user_gets_a_full_list_with_ranks_from_1(lists, before):
    users = before["user_id"].drop_nulls().unique()
    assert set(lists["user_id"]) == set(users)
    for (_,), rows in lists.group_by("user_id"):
        assert sorted(rows["rank"]) == list(range(1, 11))
        assert rows["item_id"].n_unique() == 10
        of_model = rows.filter(pl.col("source") == "model").sort("rank")
        assert of_model["rank"].to_list() == list(range(1, of_model.height + 1)), "popular items stand behind"
        assert (of_model["score"].diff().drop_nulls() <= 0).all()


def test_lists_leave_out_what_was_seen(lists, before):
    assert lists.join(before, on=["user_id", "item_id"], how="semi").is_empty()


def test_each_row_says_what_it_was_made_from(served_shop, lists, before, night):
    assert set(lists["channel"]) == {"home"}
    ours = before.filter(pl.col("user_id").is_not_null()).sort("occurred_at", "event_id")
    last = ours.group_by("user_id").agg(pl.col("item_id").last().alias("last"))
    joined = lists.join(last, on="user_id")
    assert joined.filter((pl.col("source") == "model") & (pl.col("because") != pl.col("last"))).is_empty()
    sessions = served_shop.store.scan(sessions_table([])).filter(pl.col("session_date") <= night).collect()
    newest = sessions.sort("started_at", "session_id").group_by("visitor").agg(pl.col("session_id").last())
    told = lists.select("user_id", "session_id").unique().join(newest, left_on="user_id", right_on="visitor")
    assert told.height == lists["user_id"].n_unique()
    assert told.filter(pl.col("session_id") != pl.col("session_id_right")).is_empty()


def test_one_release_is_one_commit_and_the_reader_tells_its_facts(served_shop, night):
    store = served_shop.store
    table = DeltaTable(store.table_uri("recommendations"))
    assert table.version() == 2, "made empty, then two nights"
    facts = Recommendations(store.root).facts
    assert facts["data_through"] == str(night)
    assert facts["valid_until"] == str(datetime(2026, 3, 7, tzinfo=UTC).isoformat())
    assert facts["table_version"] == 2
    assert facts["is_expired"] is (datetime.now(UTC) > datetime(2026, 3, 7, tzinfo=UTC))
    assert int(facts["model_version"]) > 0
    assert len(facts["run_id"]) == 32
    assert facts["popular_items_version"] == str(store.version(POPULAR_ITEMS))
    assert facts["items_version"] == str(store.version(ITEMS))
    assert facts["sessions_version"] == str(store.version(sessions_table([])))
    datetime.fromisoformat(facts["generated_at"])


def test_a_user_is_read_with_the_facts_as_columns(served_shop, lists):
    user = lists["user_id"][0]
    rows = Recommendations(served_shop.store.root).user(user)
    assert rows["rank"].to_list() == list(range(1, 11))
    ours = lists.filter(pl.col("user_id") == user).sort("rank")
    assert rows["item_id"].to_list() == ours["item_id"].to_list()
    assert set(rows["data_through"]) == {"2026-03-05"}
    assert rows["valid_until"][0] == "2026-03-07T00:00:00+00:00"
    assert Recommendations(served_shop.store.root).user("nobody").is_empty()
    assert Recommendations(served_shop.store.root).user("x' OR 1=1").is_empty()


def test_popular_items_are_ranked_by_recent_events(served_shop, night):
    popular = popular_items(served_shop.site, served_shop.store, night)
    assert popular["rank"].to_list() == list(range(1, popular.height + 1))
    assert (popular["score"].diff().drop_nulls() <= 0).all()
    assert served_shop.store.scan(POPULAR_ITEMS).collect().height == 10
    events = served_shop.store.scan(events_table([])).filter(pl.col("event_date") <= night).collect()
    best = popular.row(0, named=True)
    end = datetime(2026, 3, 6, tzinfo=UTC)
    ages = [(end - at) / timedelta(days=1) for at in events.filter(pl.col("item_id") == best["item_id"])["occurred_at"]]
    assert best["score"] == pytest.approx(sum(0.5**age for age in ages))


def test_later_days_in_the_store_change_nothing(released):
    night = released.days[3]
    first = released.store.scan(RECOMMENDATIONS).collect()
    for table in (sessions_table([]), events_table([])):
        released.store.replace(table, table.empty(), {table.partition_by[0]: released.days[4:]})
    export(released.site, released.store, night)
    assert released.store.scan(RECOMMENDATIONS).collect().equals(first)


def test_a_killed_export_leaves_the_release_before_readable(released, monkeypatch):
    facts, lists = Recommendations(released.store.root).facts, released.store.scan(RECOMMENDATIONS).collect()
    of_bucket, calls = exporting.finish_bucket, []

    def die(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return of_bucket(*arguments)

    monkeypatch.setattr(exporting, "finish_bucket", die)
    with pytest.raises(KeyboardInterrupt):
        export(released.site, released.store, released.days[4])
    assert Recommendations(released.store.root).facts == facts
    assert released.store.scan(RECOMMENDATIONS).collect().equals(lists)
    monkeypatch.undo()
    export(released.site, released.store, released.days[4])
    assert Recommendations(released.store.root).facts["data_through"] == str(released.days[4])


def test_exporting_again_gives_the_same_rows(released):
    lists = released.store.scan(RECOMMENDATIONS).collect()
    export(released.site, released.store, released.days[3])
    assert released.store.scan(RECOMMENDATIONS).collect().equals(lists)


def test_seen_items_may_be_allowed(released):
    lists = lists_under(released, seen={"policy": "allow"})
    events = released.store.scan(events_table([])).filter(pl.col("event_date") <= released.days[3]).collect()
    assert not lists.join(events, on=["user_id", "item_id"], how="semi").is_empty()
    assert lists.group_by("user_id").len()["len"].unique().to_list() == [10]


def test_what_was_seen_before_the_active_time_is_left_out_too(released):
    lists = lists_under(released, active_within="1d", seen={"policy": "exclude", "within": "30d"})
    events = released.store.scan(events_table([])).filter(pl.col("event_date") <= released.days[3]).collect()
    active = events.filter(pl.col("event_date") == released.days[3])["user_id"].drop_nulls()
    assert set(lists["user_id"]) == set(active)
    assert lists.join(events, on=["user_id", "item_id"], how="semi").is_empty()


def test_only_what_was_seen_lately_is_left_out(released):
    lists = lists_under(released, seen={"policy": "exclude", "within": "1d"})
    events = released.store.scan(events_table([])).filter(pl.col("event_date") <= released.days[3]).collect()
    again = lists.join(events, on=["user_id", "item_id"], how="inner")
    assert not again.is_empty()
    assert released.days[3] not in again["event_date"].to_list()


def lists_under(shop, **rules: object) -> pl.DataFrame:
    """The night's lists under other rules."""
    site = shop.with_changes(export={**rules})
    export(site, shop.store, shop.days[3])
    return shop.store.scan(RECOMMENDATIONS).collect()


def test_users_whose_items_are_all_unknown_get_popular_lists(released):
    table = events_table([])
    night = released.days[3]
    events = released.store.scan(table).filter(pl.col("event_date") == night).collect()
    user = events["user_id"].drop_nulls()[0]
    is_ours = pl.col("user_id") == user
    all_events = released.store.scan(table).filter(pl.col("event_date") <= night).collect()
    renamed = all_events.with_columns(
        item_id=pl.when(is_ours).then(pl.format("never-{}", "item_id")).otherwise("item_id")
    )
    released.store.replace(table, renamed, {"event_date": released.days[:4]})
    counts = export(released.site, released.store, night)
    assert counts["users_with_popular_only"] == 1
    rows = released.store.scan(RECOMMENDATIONS).filter(is_ours).sort("rank").collect()
    assert set(rows["source"]) == {"popular"}
    assert rows["because"].null_count() == 10
    assert rows["rank"].to_list() == list(range(1, 11))
    popular = popular_items(released.site, released.store, night)
    unseen = popular.filter(~pl.col("item_id").str.starts_with("never-"))
    assert rows["item_id"].to_list() == unseen["item_id"].to_list()[:10]


def test_a_site_without_user_ids_exports_lists_of_visitors(released):
    columns = released.site.source.columns.model_dump() | {"user_id": None}
    site = released.with_changes(source={"columns": columns})
    assert isinstance(site, TrainingSite)
    export(site, released.store, released.days[3])
    events = released.store.scan(events_table([])).filter(pl.col("event_date") <= released.days[3]).collect()
    anonymous = events.filter(pl.col("user_id").is_null())["visitor"]
    assert len(anonymous) > 0
    lists = released.store.scan(RECOMMENDATIONS).collect()
    assert set(lists["user_id"]) == set(events["visitor"])
    assert lists.group_by("user_id").len()["len"].unique().to_list() == [10]
    session, exported = anonymous[0].removeprefix(ANONYMOUS), Recommendations(released.store.root)
    assert exported.session(session).height == 10
    loaded = load(site, released.store)
    assert read_history(loaded, released.store, session), "who asks gives the session id of the log"
    edition = Edition(loaded, exported, None)
    assert find_users(edition, session, 1) == [session]
    assert [len(rows) for rows in exported_lists(edition, session).values()] == [10]


def test_an_export_that_read_before_somebody_was_forgotten_publishes_nothing(released, monkeypatch):
    version, check = released.store.version(RECOMMENDATIONS), exporting.check_release

    def forget_meanwhile(*args, **kwargs):
        remember(released.store, pl.Series(["u1"]), [])
        return check(*args, **kwargs)

    monkeypatch.setattr(exporting, "check_release", forget_meanwhile)
    with pytest.raises(RetryableError, match="somebody was forgotten"):
        export(released.site, released.store, released.days[3])
    assert released.store.version(RECOMMENDATIONS) == version


def test_a_day_that_failed_is_not_exported(released, judge):
    version = released.store.version(RECOMMENDATIONS)
    judge(released.store, released.days[4], "failed")
    with pytest.raises(ContractError, match="2026-03-05 has not passed validation"):
        export(released.site, released.store, released.days[4])
    assert released.store.version(RECOMMENDATIONS) == version


def test_an_old_day_is_exported_with_the_model_of_that_day(two_releases):
    newer = Recommendations(two_releases.store.root).facts
    rollback_recommendations(two_releases.store)
    export(two_releases.site, two_releases.store, two_releases.days[3])
    older = Recommendations(two_releases.store.root).facts
    assert int(older["model_version"]) < int(newer["model_version"])
    assert older["data_through"] == "2026-03-04"


def test_where_readers_see_a_later_day_nothing_is_published(two_releases):
    newer = Recommendations(two_releases.store.root).facts
    told = export(two_releases.site, two_releases.store, two_releases.days[3])
    assert told == {"published": False, "shown": str(two_releases.days[4])}
    assert Recommendations(two_releases.store.root).facts == newer


def test_after_a_restore_or_a_vacuum_the_facts_are_those_of_the_rows(two_releases):
    store = two_releases.store
    second = Recommendations(store.root).facts
    DeltaTable(store.table_uri("recommendations")).vacuum(dry_run=False)
    assert {**Recommendations(store.root).facts, "table_version": 0} == {**second, "table_version": 0}
    DeltaTable(store.table_uri("recommendations")).restore(1)
    restored = Recommendations(store.root).facts
    assert restored["data_through"] == "2026-03-04"
    assert int(restored["model_version"]) < int(second["model_version"])
    assert restored["table_version"] > second["table_version"]
    user = store.scan(RECOMMENDATIONS).select("user_id").collect()["user_id"][0]
    assert set(Recommendations(store.root).user(user)["data_through"]) == {"2026-03-04"}
