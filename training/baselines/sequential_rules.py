"""What came some events after the current item, near events counting more, and recent ones.

    r(s, i) = sum over events of i up to `steps` events after the last item of s in another session:  1/x * 2^(-a/h)

x is how many events lie between the two, plus one; a is the event's age at the end of the window, h the half-life.
SR of Ludewig and Jannach, "Evaluation of Session-based Recommendation Algorithms", 2018 (arXiv 1803.09587), after
Kamehkhosh, Jannach and Ludewig, RecTemp 2017; `steps` as in their session-rec. The half-life is ours; without it
(`half_life: null`) these are the rules of the paper, unpruned.
"""

import numpy as np

from features.sequences import Sequences
from training.baselines.base import ItemToItem, count_pairs
from training.recipes import SequentialRulesRecipe


class SequentialRules(ItemToItem):
    """Weighted counts of pairs at some distance."""

    def __init__(self, num_codes: int, recipe: SequentialRulesRecipe) -> None:
        super().__init__(num_codes)
        self.recipe = recipe

    def learn(self, known: Sequences, as_of: int) -> None:
        """Count one distance after the other, so that only one set of pairs is held."""
        weights = None
        if self.recipe.half_life is not None:
            age_seconds = (as_of - known.occurred_at) / 1e6
            weights = np.exp2(-age_seconds / self.recipe.half_life.total_seconds())
        table = count_pairs(known, 1, weights, self.num_codes)
        for steps in range(2, self.recipe.steps + 1):
            table = table + count_pairs(known, steps, weights, self.num_codes) / steps
        self.table.keep(table)
