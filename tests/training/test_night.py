"""What two nights of a small shop leave in MLflow: runs, versions, refits, a model that MLflow can serve."""

import mlflow
import pandas as pd
import polars as pl
import pytest
import torch

import nightjar
from features.tables import SEQUENCES
from features.vocabulary import learn_vocabulary
from pipeline.data_docs import day_page
from pipeline.errors import ContractError
from serving_export.export import served_version
from training.bundle import Bundle, build
from training.recipes import SequenceRecipe
from training.refit import learn_on, refit
from training.tracking import Tracking, data_through
from training.train import train


@pytest.fixture(scope="module")
def tracking(served_shop):
    return Tracking(served_shop.site)


def of_kind(tracking, kind):
    return [v for v in reversed(tracking.versions()) if v.tags["kind"] == kind]


def test_each_recipe_is_a_version_with_its_tags(served_shop, tracking):
    trained = of_kind(tracking, "train")
    nights = [str(day) for day in served_shop.days[3:5]]
    assert [(v.tags["night"], v.tags["recipe"]) for v in trained] == [
        (night, recipe) for night in nights for recipe in ("gru", "popularity")
    ]
    for version in trained:
        assert str(data_through(version)) < version.tags["night"]
        run = tracking.client.get_run(version.run_id)
        assert run.info.status == "FINISHED"
        told = {"site": "small", "test_day": version.tags["night"], "recipe": version.tags["recipe"], "seed": "1"}
        assert run.data.tags.items() >= (told | {"purpose": "nightly"}).items()
        assert run.data.tags["data_digest"] == version.tags["data_digest"]
        assert {"all/next_mrr_at_20", "warm/next_recall_at_5", "list/any_recall_at_20"} <= set(run.data.metrics)
        assert run.inputs.dataset_inputs[0].dataset.name == "sequences"
        parent = tracking.client.get_run(run.data.tags["mlflow.parentRunId"])
        assert parent.data.tags["kind"] == "night"


def test_a_run_says_what_it_learnt_from_and_shows_what_came_out(served_shop, tracking):
    for version in of_kind(tracking, "train")[:2]:
        run = tracking.client.get_run(version.run_id)
        sequences = served_shop.told[served_shop.days[3]]["features"]
        told = {"num_sessions": str(sequences["sequences"]), "num_items": str(sequences["items"]), "seed": "1"}
        assert run.data.params.items() >= told.items()
        assert int(run.data.params["num_targets"]) == int(run.data.params["num_events"]) - sequences["sequences"]
        low, mean, high = (run.data.metrics[f"all/next_mrr_at_20{bound}"] for bound in ("_low", "", "_high"))
        assert low < mean < high
        assert "all_by_popularity/head/next_recall_at_20_low" in run.data.metrics
        assert run.data.metrics["train_events_per_second"] > 0
        assert {"device", "torch", "nightjar", "mlflow.note.content"} <= set(run.data.tags)
        pictures = {file.path.rsplit("/", 1)[1] for file in tracking.client.list_artifacts(version.run_id, "pictures")}
        assert ("learning_curve.png" in pictures) == (version.tags["recipe"] == "gru")
        assert {"recall_by_k.png", "recall_by_session_length.png", "recall_by_popularity.png"} <= pictures


def test_a_learnt_model_beats_chance_and_logs_its_loss(tracking):
    gru = of_kind(tracking, "train")[0]
    run = tracking.client.get_run(gru.run_id)
    assert run.data.metrics["warm/next_recall_at_20"] > 20 / 110
    history = tracking.client.get_metric_history(gru.run_id, "train_loss")
    assert history[-1].value < history[0].value
    assert run.data.params["hidden_size"] == "16"
    assert run.data.params["epochs"] == "2"


