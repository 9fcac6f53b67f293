"""An ensemble is the weighted sum of its members' scores, in one index; what is not is refused."""

from dataclasses import replace
from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest
import torch

from features.sequences import Sequences, encode_sessions
from features.vocabulary import learn_vocabulary
from pipeline.errors import ConfigurationError
from serving_export.item_index import exact_index
from serving_export.scoring import item_vectors
from training.batch import gather
from training.bundle import Bundle, build, describe_recipe, load_bundle, save_bundle
from training.evaluation import evaluate_next
from training.grow import grow
from training.models.base import search_exact
from training.models.ensemble import Ensemble
from training.recipes import EnsembleRecipe, find_recipe, properties_read, reads_properties
from training.settings import Training
from training.train import make
from training.units import carries_users, reads_users, training_units

NUM_CODES, AS_OF = 31, 1_772_323_200_000_000
SMALL = {"hidden_size": 8}
MEMBERS = {"gru": 1.0, "session_retriever": 0.5, "sasrec": 2.0}


def training_of(members: dict[str, float], **recipes: object) -> Training:
    each = dict.fromkeys(members, SMALL) | recipes
    return Training.model_validate({"recipes": {**each, "ensemble": {"members": members}}})


def recipe_of(members: dict[str, float] = MEMBERS, **recipes: object) -> EnsembleRecipe:
    recipe = find_recipe("ensemble", training_of(members, **recipes))
    assert isinstance(recipe, EnsembleRecipe)
    return recipe


def make_model(recipe: EnsembleRecipe) -> Ensemble:
    model = build(recipe, NUM_CODES)
    assert isinstance(model, Ensemble)
    return model.eval()


@pytest.fixture
def sequences() -> Sequences:
    random = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(random.integers(1, 6, 20))])
    visitors = pl.Series([f"v{user}" for user in random.integers(4, size=20)])
    return Sequences(random.integers(1, NUM_CODES, offsets[-1]), offsets, AS_OF + np.arange(offsets[-1]), visitors)


def test_a_score_is_the_weighted_sum_of_the_members_scores(sequences):
    recipe = recipe_of()
    model, batch = make_model(recipe), gather(sequences, np.arange(20))
    alone = {name: build(each, NUM_CODES).eval() for name, each in recipe.recipes.items()}
    expected = sum(
        weight * (alone[name].states(batch) @ alone[name].item_vectors(AS_OF).T) for name, weight in MEMBERS.items()
    )
    found = model.states(batch) @ model.item_vectors(AS_OF).T
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    codes_C = torch.tensor([5, 2])
    torch.testing.assert_close(model.item_vectors(AS_OF, codes_C), model.item_vectors(AS_OF)[codes_C])


def test_one_index_finds_its_best_items(sequences, sessions_of):
    names = [f"i{n:02d}" for n in range(NUM_CODES - 1)]
    model, recipe = make_model(recipe_of()), recipe_of()
    bundle = Bundle(model, learn_vocabulary(sessions_of([names]), 1), "ensemble", recipe, date(2026, 3, 1), AS_OF)
    vectors_SD = model.session_vectors(gather(sequences, np.arange(20))).detach()
    codes_SN, _ = exact_index(item_vectors(bundle), np.arange(1, NUM_CODES)).search(vectors_SD.numpy(), 5)
    assert codes_SN.tolist() == search_exact(vectors_SD, model.item_vectors(AS_OF), 5).codes_RN.tolist()


def test_members_read_what_they_learnt_to_read(sequences):
    """Of users: a member of sessions reads each session by itself."""
    recipe = recipe_of({"gru": 1, "narm": 1}, narm=SMALL | {"sequence": "user"})
    assert reads_users(recipe)
    assert not carries_users(recipe)
    assert recipe.max_sessions == 20
    users = sequences.by_user()
    batch = gather(users, np.arange(users.num_units))
    model = make_model(recipe)
    parts = model.states(batch).split([9, 9], dim=1)
    torch.testing.assert_close(parts[0], model.member("gru").states(replace(batch, user_offsets=None)))
    torch.testing.assert_close(parts[1], model.member("narm").states(batch))


