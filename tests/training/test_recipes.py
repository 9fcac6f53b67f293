from datetime import timedelta

import pytest

from pipeline.errors import ConfigurationError
from training.bundle import build, describe_recipe
from training.recipes import RECIPES, find_recipe
from training.settings import Training


def training(**recipes: object) -> Training:
    return Training.model_validate({"recipes": recipes})


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds(name):
    recipe = find_recipe(name, Training())
    assert build(recipe, 5).state_dict()
    assert describe_recipe(recipe)["seed"] == "1"


def test_a_site_changes_single_fields():
    recipe = find_recipe("gru", training(gru={"hidden_size": 7, "epochs": 2}))
    assert (recipe.hidden_size, recipe.epochs, recipe.encoder) == (7, 2, "gru")
    assert find_recipe("recent_popularity", training(recent_popularity={"half_life": "3h"})).half_life == timedelta(
        hours=3
    )


def test_an_unknown_recipe_is_named_with_the_nearest():
    with pytest.raises(ConfigurationError, match="no recipe 'popularty'; did you mean 'popularity'"):
        find_recipe("popularty", Training())
    with pytest.raises(ConfigurationError, match="there are gru, gru4rec, hrnn, intentrec, lstm, narm, rnn, sasrec"):
        find_recipe("xyz", Training())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epoch": 3}, r"training.recipes.gru.epoch: unknown field; did you mean `epochs`"),
        ({"qqq": 3}, r"training.recipes.gru.qqq: unknown field; known fields: "),
        ({"epochs": "many"}, r"training.recipes.gru.epochs: .*integer"),
        ({"epochs": 0}, r"training.recipes.gru.epochs: .*greater than or equal to 1"),
        ({"loss": "hinge"}, r"training.recipes.gru.loss: .*cross_entropy"),
        ({"order": "random"}, r"training.recipes.gru.order: .*chronological"),
    ],
)
def test_a_wrong_field_is_named_with_its_place(fields, message):
    with pytest.raises(ConfigurationError, match=message):
        find_recipe("gru", training(gru=fields))


def test_a_half_life_of_nothing_is_refused():
    with pytest.raises(ConfigurationError, match="half_life"):
        find_recipe("recent_popularity", training(recent_popularity={"half_life": "0s"}))


