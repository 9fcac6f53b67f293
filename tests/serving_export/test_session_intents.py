"""What the next event of each user is for, published beside the lists."""

import numpy as np
import polars as pl
import pytest
import torch

from features.vocabulary import learn_vocabulary
from features.window import sessions_until
from pipeline.catalogue import latest_items
from serving_export import export as exporting
from serving_export.assortment import make_assortment
from serving_export.bucket_users import read_bucket
from serving_export.export import Served, export
from serving_export.reader import Recommendations
from serving_export.session_intents import find_intents, tells_intents
from serving_export.tables import RECOMMENDATIONS, SESSION_INTENTS
from training.batch import gather
from training.bundle import Bundle, build_for
from training.intent_quality import intent_model
from training.recipes import SequenceRecipe
from training.train import define_properties, microseconds_at_end

SMALL = {"encoder": "intentrec", "hidden_size": 8}


@pytest.fixture
def bundle_of(loaded_shop):
    site, store, last = loaded_shop.site, loaded_shop.store, loaded_shop.days[3]
    sessions = sessions_until(site, store, loaded_shop.days[:4], last)
    plain = learn_vocabulary(sessions, 2)
    vocabulary = define_properties(site, store, plain, sessions, last)

    def make(**fields: object) -> Bundle:
        recipe = SequenceRecipe.model_validate(SMALL | fields)
        model = build_for(recipe, vocabulary).eval()
        return Bundle(model, vocabulary, "intentrec", recipe, last, microseconds_at_end(site, last))

    return make


@pytest.mark.parametrize("sequence", ["session", "user"])
def test_each_user_has_what_the_model_says_after_the_last_event(sequence, bundle_of, loaded_shop):
    site, store, day = loaded_shop.site, loaded_shop.store, loaded_shop.days[3]
    bundle = bundle_of(sequence=sequence)
    assortment = make_assortment(bundle.vocabulary, latest_items(store, day))
    users = read_bucket(site, store, day, 0, assortment, [], bundle.vocabulary.definitions)
    rows = find_intents(bundle, users, assortment.num_known)
    assert rows.columns == SESSION_INTENTS.empty().drop("user_bucket").columns
    sequences = users.sequences(0, users.size, assortment.num_known, sequence == "user")
    assert rows["user_id"].n_unique() == (sequences.unit_lengths > 0).sum()
    assert set(rows["intent"]) == set(site.intents)
    number = int(np.flatnonzero(sequences.unit_lengths)[3])
    batch = gather(sequences, np.array([number]))
    told = intent_model(bundle.recommender).intents(batch)["category"][batch.last_events[0]]
    best = torch.sort(told, descending=True)
    theirs = rows.filter(pl.col("user_id") == users.table["user_id"][number], pl.col("intent") == "category")
    names = bundle.vocabulary.definitions.classes["category"]
    assert theirs["label"].to_list() == [names[code] for code in best.indices[:10].tolist()]
    np.testing.assert_allclose(theirs["probability"], best.values[:10], rtol=1e-4)
    assert theirs["rank"].to_list() == list(range(1, 11))
    small = rows.filter(pl.col("intent") == "event_type").group_by("user_id").agg(pl.col("probability").sum())
    np.testing.assert_allclose(small["probability"], 1, rtol=1e-5)


def test_only_models_with_heads_tell_intents(bundle_of):
    assert tells_intents(bundle_of())
    assert not tells_intents(bundle_of(variant="next_item"))
    assert not tells_intents(None)


def test_intents_are_released_with_the_lists(bundle_of, copy_shop, monkeypatch):
    shop = copy_shop()
    site = shop.with_changes(export={"checks": {"fallback_share": 1}})
    monkeypatch.setattr(exporting, "served_model", lambda *_: Served(bundle_of(), 7, "run", {}))
    export(site, shop.store, shop.days[3])
    release = Recommendations(shop.store.root)
    version = release.facts["session_intents_version"]
    found = shop.store.scan(SESSION_INTENTS, int(version)).collect()
    listed = shop.store.scan(RECOMMENDATIONS).filter(pl.col("source") == "model").collect()
    assert set(listed["user_id"]) == set(found["user_id"])
    assert found.filter(pl.col("rank") == 1).group_by("user_id").len()["len"].unique().to_list() == [len(site.intents)]
    monkeypatch.setattr(exporting, "served_model", lambda *_: Served(bundle_of(variant="next_item"), 8, "run", {}))
    export(site, shop.store, shop.days[3])
    assert Recommendations(shop.store.root).facts["session_intents_version"] is None