def test_every_night_ends_with_a_refit_of_its_champion(served_shop, tracking):
    refits = of_kind(tracking, "refit")
    assert [data_through(v) for v in refits] == served_shop.days[3:5]
    for version in refits:
        parent = tracking.client.get_model_version("nightjar-small", version.tags["parent_version"])
        assert parent.tags["promoted"]
        assert parent.tags["recipe"] == version.tags["recipe"]
        old, new = tracking.load(parent).vocabulary, tracking.load(version).vocabulary
        assert (
            new.items.head(old.items.height)
            .select("item_code", "item_id")
            .equals(old.items.select("item_code", "item_id"))
        )
        assert new.items.height >= old.items.height
    assert tracking.by_alias("serving").version == refits[-1].version
    assert str(tracking.champion().version) == refits[-1].tags["parent_version"]


def test_a_refit_learns_new_items_and_keeps_the_rows_of_the_old(served_shop, sessions_of):
    site, night = served_shop.site, served_shop.days[0]
    before = sessions_of([["a", "b", "c"]] * 4)
    vocabulary = learn_vocabulary(before, 1)
    recipe = SequenceRecipe(encoder="gru", hidden_size=8, learning_rate=1e-9)
    model = build(recipe, vocabulary.num_codes).eval()
    bundle = Bundle(model, vocabulary, "gru", recipe, night, 0)
    fresh, losses = learn_on(site, bundle, sessions_of([["new", "a", "new", "c"]] * 3), night)
    assert fresh.vocabulary.items["item_id"].to_list() == ["a", "b", "c", "new"]
    torch.testing.assert_close(
        fresh.recommender.item_vectors(0)[:4], model.item_vectors(0), rtol=0, atol=1e-6, msg="known rows moved"
    )
    assert "train_loss" in losses
    assert fresh.data_through == night
    nothing_known, losses = learn_on(site, bundle, sessions_of([["x"], ["y"]]), night)
    assert losses == {}
    assert torch.equal(nothing_known.recommender.item_vectors(0), model.item_vectors(0))


def test_the_served_version_of_an_old_day_is_found_by_tag(served_shop, tracking):
    refits = of_kind(tracking, "refit")
    assert served_version(tracking, served_shop.days[3]).version == refits[0].version
    assert served_version(tracking, served_shop.days[4]).version == refits[1].version
    assert served_version(tracking, served_shop.days[5]).version == refits[1].version
    assert served_version(tracking, served_shop.days[0]) is None


def test_mlflow_serves_raw_ids(served_shop, tracking):
    model = mlflow.pyfunc.load_model("models:/nightjar-small@serving")
    known = tracking.load(tracking.by_alias("serving")).vocabulary.item_ids()[1:3].to_list()
    odd = "a,\"b'; DROP"
    answer = model.predict(pd.DataFrame({"item_ids": [[odd, *known], [odd], known]}), params={"top": 3})
    assert [len(ids) for ids in answer["item_ids"]] == [3, 0, 3]
    assert answer["item_ids"][0] == answer["item_ids"][2]
    assert answer["scores"][0] == sorted(answer["scores"][0], reverse=True)
    assert len(model.predict(pd.DataFrame({"item_ids": [known]}))["item_ids"][0]) == 20
    pd.testing.assert_frame_equal(model.predict([[odd, *known], [odd], known], params={"top": 3}), answer)
    with pytest.raises(ValueError, match="a session is a list of item ids"):
        model.predict(known)
    with pytest.raises(ValueError, match="there is items"):
        model.predict(pd.DataFrame({"items": [known]}))


def test_nothing_on_disk_is_a_pickle(served_shop):
    files = [path for path in (served_shop.home / "mlartifacts").rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"weights.safetensors", "bundle.json", "vocabulary.parquet", "MLmodel"}
    assert {path.suffix for path in files} <= {
        ".png",
        ".html",
        ".safetensors",
        ".json",
        ".parquet",
        ".py",
        ".yaml",
        ".txt",
        "",
    }
    assert {path.name for path in files if not path.suffix} == {"MLmodel", "registered_model_meta"}
    assert not [path for path in files if path.read_bytes()[:1] == b"\x80" or path.read_bytes()[:2] == b"PK"]


