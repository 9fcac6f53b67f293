import math
from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest
import torch

from features.sequences import Sequences
from features.vocabulary import learn_vocabulary
from pipeline.errors import ConfigurationError
from training.batch import gather
from training.bundle import Bundle, build, load_bundle, save_bundle
from training.fit import SHARE_OF_TOLD, SessionTraining, fit
from training.grow import grow
from training.models import MODELS
from training.models.surge import WithSurge
from training.recipes import RECIPES, SequenceRecipe, override

HOUR = 3_600_000_000
NUM_CODES = 6


def recipe_of(encoder: str = "gru", **fields: object) -> SequenceRecipe:
    recipe = RECIPES[encoder]()
    assert isinstance(recipe, SequenceRecipe)
    small = {"hidden_size": 8, "num_negatives": min(recipe.num_negatives, 4), "surge_half_life": timedelta(minutes=30)}
    return recipe.model_copy(update=small | fields)


def make_model(encoder: str = "gru", **fields: object) -> WithSurge:
    model = build(recipe_of(encoder, **fields), NUM_CODES)
    assert isinstance(model, WithSurge)
    return model.eval()


@pytest.fixture
def sequences() -> Sequences:
    """Item 1 all along, item 2 only early, item 3 only in the last hour, item 4 once; item 5 never."""
    codes = np.array([1, 2, 2, 1, 2, 2, 1, 4, 1, 1, 1, 3, 1, 3])
    minutes = np.array([0, 1, 60, 61, 120, 121, 300, 301, 420, 421, 560, 561, 590, 600])
    return Sequences(codes, np.arange(0, 15, 2), minutes * HOUR // 60, pl.Series([f"v{n}" for n in range(7)]))


def slow_surge(sequences: Sequences, code: int) -> float:
    times = [t for c, t in zip(sequences.item_codes, sequences.occurred_at, strict=True) if c == code]
    if not times:
        return 0.0
    end = max(sequences.occurred_at)
    followed = [
        n for n in range(len(sequences.item_codes)) if n not in sequences.offsets and sequences.item_codes[n] == code
    ]
    recent = sum(2 ** (-(end - sequences.occurred_at[n]) / (HOUR / 2)) for n in followed)
    return math.log((1 + recent) / (1 + len(times) / (1 + (end - min(times)) / HOUR)))


def test_the_surge_is_the_last_minutes_beside_the_whole_life(sequences):
    model = make_model()
    model.see(sequences)
    expected = [slow_surge(sequences, code) for code in range(NUM_CODES)]
    torch.testing.assert_close(model.surge_I, torch.tensor(expected), rtol=1e-5, atol=1e-6)
    assert model.surge_I[3] > 0 > model.surge_I[2]
    assert model.surge_I[5] == 0


@pytest.mark.parametrize("encoder", MODELS)
def test_any_model_scores_its_own_score_and_the_surge(encoder, sequences):
    model, batch = make_model(encoder, surge_weight=0.7), gather(sequences, np.arange(4))
    model.see(sequences)
    own = model.model.states(batch) @ model.model.item_vectors(0).T
    torch.testing.assert_close(model.states(batch) @ model.item_vectors(0).T, own + 0.7 * model.surge_I)
    codes_C = torch.tensor([3, 1])
    torch.testing.assert_close(model.item_vectors(0, codes_C), model.item_vectors(0)[codes_C])


def test_a_training_goes_as_without_it(sequences, tmp_path):
    weights = []
    for half_life in (None, timedelta(minutes=2)):
        recipe = recipe_of(surge_half_life=half_life)
        model = build(recipe, NUM_CODES)
        fit(model, sequences, recipe, 2, tmp_path / str(half_life))
        weights.append((model if half_life is None else model.model).items.weight)
    assert torch.equal(*weights)


def test_a_surge_is_saved_and_grown_with_its_model_and_counted_anew(sequences, tmp_path):
    names = [f"i{n}" for n in range(NUM_CODES - 1)]
    model, recipe = make_model(), recipe_of()
    model.see(sequences)
    vocabulary = learn_vocabulary(pl.DataFrame({"item_ids": [names]}), 1)
    bundle = Bundle(model, vocabulary, "r", recipe, date(2026, 3, 3), 0)
    save_bundle(bundle, tmp_path / "bundle")
    loaded = load_bundle(tmp_path / "bundle").recommender
    assert torch.equal(loaded.item_vectors(0), model.item_vectors(0))
    grown = grow(bundle, learn_vocabulary(pl.DataFrame({"item_ids": [[*names, "new"]]}), 1), recipe)
    assert torch.equal(grown.surge_I[:NUM_CODES], model.surge_I)
    assert grown.surge_I[NUM_CODES] == 0
    grown.see(Sequences(np.array([2, 1]), np.array([0, 2]), np.array([0, HOUR]), pl.Series(["v"])))
    assert grown.surge_I[3] == 0
    assert grown.surge_I[1] > grown.surge_I[2]


def test_a_weight_without_a_surge_is_refused():
    with pytest.raises(ConfigurationError, match="set surge_half_life, 2m for example"):
        override("gru", RECIPES["gru"](), {"surge_weight": 0.3})


def test_adagrad_moves_what_is_told_of_events_more_slowly(sequences):
    recipe = recipe_of("gru4rec", order="chronological", context=("hour", "gap"))
    training = SessionTraining(build(recipe, NUM_CODES).train(), sequences, recipe)
    optimiser = training.configure_optimizers()
    before = [weights.detach().clone() for weights in training.parameters()]
    training.next_item_loss(gather(sequences, np.arange(7))).backward()
    optimiser.step()
    furthest = {
        name: float((weights.detach() - old).abs().max())
        for (name, weights), old in zip(training.named_parameters(), before, strict=True)
    }
    rate = recipe.learning_rate
    assert furthest["model.model.items.weight"] == pytest.approx(rate, rel=0.01)
    assert furthest["model.model.of_context.weight"] == pytest.approx(SHARE_OF_TOLD * rate, rel=0.01)
