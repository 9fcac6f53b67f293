"""What every model promises. A new model is tested by its line in training.models.MODELS."""

from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from features.sequences import Sequences, encode_sessions
from features.vocabulary import PADDING, learn_vocabulary
from pipeline.errors import ConfigurationError
from serving_export.item_index import exact_index
from serving_export.scoring import item_vectors
from training.batch import gather
from training.bundle import Bundle, build, load_bundle, save_bundle
from training.evaluation import evaluate_next
from training.fit import fit
from training.grow import grow
from training.models import MODELS
from training.models.base import SessionModel, search_exact
from training.recipes import RECIPES, SequenceRecipe

NUM_CODES = 31
AS_OF = 1_772_323_200_000_000

pytestmark = pytest.mark.parametrize("encoder", MODELS)


def recipe_of(encoder: str, **fields: object) -> SequenceRecipe:
    """The model's own recipe, of the same name, in small."""
    recipe = RECIPES[encoder]()
    assert isinstance(recipe, SequenceRecipe)
    return recipe.model_copy(update={"hidden_size": 24, "num_negatives": min(recipe.num_negatives, 16)} | fields)


def make_model(encoder: str) -> SessionModel:
    model = build(recipe_of(encoder), NUM_CODES)
    assert isinstance(model, SessionModel)
    return model.eval()


def make_sequences(lengths: list[int], seed: int = 0) -> Sequences:
    num_events = sum(lengths)
    codes = np.random.default_rng(seed).integers(1, NUM_CODES, num_events)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    times = AS_OF - np.arange(num_events, dtype=np.int64)[::-1] * 60_000_000
    return Sequences(codes, offsets, times, pl.Series([f"v{n}" for n in range(len(lengths))]))


def make_bundle(encoder: str, model: SessionModel, sessions: pl.DataFrame) -> Bundle:
    return Bundle(model, learn_vocabulary(sessions, 1), "r", recipe_of(encoder), date(2026, 3, 1), AS_OF)


@pytest.fixture
def batch():
    return gather(make_sequences([3, 1, 5, 2]), np.arange(4))


def test_states_and_item_vectors_have_the_declared_shapes(encoder, batch):
    model = make_model(encoder)
    states_TD, vectors_ID = model.states(batch), model.item_vectors(AS_OF)
    assert len(states_TD) == 11
    assert len(vectors_ID) == NUM_CODES
    assert states_TD.shape[1] == vectors_ID.shape[1]
    assert states_TD.dtype == vectors_ID.dtype == torch.float32
    assert all(term.shape == () for term in model.extra_terms(batch).values())


def test_session_vectors_are_the_last_states(encoder, batch):
    model = make_model(encoder)
    torch.testing.assert_close(model.session_vectors(batch), model.states(batch)[[2, 3, 8, 10]])


def test_padding_is_never_recommended_and_nothing_comes_twice(encoder, batch):
    top = make_model(encoder).recommend(batch, NUM_CODES + 5, AS_OF)
    assert top.codes_RN.shape == (11, NUM_CODES - 1)
    assert (top.codes_RN.sort(dim=1).values == torch.arange(1, NUM_CODES)).all()
    assert (top.scores_RN.diff(dim=1) <= 0).all()
    assert PADDING not in top.codes_RN


def test_lists_at_targets_are_among_all_lists(encoder, batch):
    model = make_model(encoder)
    every, at_targets = model.recommend(batch, 6, AS_OF), model.recommend_targets(batch, 6, AS_OF)
    torch.testing.assert_close(every.scores_RN[batch.target_mask], at_targets.scores_RN)


def test_a_later_event_never_changes_an_earlier_state(encoder):
    model, sequences = make_model(encoder), make_sequences([6, 4])
    changed = sequences.item_codes.copy()
    changed[3] = changed[3] % (NUM_CODES - 1) + 1
    later = Sequences(changed, sequences.offsets, sequences.occurred_at, sequences.visitors)
    before, after = (model.states(gather(s, np.arange(2))) for s in (sequences, later))
    torch.testing.assert_close(before[:3], after[:3])
    torch.testing.assert_close(before[6:], after[6:], msg="another session changed")
    assert not torch.allclose(before[3], after[3])


