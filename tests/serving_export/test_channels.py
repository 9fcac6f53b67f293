"""Whole exports under rules of channels, and under input that is odd or broken."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipeline.catalogue import latest_items
from pipeline.errors import ConfigurationError, ContractError
from pipeline.tables import ITEMS, events_table
from serving_export import export as exporting
from serving_export.export import export
from serving_export.popular import popular_items
from serving_export.reader import Recommendations
from serving_export.tables import POPULAR_ITEMS, RECOMMENDATIONS, RELATED_ITEMS, TRIGGERS
from training.tracking import Tracking

ODD_IDS = ['quote"s', "o'clock", "a,b", "two\nlines", "a\tb", "🛒🙂", " lead", "'; DROP TABLE x", "x" * 10_000]


def change_items(shop, changes: dict[str, pl.Expr]) -> pl.DataFrame:
    """Change columns of the night's catalogue."""
    items = latest_items(shop.store, shop.days[3]).with_columns(**changes)
    shop.store.replace(ITEMS, items, {"snapshot_date": items["snapshot_date"].unique().to_list()})
    return items


LENIENT = {"fallback_share": 1, "coverage_kept": 0, "evenness_kept": 0}


def exported(shop, **rules: object) -> pl.DataFrame:
    export(shop.with_changes(export={"checks": LENIENT} | rules), shop.store, shop.days[3])
    return shop.store.scan(RECOMMENDATIONS).collect()


def test_each_channel_keeps_to_its_rules(released):
    items = change_items(released, {"available": pl.int_range(pl.len()) % 3 > 0})
    cheap = {"column": "price", "op": "<=", "value": float(items["price"].median())}
    category = items["category"].drop_nulls().mode()[0]
    not_it = {"column": "category", "op": "==", "value": category}
    lists = exported(
        released,
        channels={
            "email": {"top_n": 3, "max_per_category": 1, "seen": {"policy": "exclude_bought"}},
            "shop": {"allow": [cheap], "deny": [not_it]},
            "all": {"available_only": False, "seen": {"policy": "allow"}, "top_n": 200},
        },
    )
    told = lists.join(items.select("item_id", "price", "category", "available"), on="item_id", how="left")
    shop = told.filter(pl.col("channel") == "shop")
    assert shop.height > 0
    assert shop["price"].max() <= cheap["value"]
    assert category not in shop["category"].to_list()
    email = told.filter(pl.col("channel") == "email")
    assert email.group_by("user_id", "category").len()["len"].max() == 1
    assert email.group_by("user_id").len()["len"].unique().to_list() == [3]
    assert told.filter(pl.col("channel") != "all")["available"].all()
    bought = released.store.scan(events_table([])).filter(pl.col("event_type") == "purchase").collect()
    bought = bought.filter(pl.col("event_date") <= released.days[3])
    assert email.join(bought, on=["user_id", "item_id"], how="semi").is_empty()
    everything = told.filter(pl.col("channel") == "all").group_by("user_id").len()["len"].unique()
    assert everything.to_list() == [items.height], "a list longer than the catalogue holds the catalogue"
    assert lists.select("user_id", "channel", "rank").is_duplicated().sum() == 0
    popular = released.store.scan(POPULAR_ITEMS).collect()
    assert set(popular["channel"]) == {"all", "email", "shop"}
    of_shop = popular.filter(pl.col("channel") == "shop").join(items, on="item_id")
    assert of_shop["price"].max() <= cheap["value"]