@pytest.mark.parametrize("sequence", ["session", "user"])
def test_members_are_trained_each_by_its_own_recipe(sequence, walk, sessions_of, tmp_path):
    sessions = sessions_of(walk(150, follows=0.9, seed=1), [f"v{n % 40}" for n in range(150)])
    vocabulary = learn_vocabulary(sessions, 1)
    rate = {"learning_rate": 1e-2, "batch_size": 32, "dropout": 0.0, "hidden_size": 16, "epochs": 3}
    recipe = recipe_of({"gru": 1, "narm": 2}, gru=rate, narm=rate | {"sequence": sequence, "batch_size": 8})
    sequences = training_units(recipe, encode_sessions(sessions, vocabulary))
    told: list[tuple[int, set[str]]] = []
    model, losses = make(recipe, vocabulary, sequences, AS_OF, tmp_path / "fit", lambda *each: told.append(each))
    assert losses.keys() == {"gru/train_loss", "narm/train_loss"}
    assert [epoch for epoch, _ in told] == [0, 1, 2] * 2
    alone, own = make(recipe.recipes["gru"], vocabulary, sequences.at_least(2), AS_OF)
    for name, weights in alone.state_dict().items():
        assert torch.equal(weights, model.state_dict()[f"members.gru.{name}"]), name
    assert own["train_loss"] == losses["gru/train_loss"]
    again, same = make(recipe, vocabulary, sequences, AS_OF, tmp_path / "fit")
    assert same == losses, "a training that was killed goes on from the members' checkpoints"
    assert all(torch.equal(weights, again.state_dict()[name]) for name, weights in model.state_dict().items())
    bundle = Bundle(model, vocabulary, "ensemble", recipe, date(2026, 3, 1), AS_OF)
    assert evaluate_next(bundle, sessions.tail(50), (5,), sessions.head(100)).means()["all/next_recall_at_5"] > 0.5
    save_bundle(bundle, tmp_path / "bundle")
    loaded = load_bundle(tmp_path / "bundle")
    assert loaded.recipe == recipe
    batch = gather(sequences, np.arange(20))
    assert torch.equal(loaded.recommender.states(batch), model.states(batch))
    larger = learn_vocabulary(pl.concat([sessions, sessions_of([["new"] * 9])]), 1)
    grown = grow(bundle, larger, recipe).eval()
    new, old = (
        dict(zip(each.items["item_id"], rows[1:], strict=True))
        for each, rows in ((larger, grown.item_vectors(AS_OF)), (vocabulary, model.item_vectors(AS_OF)))
    )
    assert all(torch.equal(new[item], old[item]) for item in old)


def test_its_parameters_name_members_and_what_is_special_of_them():
    told = describe_recipe(recipe_of())
    assert told["members"] == str(MEMBERS)
    assert told["sasrec.hidden_size"] == "8"
    assert "gru.batch_size" not in told
    assert len(told) < 40


def test_it_reads_what_any_member_reads():
    told = {"gru": SMALL | {"context": ["hour"]}, "narm": SMALL | {"context": ["gap", "hour"]}}
    recipe = recipe_of({"gru": 1, "narm": 1}, **told)
    assert reads_properties(recipe)
    assert properties_read(recipe) == ("hour", "gap")
    assert properties_read(recipe_of({"gru": 1, "intentrec": 1})) is None


@pytest.mark.parametrize(
    ("members", "recipes", "reason"),
    [
        ({"gru": 1, "markov": 1}, {"markov": None}, "markov has no item vectors of its own.*no dot product"),
        ({"gru": 1, "ensemble": 1}, {}, "ensemble has no item vectors of its own"),
        ({"gru": 1, "sasrek": 1}, {"sasrek": None}, "no recipe 'sasrek'; did you mean 'sasrec'"),
        ({"gru": 1}, {}, "members: .*at least 2"),
        ({"gru": 1, "narm": 0}, {}, "members.narm: .*greater than 0"),
        (
            {"gru": 1, "narm": 1},
            {"gru": {"cold_items": "2d"}},
            "they offer different cold items.*give all the same cold_items",
        ),
    ],
    ids=["baseline", "itself", "unknown", "one", "nothing", "cold"],
)
def test_what_is_no_sum_of_dot_products_is_refused(members, recipes, reason):
    with pytest.raises(ConfigurationError, match=reason):
        training_of(members, **recipes)


def test_its_recipes_are_looked_up_and_not_written():
    with pytest.raises(ConfigurationError, match=r"ensemble\.recipes: unknown field"):
        Training.model_validate({"recipes": {"ensemble": {"recipes": {}}}})
    same = {"gru": SMALL | {"cold_items": "2d"}, "narm": SMALL | {"cold_items": "2d"}}
    assert recipe_of({"gru": 1, "narm": 1}, **same).cold_items == timedelta(days=2)