def test_items_with_commas_and_quotes_can_be_learnt_and_served(copy_shop, popularity_bundle):
    odd = ["a,b", 'say "hi"', "it's", "[x]", "ü\n"]
    shop = copy_shop()
    tracking = Tracking(shop.site)
    with tracking.run(shop.days[1], "popularity", {"kind": "train"}) as run_id:
        version = tracking.register(popularity_bundle([odd * 2]), run_id, {"kind": "train", "night": "2026-03-02"})
    tracking.set_alias("serving", version)
    assert isinstance(version, int)
    model = mlflow.pyfunc.load_model("models:/nightjar-small@serving")
    answer = model.predict(pd.DataFrame({"item_ids": [["a,b"], ["it's", 'say "hi"']]}), params={"top": 9})
    assert sorted(answer["item_ids"][0]) == sorted(answer["item_ids"][1]) == sorted(odd)


def test_training_again_gives_the_same_numbers_and_weights(copy_shop, served_shop):
    shop = copy_shop()
    night = shop.days[3]
    nightjar.features(shop.site, shop.store, night)
    again, before = train(shop.site, shop.store, night, "gru", 1), served_shop.told[night]["gru"]
    assert again["metrics"] == before["metrics"]
    weights = []
    for home, told in ((shop, again), (served_shop, before)):
        tracking = Tracking(home.site)
        version = tracking.client.get_model_version("nightjar-small", str(told["model_version"]))
        weights.append(tracking.load(version).recommender.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_site_without_refit_serves_its_champion(copy_shop, judge):
    shop = copy_shop(training={"recipes": {"popularity": None}, "refit": "none"})
    night = shop.days[3]
    nightjar.features(shop.site, shop.store, night)
    trained = nightjar.train(shop.site, shop.store, night, "popularity", 1)
    nightjar.promote(shop.site, shop.store, night)
    served = refit(shop.site, shop.store, night)
    assert served["model_version"] == trained["model_version"] == 1
    tracking = Tracking(shop.site)
    assert int(tracking.by_alias("serving").version) == 1
    assert int(served_version(tracking, night).version) == 1
    judge(shop.store, night, "failed")
    for step in (
        lambda: refit(shop.site, shop.store, night),
        lambda: train(shop.site, shop.store, night, "popularity", 1),
    ):
        with pytest.raises(ContractError, match="2026-03-04 has not passed validation"):
            step()
    assert len(tracking.versions()) == 1


def test_a_night_names_the_report_of_its_data_and_keeps_the_pages_there_are(copy_shop):
    shop = copy_shop()
    night = shop.days[4]
    page = day_page(shop.site, night)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("what validation saw")
    tracking = Tracking(shop.site)
    tracking.keep_report(night)
    run = tracking.night_run(night)
    assert run.data.tags["data_docs"] == str(page.with_name("index.html").resolve())
    kept = [each.path for each in tracking.client.list_artifacts(run.info.run_id, "data_docs")]
    assert kept == [f"data_docs/{night}.html"]


def test_the_training_sequences_of_a_night_end_before_it(served_shop):
    for night in served_shop.days[3:5]:
        rows = served_shop.store.scan(SEQUENCES).filter(pl.col("night") == night).collect()
        newest = (
            rows.select(pl.col("started_at") + pl.duration(seconds=pl.col("offsets_seconds").list.max())).max().item()
        )
        assert newest.date() < night


def test_steps_name_versions_by_number(popular_shop):
    told = popular_shop.told[popular_shop.days[3]]
    versions = [told[step]["model_version"] for step in ("popularity", "promote", "refit", "export")]
    assert versions == [1, 1, 2, 2]
    assert {type(version) for version in [*versions, told["refit"]["parent_version"]]} == {int}
    assert told["promote"]["metrics"]["all/next_mrr_at_20"] > 0
    assert told["promote"]["metrics"]["order/p_value"] == 1, "popularity does not look at order"
    assert told["features"]["run_id"] == told["promote"]["run_id"]
