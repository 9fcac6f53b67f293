"""The gate's look at the item index of a version, with FAISS."""

import pytest

import nightjar
from serving_export.index_recall import index_recall
from training import promote as promoting
from training.tracking import Tracking, newest


@pytest.fixture(scope="module")
def versions(served_shop):
    """The last night's version of each recipe."""
    trained = [v for v in Tracking(served_shop.site).versions() if v.tags["kind"] == "train"]
    return {recipe: newest(v for v in trained if v.tags["recipe"] == recipe) for recipe in ("gru", "popularity")}


@pytest.mark.parametrize(
    ("recipe", "index", "low", "high"),
    [("gru", "IVF4,Flat", 0.99, 1.0), ("gru", "PQ1x4", 0.05, 0.98)],
    ids=["good", "coarse"],
)
def test_an_approximate_index_is_built_and_measured(served_shop, versions, recipe, index, low, high):
    site = served_shop.with_changes(export={"index": index})
    recall = index_recall(site, served_shop.store, served_shop.days[4], versions[recipe])
    assert low <= recall <= high


@pytest.mark.parametrize(
    ("recipe", "index"), [("gru", "exact"), ("gru", "auto"), ("popularity", "IVF4,Flat")], ids=["exact", "few", "none"]
)
def test_where_export_searches_exactly_there_is_nothing_to_measure(served_shop, versions, recipe, index):
    site = served_shop.with_changes(export={"index": index})
    assert index_recall(site, served_shop.store, served_shop.days[4], versions[recipe]) is None


def test_the_step_asks_for_it(served_shop, versions, monkeypatch):
    asked = []

    def promote(site, store, day, recall):
        asked.append(recall(versions["gru"]))
        return {}

    monkeypatch.setattr(promoting, "promote", promote)
    site = served_shop.with_changes(export={"index": "PQ1x4"})
    nightjar.promote(site, served_shop.store, served_shop.days[4])
    assert asked[0] < 0.99
