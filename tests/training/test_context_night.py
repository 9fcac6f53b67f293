"""Nights of a model that reads context, and what happens when that changes."""

import shutil

import numpy as np
import polars as pl
import pytest
import yaml

import nightjar
from features.intents import learn_definitions
from features.sequences import encode_sessions
from features.vocabulary import learn_vocabulary
from features.window import sessions_until
from pipeline.catalogue import latest_items
from pipeline.errors import ConfigurationError
from serving_export.tables import RECOMMENDATIONS
from training.batch import gather
from training.bundle import Bundle, build_for
from training.recipes import SequenceRecipe, properties_read
from training.refit import learn_on
from training.tracking import Tracking
from training.train import define_properties, microseconds_at_end

CONTEXT = ["device", "event_type", "hour", "gap", "category", "item_age"]


@pytest.fixture
def told(loaded_shop):
    """Sessions and catalogue of a window, and a small model that reads context of them."""
    site, store, last = loaded_shop.site, loaded_shop.store, loaded_shop.days[3]
    sessions = sessions_until(site, store, loaded_shop.days[:4], last)
    recipe = SequenceRecipe(encoder="gru", hidden_size=8, context=("event_type", "hour", "category"), refit_epochs=1)
    plain = learn_vocabulary(sessions, site.window.min_item_count)
    vocabulary = define_properties(site, store, plain, sessions, last, properties_read(recipe))
    model = build_for(recipe, vocabulary).eval()
    return Bundle(model, vocabulary, "gru", recipe, last, microseconds_at_end(site, last)), sessions


def test_only_what_the_recipe_reads_is_defined_and_predicted_is_nothing(told, loaded_shop, caplog):
    bundle, sessions = told
    definitions = bundle.vocabulary.definitions
    assert definitions.classes.keys() == {"event_type", "category"}
    assert definitions.intents == ()
    same = sessions.with_columns(event_types=pl.col("event_types").list.eval(pl.lit("view")))
    found = learn_definitions(
        loaded_shop.site, same, latest_items(loaded_shop.store, loaded_shop.days[3]), ("event_type",)
    )
    assert found.classes == {}
    assert "property event_type is left out: the window holds 1 class of it" in caplog.text


def test_half_of_the_items_may_change_their_category(told, loaded_shop, caplog):
    """The category that an item has at the end of the window counts for all its events; one that is new is missing."""
    bundle, sessions = told
    catalogue = latest_items(loaded_shop.store, loaded_shop.days[3])
    is_moved = pl.int_range(pl.len()) % 2 == 0
    moved = catalogue.with_columns(category=pl.when(is_moved).then(pl.lit("brand new")).otherwise("category"))
    fresh, losses = learn_on(loaded_shop.site, bundle, sessions, loaded_shop.days[3], catalogue=moved)
    described = fresh.vocabulary.items.join(moved, on="item_id").sort("item_code")
    is_new = described["category_right"] == "brand new"
    assert 0 < is_new.sum() < len(is_new)
    assert (described["category"].filter(is_new) == 0).all()
    assert (described["category"].filter(~is_new) > 0).all()
    assert losses["train_loss"] > 0
    assert fresh.recommender.context.category.tolist()[1:] == described["category"].to_list()
    assert "the category of" in caplog.text


def test_a_class_that_came_after_training_is_missing_when_it_serves(told):
    bundle, sessions = told
    later = sessions.with_columns(event_types=pl.col("event_types").list.eval(pl.lit("swipe")))
    sequences = encode_sessions(later, bundle.vocabulary).known_only().at_least(1)
    assert not sequences.event_columns["event_type"].any()
    batch = gather(sequences, np.arange(3))
    assert bundle.recommender.session_vectors(batch).isfinite().all()


@pytest.mark.slow
def test_a_column_of_the_log_comes_and_goes(raw_shop, write_site, load, empty_mlflow, tmp_path, caplog):
    """A champion that reads `device` serves on when the site names it no more: missing, and said so."""
    home = tmp_path / "home"
    shutil.copytree(raw_shop.home / "raw", home / "raw")
    shutil.copy(empty_mlflow, home / "mlflow.db")
    source = yaml.safe_load(raw_shop.file.read_text())["source"]
    recipe = {"hidden_size": 8, "epochs": 1, "context": CONTEXT}
    shop = write_site(home, source=source | {"context": ["device"]}, training={"recipes": {"gru": recipe}})
    load(shop, shop.days[:5])
    night, morrow = shop.days[3:5]
    nightjar.features(shop.site, shop.store, night)
    trained = nightjar.train(shop.site, shop.store, night, "gru", 1)
    params = Tracking(shop.site).client.get_run(trained["run_id"]).data.params
    assert params["context"] == str(CONTEXT)
    assert params["context_read"] == ", ".join(CONTEXT)
    assert trained["metrics"]["all/num_targets"] > 0
    assert nightjar.promote(shop.site, shop.store, night)["promoted"]
    nightjar.refit(shop.site, shop.store, night)
    nightjar.export(shop.site, shop.store, night)
    assert "the model reads device" not in caplog.text
    without = write_site(home, training={"recipes": {"gru": {}}})
    refitted = nightjar.refit(without.site, without.store, morrow)
    assert refitted["parent_version"] == trained["model_version"]
    assert "the model reads device, which source.context does not name any more" in caplog.text
    exported = nightjar.export(without.site, without.store, morrow)
    assert exported["model_version"] == refitted["model_version"]
    lists = without.store.scan(RECOMMENDATIONS).collect()
    assert "model" in lists["source"].to_list()
    with pytest.raises(ConfigurationError, match="no event has a 'device'"):
        write_site(home, training={"recipes": {"gru": recipe}})
    bare = home / "raw" / f"events-{shop.days[5]}.csv"
    bare.write_text(bare.read_text().replace("device", "gadget", 1))
    shop = write_site(home, source=source | {"context": ["device"]}, training={"recipes": {"gru": recipe}})
    with pytest.raises(ConfigurationError, match="has no column 'device'"):
        nightjar.ingest(shop.site, shop.store, shop.days[5])