def test_complements_lead_the_cart(released):
    channels = {"cart": {"complements": 2, "seen": {"policy": "allow"}}}
    lists = exported(released, channels=channels, related={"top_n": 3})
    related = released.store.scan(RELATED_ITEMS).collect()
    assert related.group_by("item_id").len()["len"].max() == 3
    ranks = related.group_by("item_id", maintain_order=True).agg("rank")["rank"]
    assert all(rank.to_list() == list(range(1, len(rank) + 1)) for rank in ranks)
    assert set(related["source"]) == {"rule"}, "a popularity model has no vectors"
    assert related.filter(pl.col("item_id") == pl.col("related_item_id")).is_empty()
    complements = lists.filter(pl.col("source") == "rule")
    assert complements.height > 0
    known = related.select(because="item_id", item_id="related_item_id", score=1 / pl.col("rank"))
    assert complements.join(known, on=["because", "item_id", "score"], how="anti").is_empty()
    order = lists.with_columns(pl.col("source").replace_strict({"rule": 0, "model": 1, "popular": 2}))
    assert order.sort("user_id", "rank").group_by("user_id").agg(pl.col("source").diff().min())["source"].min() >= 0


@pytest.fixture
def gru_release(two_releases, monkeypatch):
    """A store whose lists come from a GRU."""
    gru = next(v for v in Tracking(two_releases.site).versions() if v.tags["recipe"] == "gru")
    monkeypatch.setattr(exporting, "served_version", lambda *_: gru)
    export(two_releases.with_changes(export={"checks": LENIENT}), two_releases.store, two_releases.days[4])
    return two_releases


def test_related_items_come_from_rules_and_vectors(gru_release):
    related = gru_release.store.scan(RELATED_ITEMS).collect()
    assert set(related["source"]) == {"rule", "model"}
    by_source = related.sort("item_id", "rank").group_by("item_id", "source", maintain_order=True)
    assert by_source.agg(pl.col("score").diff().max().alias("rise"))["rise"].max() <= 1e-6
    assert related.select("item_id", "related_item_id").is_duplicated().sum() == 0


def test_triggers_are_published_beside_the_lists(released):
    rules = {"abandoned_cart": {"after": "1h"}, "viewed_again": {"times": 2}, "within": "30d"}
    exported(released, triggers=rules)
    found = released.store.scan(TRIGGERS).collect()
    assert set(found["trigger"]) == {"abandoned_cart", "viewed_again"}
    carts = released.store.scan(events_table([])).filter(pl.col("event_type") == "cart").collect()
    left = found.filter(pl.col("trigger") == "abandoned_cart")
    assert left.join(carts, on=["user_id", "item_id", "occurred_at"], how="anti").is_empty()
    assert Recommendations(released.store.root).facts["data_through"] == "2026-03-04"


def test_whoever_gets_popular_items_gets_those_of_their_segment(copy_shop):
    shop = copy_shop()
    table = events_table([])
    events = shop.store.scan(table).filter(pl.col("event_date") <= shop.days[3]).collect()
    phone = pl.col("user_id").str.ends_with("1")
    context = events_table(["device"])
    told = events.with_columns(device=pl.when(phone).then(pl.lit("phone")))
    told = told.with_columns(item_id=pl.when(phone).then(pl.format("phone-{}", "item_id")).otherwise("item_id"))
    (shop.home / "store" / "events").rename(shop.home / "store" / "events-before")
    shop.store.replace(context, told, {"event_date": shop.days[:4]})
    catalogue = latest_items(shop.store, shop.days[3])
    of_phones = catalogue.with_columns(item_id=pl.format("phone-{}", "item_id"))
    days = catalogue["snapshot_date"].unique().to_list()
    shop.store.replace(ITEMS, pl.concat([catalogue, of_phones]), {"snapshot_date": days})
    source = shop.site.source.model_dump() | {"context": ["device"]}
    site = shop.with_changes(
        source=source, export={"segment_by": "device", "seen": {"policy": "allow"}, "related": None}
    )
    popular = popular_items(site, shop.store, shop.days[3])
    assert set(popular["segment"]) == {"all", "device=phone"}
    assert popular.filter(pl.col("segment") == "device=phone")["item_id"].str.starts_with("phone-").all()
    export(site, shop.store, shop.days[3])
    lists = shop.store.scan(RECOMMENDATIONS).filter(phone).collect()
    assert lists["item_id"].str.starts_with("phone-").all()
    assert lists["user_id"].n_unique() > 1
    shown = shop.store.scan(POPULAR_ITEMS).collect()
    assert shown.group_by("segment").len()["len"].to_list() == [10, 10]


