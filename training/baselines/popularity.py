"""The same list for everyone: items by their number of events, counted in the window or with a half-life.

With a half-life h an event of age a counts 2^(-a/h), its age taken at the end of the window.
"""

import numpy as np
import torch
from torch import Tensor

from features.sequences import Sequences
from features.vocabulary import PADDING
from training.batch import Batch
from training.models.base import Recommender, TopItems, top_of_scores
from training.recipes import PopularityRecipe


class Popularity(Recommender):
    """Item scores that no session changes."""

    scores_I: Tensor

    def __init__(self, num_codes: int, recipe: PopularityRecipe) -> None:
        super().__init__()
        self.half_life = recipe.half_life
        self.register_buffer("scores_I", torch.zeros(num_codes, dtype=torch.float64))

    def fit(self, sequences: Sequences, as_of: int) -> None:
        """Count the events of the window that ends at `as_of` (microseconds since 1970)."""
        weights = None
        if self.half_life is not None:
            weights = np.exp2((sequences.occurred_at - as_of) / 1e6 / self.half_life.total_seconds())
        counts = np.bincount(sequences.item_codes, weights, minlength=len(self.scores_I))
        self.scores_I.copy_(torch.from_numpy(counts.astype(np.float64)))
        self.scores_I[PADDING] = 0

    def recommend(self, batch: Batch, n: int, as_of: int) -> TopItems:
        """The most popular items, for every event the same."""
        return self.repeat(len(batch.item_codes), n)

    def recommend_last(self, batch: Batch, n: int, as_of: int) -> TopItems:
        """The most popular items, for every session the same."""
        return self.repeat(len(batch.offsets) - 1, n)

    def repeat(self, num_rows: int, n: int) -> TopItems:
        """One list in every row."""
        codes, scores, ties = top_of_scores(self.scores_I.clone()[None], n)
        return TopItems(codes.expand(num_rows, -1), scores.expand(num_rows, -1).float(), ties.expand(num_rows))
