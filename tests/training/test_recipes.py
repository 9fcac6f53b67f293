from datetime import timedelta

import pytest
import torch

from pipeline.errors import ConfigurationError
from training.bundle import build, describe_recipe
from training.losses import cross_entropy
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
    with pytest.raises(ConfigurationError, match="there are gru, lstm, rnn, popularity"):
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


def test_cross_entropy_is_the_plain_softmax_without_padding():
    torch.manual_seed(0)
    states_RD, vectors_ID = torch.randn(5, 4), torch.randn(7, 4)
    targets_R = torch.tensor([1, 6, 3, 3, 2])
    expected = 0.0
    for state, target in zip(states_RD, targets_R, strict=True):
        scores = [float(torch.exp(state @ vector)) for vector in vectors_ID]
        expected -= torch.log(torch.tensor(scores[target] / sum(scores[1:]))).item() / 5
    assert cross_entropy(states_RD, vectors_ID, targets_R).item() == pytest.approx(expected, rel=1e-5)