def test_without_a_model_everyone_gets_popular_items(copy_shop, caplog):
    shop = copy_shop()
    with caplog.at_level("WARNING"):
        counts = export(shop.site, shop.store, shop.days[3])
    assert "no model has been promoted for 2026-03-04, so every list holds popular items" in caplog.text
    assert counts["model_version"] is None
    assert counts["users"] == counts["users_with_popular_only"] > 0
    lists = shop.store.scan(RECOMMENDATIONS).collect()
    assert set(lists["source"]) == {"popular"}
    assert lists.group_by("user_id").len()["len"].unique().to_list() == [10]
    assert Recommendations(shop.store.root).facts["model_version"] == "none"
    assert shop.store.scan(RELATED_ITEMS).select("source").unique().collect()["source"].to_list() == ["rule"]


def test_without_an_active_user_the_last_release_stays(released):
    before = released.store.version(RECOMMENDATIONS)
    table = events_table([])
    events = released.store.scan(table).filter(pl.col("event_date") <= released.days[3]).collect()
    anonymous = events.with_columns(user_id=pl.lit(None, pl.String))
    released.store.replace(table, anonymous, {"event_date": released.days[:4]})
    with pytest.raises(ContractError, match=r"no user was active within 30 days.*Nothing was published"):
        export(released.site, released.store, released.days[3])
    assert released.store.version(RECOMMENDATIONS) == before


def test_a_model_that_knows_less_than_half_of_the_items_says_so(released, caplog):
    more = latest_items(released.store, released.days[3])
    new = pl.concat([more.with_columns(item_id=pl.format("new-{}-{}", "item_id", pl.lit(n))) for n in range(3)])
    days = more["snapshot_date"].unique().to_list()
    released.store.replace(ITEMS, pl.concat([more, new]), {"snapshot_date": days})
    before = released.store.scan(RECOMMENDATIONS).collect()
    with caplog.at_level("WARNING"):
        lists = exported(released)
    assert "the model knows" in caplog.text
    assert lists.equals(before), "new items that nobody had stand behind all others"


def test_an_item_that_stands_twice_counts_once(released, caplog):
    items = latest_items(released.store, released.days[3])
    again = items.with_columns(available=pl.lit(False))
    days = items["snapshot_date"].unique().to_list()
    released.store.replace(ITEMS, pl.concat([items, again.head(1)]).sort("item_id"), {"snapshot_date": days})
    with caplog.at_level("WARNING"):
        lists = exported(released)
    assert "of an item that stands twice the last row counts" in caplog.text
    assert lists.select("user_id", "rank").is_duplicated().sum() == 0
    assert lists.select("user_id", "item_id").is_duplicated().sum() == 0


def test_odd_ids_come_back_as_they_are(copy_shop):
    shop = copy_shop()
    table = events_table([])
    events = shop.store.scan(table).filter(pl.col("event_date") <= shop.days[3]).collect()
    items = events["item_id"].unique().sort().head(len(ODD_IDS))
    new_items = dict(zip(items, ODD_IDS, strict=True))
    renamed = events.with_columns(
        pl.col("item_id").replace(new_items),
        pl.col("user_id").replace({events["user_id"].drop_nulls()[0]: ODD_IDS[-1]}),
    )
    shop.store.replace(table, renamed, {"event_date": shop.days[:4]})
    catalogue = change_items(shop, {"item_id": pl.col("item_id").replace(new_items)})
    site = shop.with_changes(export={"top_n": 500, "seen": {"policy": "allow"}})
    export(site, shop.store, shop.days[3])
    lists = shop.store.scan(RECOMMENDATIONS).collect()
    assert set(ODD_IDS) <= set(lists["item_id"])
    assert set(lists["item_id"]) <= set(catalogue["item_id"])
    assert lists.filter(pl.col("user_id") == ODD_IDS[-1]).height > 0
    assert Recommendations(shop.store.root).user(ODD_IDS[-1]).height == catalogue.height


