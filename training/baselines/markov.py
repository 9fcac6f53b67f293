"""What came right after the current item: a Markov chain of first order.

    r(s, i) = number of times that i came right after the last item of s + c_i / (1 + max c)

The second term, below 1, sets items with equal counts in order of their popularity in the window.
Baseline MC of Ludewig and Jannach, "Evaluation of Session-based Recommendation Algorithms", 2018 (arXiv 1803.09587).
Counts are not pruned: a list cut among equal counts would hide how many items it could as well have held.
"""

from features.sequences import Sequences
from training.baselines.base import ItemToItem, count_pairs
from training.recipes import MarkovRecipe


class Markov(ItemToItem):
    """Counts of neighbouring pairs."""

    def __init__(self, num_codes: int, recipe: MarkovRecipe) -> None:
        super().__init__(num_codes)

    def learn(self, known: Sequences, as_of: int) -> None:
        """Count them."""
        table = count_pairs(known, 1, None, self.num_codes)
        table.data += self.popularity_I.numpy()[table.indices]
        self.table.keep(table)
