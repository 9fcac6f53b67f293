"""A baseline goes the whole way of a model: trained, champion, refitted, exported, asked."""

import polars as pl
import pytest

import nightjar
from serving_export.loaded import load
from serving_export.recommend import recommend
from serving_export.request import Event, Request
from serving_export.tables import RECOMMENDATIONS
from training.tracking import Tracking


@pytest.mark.parametrize("recipe", [pytest.param("markov", marks=pytest.mark.slow), "stan"])
def test_a_baseline_can_be_champion_and_fill_everyones_list(recipe, copy_shop):
    shop = copy_shop(training={"recipes": {recipe: None}})
    night = shop.days[3]
    nightjar.features(shop.site, shop.store, night)
    trained = nightjar.train(shop.site, shop.store, night, recipe, 1)
    assert trained["metrics"]["warm/next_recall_at_20"] > 20 / 110
    verdict = nightjar.STEPS["promote"](shop.site, shop.store, night)
    assert (verdict["promoted"], verdict["challenger"]) == (True, recipe)
    refitted = nightjar.STEPS["refit"](shop.site, shop.store, night)
    assert refitted["parent_version"] == trained["model_version"]
    exported = nightjar.STEPS["export"](shop.site, shop.store, night)
    rows = shop.store.scan(RECOMMENDATIONS).collect()
    assert exported["model_version"] == refitted["model_version"]
    per_user = rows.group_by("user_id").agg(pl.len(), pl.col("item_id").n_unique().alias("items"))
    assert per_user.height == exported["users"] > 0
    assert set(per_user["len"]) == {shop.site.export.top_n}
    assert (per_user["len"] == per_user["items"]).all()
    assert "model" in set(rows["source"])
    known = Tracking(shop.site).load(Tracking(shop.site).by_alias("serving")).vocabulary.items["item_id"]
    sessions = [[known[0], "?", known[5]], ["?"]]
    requests = [Request([Event(item) for item in items], top=5, explain=True) for items in sessions]
    answer = recommend(load(shop.site, shop.store), requests)
    assert [a["source"] for a in answer] == ["model", "popular"]
    assert len(answer[0]["items"]) == 5
    reasons = [(r["event"], r["of"], r["item_id"]) for item in answer[0]["items"] for r in item["reasons"]]
    assert set(reasons) <= {(0, "session", known[0]), (2, "session", known[5])}
    assert reasons