def test_a_user_whom_the_model_fails_on_gets_popular_items(gru_release, monkeypatch, caplog):
    from serving_export import scoring

    site, store, night = gru_release.site, gru_release.store, gru_release.days[4]
    before = store.scan(RECOMMENDATIONS).collect()
    served = before.filter(pl.col("source") == "model")["user_id"].unique().sort()
    gather, bad = scoring.gather, served[0]

    def fail_on_one(sequences, users):
        if bad in sequences.visitors.gather(users).to_list():
            raise ValueError("a session that no model likes")
        return gather(sequences, users)

    monkeypatch.setattr(scoring, "gather", fail_on_one)
    with caplog.at_level("WARNING"):
        export(site, store, night)
    after = store.scan(RECOMMENDATIONS).collect()
    assert "the model fails on some users" in caplog.text
    theirs = pl.col("user_id") == bad
    assert set(after.filter(theirs)["source"]) == {"popular"}
    assert after.filter(theirs).height == 10
    assert after.filter(~theirs).drop("score").equals(before.filter(~theirs).drop("score"))
    np.testing.assert_allclose(after.filter(~theirs)["score"], before.filter(~theirs)["score"], rtol=1e-5)
    assert not list(Path(store.root).glob("export_progress/*")), "published once, nothing is left to go on with"


def test_a_model_that_fails_on_everyone_publishes_nothing(gru_release, monkeypatch):
    from serving_export import scoring

    def fail(*_):
        raise ValueError("no model likes this")

    monkeypatch.setattr(scoring, "gather", fail)
    version = gru_release.store.version(RECOMMENDATIONS)
    with pytest.raises(ValueError, match="no model likes this"):
        export(gru_release.site, gru_release.store, gru_release.days[4])
    assert gru_release.store.version(RECOMMENDATIONS) == version


def test_a_killed_export_goes_on_where_it_stopped(released, monkeypatch):
    site = released.with_changes(export={"top_n": 5, "triggers": {"viewed_again": {}}})
    counted = count_buckets(monkeypatch, die_at=2)
    with pytest.raises(KeyboardInterrupt):
        export(site, released.store, released.days[3])
    assert counted == [0, 1]
    counted = count_buckets(monkeypatch)
    first = export(site, released.store, released.days[3])
    assert counted == [1], "the first bucket was staged before"
    lists = released.store.scan(RECOMMENDATIONS).collect()
    assert not Path(released.store.root, "export_progress").exists()
    counted = count_buckets(monkeypatch)
    again = export(site, released.store, released.days[3])
    assert counted == [0, 1], "what is published is not gone on with"
    assert released.store.scan(RECOMMENDATIONS).collect().equals(lists)
    assert {k: v for k, v in first.items() if k != "table_version"} == {
        k: v for k, v in again.items() if k != "table_version"
    }


@pytest.mark.parametrize("change", ["day", "settings", "data", "damage"])
def test_what_was_staged_for_something_else_is_made_anew(released, monkeypatch, change, judge):
    site, day = released.with_changes(export={"top_n": 5}), released.days[3]
    count_buckets(monkeypatch, die_at=2)
    with pytest.raises(KeyboardInterrupt):
        export(site, released.store, day)
    if change == "day":
        day = released.days[4]
    if change == "settings":
        site = released.with_changes(export={"top_n": 6})
    if change == "data":
        catalogue = latest_items(released.store, day)
        released.store.replace(ITEMS, catalogue, {"snapshot_date": catalogue["snapshot_date"].unique().to_list()})
    if change == "damage":
        (told,) = Path(released.store.root).glob("export_progress/*/0.json")
        file = json.loads(told.read_text())["files"]["recommendations"][0]["path"]
        Path(released.store.root, "recommendations", file).write_bytes(b"cut")
    counted = count_buckets(monkeypatch)
    export(site, released.store, day)
    assert counted == [0, 1]