def test_an_unknown_encoder_is_refused_by_name():
    with pytest.raises(ConfigurationError, match="no encoder 'gruu'; there are gru"):
        build(find_recipe("gru", training(gru={"encoder": "gruu"})), 5)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"loss": "bpr_max"}, "loss bpr_max compares a target with drawn items; set num_negatives"),
        ({"loss": "gbce"}, "loss gbce compares a target with drawn items; set num_negatives"),
        ({"in_batch_negatives": True}, "in_batch_negatives alone never show most of the items; set num_negatives"),
        ({"negative_alpha": 0.5}, "negative_alpha says how items are drawn, but none are"),
        ({"logq": 0}, "logq corrects cross_entropy over drawn items only"),
        ({"loss": "bpr_max", "num_negatives": 9, "logq": 0.5}, "logq corrects cross_entropy over drawn items only"),
        ({"loss": "gbce", "num_negatives": 9, "negative_alpha": 1}, "gbce is calibrated for items drawn evenly"),
        ({"loss": "gbce", "num_negatives": 9, "in_batch_negatives": True}, "gbce is calibrated for items drawn evenly"),
        ({"elu": 1}, "elu belongs to loss bpr_max, but loss is cross_entropy"),
        ({"bpr_regularisation": 2}, "bpr_regularisation belongs to loss bpr_max, but loss is cross_entropy"),
        ({"calibration": 1}, "calibration belongs to loss gbce, but loss is cross_entropy"),
        ({"momentum": 0.3}, "momentum belongs to optimiser adagrad, but optimiser is adam"),
        ({"order": "session_parallel"}, r"needs an encoder that carries its state \(gru4rec\), not gru; take chron"),
        (
            {"sequence": "user"},
            r"an encoder that reads earlier sessions \(hrnn, intentrec, narm, sasrec, session_retriever\), not gru",
        ),
        ({"encoder": "hrnn"}, "encoder hrnn reads a user's earlier sessions; set sequence: user, or take encoder gru"),
        ({"max_sessions": 9}, "max_sessions bounds a user's sessions, but sequence is session"),
        ({"variant": "multitask"}, "variant belongs to encoder intentrec, but encoder is gru; leave it out"),
        ({"num_layers": 2}, "num_layers belongs to encoders intentrec and sasrec, but encoder is gru; leave it out"),
        ({"context": ["gap", "gap"]}, "context is gap, gap; give each once"),
        ({"context": ["hour"], "encoder": "intentrec"}, "intentrec reads all that is told of an event; leave context"),
        (
            {"context": ["hour"], "encoder": "gru4rec", "order": "session_parallel"},
            "order session_parallel reads items only; with context take chronological or shuffled",
        ),
        ({"pooling": "mean"}, "pooling belongs to encoder session_retriever, but encoder is gru; leave it out"),
        ({"encoder": "sasrec", "num_heads": 5}, "hidden_size 128 is not shared evenly by num_heads = 5"),
        ({"encoder": "intentrec", "num_heads": 3}, "hidden_size 128 is not shared evenly by num_heads = 3"),
        (
            {"backprop_sessions": 2},
            "propagate, backprop_sessions, user_dropout and user_to_output belong to encoder hrnn, but encoder is gru",
        ),
        (
            {"encoder": "hrnn", "sequence": "user", "order": "session_parallel"},
            r"needs an encoder that carries its state \(gru4rec\), not hrnn; take chronological or shuffled",
        ),
    ],
    ids=lambda told: "-".join(told) if isinstance(told, dict) else "",
)
def test_parts_that_do_not_fit_together_are_refused_with_the_reason(fields, reason):
    with pytest.raises(ConfigurationError, match=r"training\.recipes\.gru: .*" + reason):
        find_recipe("gru", training(gru=fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"num_negatives": 9, "negative_alpha": 0.5, "in_batch_negatives": True, "logq": 0.5},
        {"num_negatives": 9, "loss": "bpr_max", "elu": 0, "bpr_regularisation": 2},
        {"num_negatives": 9, "loss": "gbce", "calibration": 1},
        {"num_negatives": 9, "optimiser": "adagrad", "momentum": 0.3},
    ],
    ids=lambda told: "-".join(told),
)
def test_parts_that_fit_together_are_taken(fields):
    assert find_recipe("gru", training(gru=fields)).model_dump().items() >= fields.items()


@pytest.mark.parametrize(
    "settings",
    [{"champion_metric": "all/next_mrr_at_21"}, {"champion_metric": "list/any_recall_at_20"}, {"metric_ks": [5]}],
)
def test_a_champion_metric_that_is_not_measured_is_refused(settings):
    with pytest.raises(ValueError, match=r"champion_metric is .* not measured"):
        Training.model_validate(settings)


@pytest.mark.parametrize("ks", [[], [0], [-1]])
def test_metrics_need_list_lengths(ks):
    with pytest.raises(ValueError, match="metric_ks"):
        Training.model_validate({"metric_ks": ks})


@pytest.mark.parametrize(
    ("context", "hint"),
    [(["devise"], "did you mean 'device'"), (["xyz"], "there are hour, weekday, gap, event_type")],
    ids=["near", "far"],
)
def test_context_that_no_event_has_is_refused_when_the_site_file_is_read(context, hint, raw_shop):
    recipes = {"gru": {"context": context}}
    with pytest.raises(ValueError, match=rf"training.recipes.gru.context: no event has a '{context[0]}'; {hint}"):
        raw_shop.with_changes(source={"context": ["device"]}, training={"recipes": recipes})
    known = {"gru": {"context": ["device", "hour", "price_band"]}}
    assert raw_shop.with_changes(source={"context": ["device"]}, training={"recipes": known})
    with pytest.raises(ValueError, match=r"no event has a 'device'.*named in source.context first"):
        raw_shop.with_changes(training={"recipes": known})


def test_a_recipe_that_cannot_work_is_refused_when_the_site_file_is_read(write_site, tmp_path):
    with pytest.raises(
        ConfigurationError, match=r"small.yaml is not a valid site file:\n  training.recipes.gru: loss bpr"
    ):
        write_site(tmp_path, training={"recipes": {"gru": {"loss": "bpr_max"}}})
