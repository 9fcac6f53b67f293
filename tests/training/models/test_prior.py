from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest
import torch

from features.sequences import Sequences
from features.vocabulary import learn_vocabulary
from serving_export.item_index import exact_index
from serving_export.scoring import item_vectors
from training.batch import gather
from training.bundle import Bundle, build, load_bundle, save_bundle
from training.fit import fit
from training.grow import grow
from training.models import MODELS
from training.models.base import search_exact
from training.models.prior import STEPS_A_HALF_LIFE, WithPrior
from training.recipes import RECIPES, SequenceRecipe

HOUR = 3_600_000_000
NUM_CODES = 6


def recipe_of(encoder: str = "gru", **fields: object) -> SequenceRecipe:
    recipe = RECIPES[encoder]()
    assert isinstance(recipe, SequenceRecipe)
    small = {"hidden_size": 8, "num_negatives": min(recipe.num_negatives, 4), "prior_half_life": timedelta(hours=2)}
    return recipe.model_copy(update=small | fields)


def make_model(encoder: str = "gru", num_codes: int = NUM_CODES) -> WithPrior:
    model = build(recipe_of(encoder), num_codes)
    assert isinstance(model, WithPrior)
    return model.eval()


@pytest.fixture
def sequences() -> Sequences:
    """Forty sessions of three events, one every 20 minutes."""
    random = np.random.default_rng(1)
    codes = random.integers(1, NUM_CODES, 120)
    starts = np.repeat(np.arange(40) * HOUR // 3, 3)
    times = starts + np.tile([0, 60_000_000, 120_000_000], 40) + 1_772_323_200_000_000
    return Sequences(codes, np.arange(0, 121, 3), times, pl.Series([f"v{n}" for n in range(40)]))


def slow_counts(sequences: Sequences, as_of: int, known_until: int) -> list[float]:
    counts = [0.0] * NUM_CODES
    for code, at in zip(sequences.item_codes.tolist(), sequences.occurred_at.tolist(), strict=True):
        if at < known_until:
            counts[code] += 2 ** (-(as_of - at) / (2 * HOUR))
    return counts


def test_the_prior_counts_what_was_before_and_halves_with_age(sequences):
    model = make_model()
    model.see(sequences)
    first, last = int(sequences.occurred_at.min()), int(sequences.occurred_at.max())
    for as_of in (first, first + HOUR, first + 5 * HOUR + 1234, last - 1):
        step = 2 * HOUR / STEPS_A_HALF_LIFE
        known_until = first + (as_of - first) // step * step
        expected = torch.tensor(slow_counts(sequences, as_of, int(known_until))).log1p()
        torch.testing.assert_close(model.column(as_of), expected, rtol=1e-4, atol=1e-5)
    for as_of in (last, last + 7 * HOUR):
        expected = torch.tensor(slow_counts(sequences, as_of, last + 1)).log1p()
        torch.testing.assert_close(model.column(as_of), expected, rtol=1e-4, atol=1e-5)


def test_nothing_of_a_batch_is_in_its_own_prior(sequences):
    model, batch = make_model(), gather(sequences, np.arange(10, 20))
    model.see(sequences)
    before = model.column(batch.as_of)
    changed = sequences.item_codes.copy()
    changed[30:] = 1
    model.see(Sequences(changed, sequences.offsets, sequences.occurred_at, sequences.visitors))
    assert torch.equal(model.column(batch.as_of), before)


@pytest.mark.parametrize("encoder", MODELS)
def test_any_model_scores_its_own_score_and_the_prior(encoder, sequences):
    model, batch = make_model(encoder), gather(sequences, np.arange(4))
    model.see(sequences)
    as_of = int(sequences.occurred_at.max()) + HOUR
    own = model.model.states(batch) @ model.model.item_vectors(as_of).T
    scores = model.states(batch) @ model.item_vectors(as_of).T
    torch.testing.assert_close(scores, own + model.column(as_of))
    codes_C = torch.tensor([3, 1])
    torch.testing.assert_close(model.item_vectors(as_of, codes_C), model.item_vectors(as_of)[codes_C])


@pytest.mark.parametrize("encoder", MODELS)
def test_a_prior_is_saved_grown_and_indexed_with_its_model(encoder, sequences, tmp_path):
    names = [f"i{n}" for n in range(NUM_CODES - 1)]
    vocabulary = learn_vocabulary(pl.DataFrame({"item_ids": [names]}), 1)
    model, recipe = make_model(encoder), recipe_of(encoder)
    model.see(sequences)
    as_of = int(sequences.occurred_at.max()) + HOUR
    bundle = Bundle(model, vocabulary, "r", recipe, date(2026, 3, 3), as_of)
    save_bundle(bundle, tmp_path / "bundle")
    loaded = load_bundle(tmp_path / "bundle").recommender
    assert isinstance(loaded, WithPrior)
    assert torch.equal(loaded.item_vectors(as_of), model.item_vectors(as_of))
    larger = learn_vocabulary(pl.DataFrame({"item_ids": [[*names, "new"]]}), 1)
    grown = grow(bundle, larger, recipe)
    assert torch.equal(grown.item_vectors(as_of)[:NUM_CODES], model.item_vectors(as_of))
    batch = gather(sequences, np.arange(5))
    vectors_SD = model.session_vectors(batch)
    codes_SN, _ = exact_index(item_vectors(bundle), np.arange(1, NUM_CODES)).search(vectors_SD.detach().numpy(), 3)
    exact = search_exact(vectors_SD, model.item_vectors(as_of), 3)
    assert codes_SN.tolist() == exact.codes_RN.tolist()


@pytest.mark.parametrize("encoder", ["gru", "gru4rec"])
def test_where_only_the_hour_matters_the_prior_learns_its_weight(encoder, tmp_path):
    """Every hour another item is all that people click; beside the prior nothing tells which."""
    random = np.random.default_rng(3)
    hours = np.repeat(np.arange(60), 20)
    favourite = random.integers(1, NUM_CODES, 60)[hours]
    codes = np.where(
        random.random((len(hours), 2)) < 0.7, favourite[:, None], random.integers(1, NUM_CODES, (len(hours), 2))
    )
    times = (np.arange(len(hours)) * HOUR // 20)[:, None] + np.array([0, 1_000_000])
    sequences = Sequences(
        codes.ravel(), np.arange(0, 2 * len(hours) + 1, 2), times.ravel(), pl.Series(["v"] * len(hours))
    )
    recipe = recipe_of(encoder, prior_half_life=timedelta(minutes=15), batch_size=4, dropout=0.0)
    model = build(recipe, NUM_CODES)
    assert isinstance(model, WithPrior)
    torch.nn.init.zeros_(model.weight)
    fit(model, sequences, recipe, 4, tmp_path)
    assert model.weight > 0.5