def count_buckets(monkeypatch, die_at: int | None = None) -> list[int]:
    """Which buckets are read from now on; the process dies at the last of so many."""
    monkeypatch.undo()
    read, counted = exporting.read_bucket, []

    def reading(site, store, day, bucket, *rest):
        counted.append(bucket)
        if len(counted) == die_at:
            raise KeyboardInterrupt
        return read(site, store, day, bucket, *rest)

    monkeypatch.setattr(exporting, "read_bucket", reading)
    return counted


def test_of_two_exports_at_once_one_wins(released, monkeypatch):
    from pipeline.errors import RetryableError

    check, version = exporting.check_release, released.store.version(RECOMMENDATIONS)

    def be_overtaken(*arguments, **told):
        monkeypatch.undo()
        export(released.with_changes(export={"top_n": 4, "checks": LENIENT}), released.store, released.days[3])
        return check(*arguments, **told)

    monkeypatch.setattr(exporting, "check_release", be_overtaken)
    with pytest.raises(RetryableError, match="was changed by another writer"):
        export(released.site, released.store, released.days[3])
    assert released.store.version(RECOMMENDATIONS) == version + 1
    assert released.store.scan(RECOMMENDATIONS).collect()["rank"].max() == 4


@pytest.mark.parametrize("index", ["HNSW16", "IVF4,Flat"])
def test_an_approximate_index_gives_nearly_the_same_lists(gru_release, index, caplog):
    store, night = gru_release.store, gru_release.days[4]
    exact = store.scan(RECOMMENDATIONS).collect()
    with caplog.at_level("INFO"):
        export(gru_release.with_changes(export={"index": index}), store, night)
    assert f"index {index} of" in caplog.text
    manifest = json.loads(next(Path(store.root).glob("item_index/*/manifest.json")).read_text())
    assert manifest["recall"] >= 0.99
    lists = store.scan(RECOMMENDATIONS).collect()
    assert lists.height == exact.height
    same = lists.join(exact, on=["user_id", "item_id"], how="semi").height
    assert same >= 0.97 * exact.height


def test_an_index_that_finds_too_little_is_not_used(gru_release, caplog):
    store, night = gru_release.store, gru_release.days[4]
    exact = store.scan(RECOMMENDATIONS).collect()
    with caplog.at_level("WARNING"):
        export(gru_release.with_changes(export={"index": "PQ1x4", "index_recall": 0.999}), store, night)
    assert "less than export.index_recall 0.999: the search is exact" in caplog.text
    assert store.scan(RECOMMENDATIONS).collect().equals(exact)
    newest = max(Path(store.root).glob("item_index/*/manifest.json"), key=lambda path: int(path.parent.name))
    assert json.loads(newest.read_text())["factory"] == "Flat"


def test_a_factory_string_that_faiss_does_not_know_is_refused(gru_release):
    with pytest.raises(ConfigurationError, match=r"FAISS makes no index of 'HSNW32'.*or HNSW32"):
        export(gru_release.with_changes(export={"index": "HSNW32"}), gru_release.store, gru_release.days[4])


def test_an_item_that_left_the_catalogue_is_listed_no_more(gru_release):
    store, night = gru_release.store, gru_release.days[4]
    gone = store.scan(RECOMMENDATIONS).select("item_id").unique().sort("item_id").head(5).collect()
    items = latest_items(store, night).join(gone, on="item_id", how="anti")
    store.replace(ITEMS, items, {"snapshot_date": items["snapshot_date"].unique().to_list()})
    export(gru_release.with_changes(export={"checks": LENIENT}), store, night)
    for table in (RECOMMENDATIONS, POPULAR_ITEMS):
        assert store.scan(table).join(gone.lazy(), on="item_id", how="semi").collect().is_empty()
    related = store.scan(RELATED_ITEMS).collect()
    assert related.filter(pl.col("related_item_id").is_in(gone["item_id"].implode())).is_empty()
