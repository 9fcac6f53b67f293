"""Every loss, with every kind of negatives and either optimiser, teaches a model what follows what."""

import numpy as np
import pytest

from features.sequences import encode_sessions
from features.vocabulary import learn_vocabulary
from training.batch import gather
from training.bundle import build
from training.fit import fit
from training.models.base import SessionModel
from training.recipes import SequenceRecipe

DRAWN = {"num_negatives": 16}
POPULAR = {"num_negatives": 16, "negative_alpha": 0.75}
MIXED = {"num_negatives": 8, "negative_alpha": 0.5, "in_batch_negatives": True}
ROWS = {"optimiser": "adagrad", "momentum": 0.2, "learning_rate": 0.1}


@pytest.mark.parametrize(
    "fields",
    [
        DRAWN,
        POPULAR,
        MIXED | ROWS,
        ROWS,
        {"loss": "bpr_max", **POPULAR},
        {"loss": "bpr_max", **MIXED, **ROWS},
        {"loss": "gbce", **DRAWN, "epochs": 40},
    ],
    ids=["drawn", "popular", "mixed-rows", "all-rows", "bpr_max-popular", "bpr_max-mixed-rows", "gbce-drawn"],
)
def test_each_loss_learns_what_follows(fields, sessions_of, walk, tmp_path):
    sessions = sessions_of(walk(150, follows=1.0, seed=1))
    vocabulary = learn_vocabulary(sessions, 1)
    sequences = encode_sessions(sessions, vocabulary)
    told = {"encoder": "gru", "hidden_size": 24, "dropout": 0, "batch_size": 16, "learning_rate": 0.02, "epochs": 6}
    recipe = SequenceRecipe.model_validate(told | fields)  # gbce rises slowly: negatives first
    model = build(recipe, vocabulary.num_codes)
    assert isinstance(model, SessionModel)
    fit(model, sequences, recipe, recipe.epochs, tmp_path)
    batch = gather(sequences, np.arange(sequences.num_sessions))
    first = model.recommend(batch, 1, 0).codes_RN[:, 0]
    assert (first[batch.target_mask] == batch.targets()).float().mean() > 0.85