def test_a_batch_gives_what_each_session_gives_alone(encoder):
    model, sequences = make_model(encoder), make_sequences([1, 7, 2, 4, 1])
    together = model.states(gather(sequences, np.arange(5)))
    alone = torch.cat([model.states(gather(sequences, np.array([n]))) for n in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_order_of_sessions_in_a_batch_does_not_matter(encoder):
    model, sequences = make_model(encoder), make_sequences([3, 1, 5, 2])
    order = np.array([2, 0, 3, 1])
    vectors_SD = model.session_vectors(gather(sequences, np.arange(4)))
    torch.testing.assert_close(model.session_vectors(gather(sequences, order)), vectors_SD[order], rtol=1e-5, atol=1e-6)


def test_advancing_by_an_event_gives_what_reading_again_gives(encoder):
    """Of several visitors with several sessions each; a model of sessions forgets, one of users carries on."""
    model, lengths = make_model(encoder), [2, 3, 1, 4]
    if type(model).advance is SessionModel.advance:
        pytest.skip("it reads a session again for every event; there is no state to advance")
    sequences = make_sequences(lengths * 3)
    if recipe_of(encoder).sequence == "user":
        sequences = replace(sequences, user_offsets=np.array([0, 4, 8, 12]))
    states_TD = model.states(gather(sequences, np.arange(sequences.num_units)))
    codes_BN = torch.from_numpy(sequences.item_codes).reshape(3, -1)
    starts = np.cumsum([0, *lengths])
    carry, found = None, []
    for number in range(codes_BN.shape[1]):
        is_new_B = torch.full((3,), number in starts)
        states_BD, carry = model.advance(codes_BN[:, number], carry, is_new_B if number else None)
        found.append(states_BD)
    torch.testing.assert_close(torch.stack(found, dim=1).flatten(0, 1), states_TD, rtol=1e-5, atol=1e-6)
    one, other = model.new_carry(3), model.new_carry(3)
    _, one = model.advance(codes_BN[:, 0], one, torch.ones(3, dtype=torch.bool))
    _, other = model.advance(codes_BN[:, 0], other)
    assert torch.equal(one, other), "nothing is before a visitor's first event"


def test_a_saved_bundle_scores_as_before(encoder, batch, sessions_of, tmp_path):
    sessions = sessions_of([[f"i{n}" for n in range(NUM_CODES - 1)]])
    bundle = make_bundle(encoder, make_model(encoder), sessions)
    save_bundle(bundle, tmp_path / "bundle")
    loaded = load_bundle(tmp_path / "bundle")
    for one, other in zip(
        bundle.recommender.recommend(batch, 5, AS_OF), loaded.recommender.recommend(batch, 5, AS_OF), strict=True
    ):
        assert torch.equal(one, other)
    assert loaded.recipe == bundle.recipe
    assert loaded.vocabulary.items.equals(bundle.vocabulary.items)
    assert (loaded.data_through, loaded.as_of) == (bundle.data_through, bundle.as_of)
    assert {f.suffix for f in (tmp_path / "bundle").iterdir()} == {".json", ".parquet", ".safetensors"}


def test_a_bundle_with_another_vocabulary_is_refused(encoder, sessions_of, tmp_path):
    model = make_model(encoder)
    names = [f"i{n:02d}" for n in range(NUM_CODES - 1)]
    save_bundle(make_bundle(encoder, model, sessions_of([names])), tmp_path / "one")
    save_bundle(make_bundle(encoder, model, sessions_of([[*names, names[-1]]])), tmp_path / "other")
    (tmp_path / "other/vocabulary.parquet").rename(tmp_path / "one/vocabulary.parquet")
    with pytest.raises(ConfigurationError, match=r"vocabulary.parquet is damaged or was exchanged"):
        load_bundle(tmp_path / "one")


def test_growing_keeps_the_rows_of_known_items(encoder, batch, sessions_of):
    sessions = sessions_of([[f"i{n:02d}" for n in range(NUM_CODES - 1)]])
    bundle = make_bundle(encoder, make_model(encoder), sessions)
    larger = learn_vocabulary(sessions_of([[f"i{n:02d}" for n in range(NUM_CODES + 6)]]), 1)
    grown = grow(bundle, larger, recipe_of(encoder)).eval()
    old, new = bundle.recommender.item_vectors(AS_OF), grown.item_vectors(AS_OF)
    assert torch.equal(new[:NUM_CODES], old)
    assert len(new) == larger.num_codes
    assert torch.equal(grown.states(batch), bundle.recommender.states(batch))


def test_the_exact_index_finds_what_the_scores_say(encoder, batch, sessions_of):
    sessions = sessions_of([[f"i{n}" for n in range(NUM_CODES - 1)]])
    bundle = make_bundle(encoder, make_model(encoder), sessions)
    index = exact_index(item_vectors(bundle), np.arange(1, NUM_CODES))
    with torch.inference_mode():
        states_SD = bundle.recommender.session_vectors(batch)
    for n in (7, NUM_CODES + 10):
        codes_SN, scores_SN = index.search(states_SD.numpy(), n)
        exact = search_exact(states_SD, bundle.recommender.item_vectors(AS_OF), n)
        assert (codes_SN == exact.codes_RN.numpy()).all()
        np.testing.assert_allclose(scores_SN, exact.scores_RN.detach().numpy(), rtol=1e-5, atol=1e-6)


def learn(encoder: str, sessions: pl.DataFrame, folder: Path, epochs: int = 12) -> Bundle:
    vocabulary = learn_vocabulary(sessions, 1)
    recipe = recipe_of(encoder, batch_size=32, dropout=0.0)
    recipe = recipe.model_copy(
        update={"learning_rate": 10 * recipe.learning_rate if recipe.optimiser == "adam" else 0.1}
    )
    model = build(recipe, vocabulary.num_codes)
    assert isinstance(model, SessionModel)
    fit(model, encode_sessions(sessions, vocabulary), recipe, epochs, folder)
    return Bundle(model, vocabulary, "r", recipe, date(2026, 3, 1), AS_OF)


def test_fitting_twice_gives_the_same_weights(encoder, sessions_of, walk, tmp_path):
    sessions = sessions_of(walk(100, follows=0.9, seed=1))
    one, other = (learn(encoder, sessions, tmp_path, epochs=2) for _ in range(2))
    for name, weights in one.recommender.state_dict().items():
        assert torch.equal(weights, other.recommender.state_dict()[name]), name


def test_a_predictable_shop_is_learnt_and_beats_popularity(encoder, sessions_of, walk, popularity_bundle, tmp_path):
    train, test = walk(400, follows=0.8, seed=1), sessions_of(walk(150, follows=0.8, seed=2))
    bundle = learn(encoder, sessions_of(train), tmp_path)
    learnt = evaluate_next(bundle, test, (1,)).means()["all/next_recall_at_1"]
    popular = evaluate_next(popularity_bundle(train), test, (1,)).means()["all/next_recall_at_1"]
    assert popular < 0.1
    assert 0.7 < learnt < 0.88, "four in five can be known, a little more by luck"


def test_a_random_shop_cannot_be_learnt(encoder, sessions_of, walk, tmp_path):
    """More than chance here means that targets leak into the input."""
    test = sessions_of(walk(300, follows=0.0, seed=4))
    bundle = learn(encoder, sessions_of(walk(400, follows=0.0, seed=3)), tmp_path, epochs=4)
    recall = evaluate_next(bundle, test, (10,)).means()["all/next_recall_at_10"]
    assert 0.20 < recall < 0.30, "ten of forty items are drawn with a chance of a quarter"


def test_a_training_that_comes_apart_is_no_model(encoder, sessions_of, tmp_path):
    sessions = sessions_of([["a", "b", "a"], ["b", "a"]])
    vocabulary = learn_vocabulary(sessions, 1)
    recipe = recipe_of(encoder, learning_rate=0.5)
    model = build(recipe, vocabulary.num_codes)
    with torch.no_grad():
        next(iter(model.parameters())).fill_(float("nan"))
    with pytest.raises(
        ConfigurationError, match=r"at step 1: the loss is no number, from the start.*Lower learning_rate \(now 0.5\)"
    ):
        fit(model, encode_sessions(sessions, vocabulary), recipe, 1, tmp_path)
