"""Items of the session itself, the most frequent first; behind them what is popular.

"S-POP" of Hidasi et al., "Session-based Recommendations with Recurrent Neural Networks", ICLR 2016 (arXiv 1511.06939):
an item's support in the session so far, ties broken by its support in the window:

    r(s, i) = c_si + c_i / (1 + max c)

The authors' c_i / (1 + c_i) has the same order, but rounds to 1 for frequent items.
"""

import numpy as np

from features.sequences import Integers, Sequences
from training.baselines.base import Baseline, Floats, prefixes
from training.batch import Batch
from training.recipes import SessionPopularityRecipe


class SessionPopularity(Baseline):
    """Counts within the session."""

    def __init__(self, num_codes: int, recipe: SessionPopularityRecipe) -> None:
        super().__init__(num_codes)

    def learn(self, known: Sequences, as_of: int) -> None:
        """Popularity is all there is to learn."""

    def work(self, batch: Batch) -> Integers:
        """(T) the events before each event, and itself."""
        lengths = batch.lengths.numpy()
        return np.arange(len(batch.item_codes)) - np.repeat(batch.offsets[:-1].numpy(), lengths) + 1

    def evidence(self, batch: Batch, events_R: Integers) -> Floats:
        """(R, I) events of each item in the session so far, and its popularity in the window where there are any."""
        rows, codes, _ = prefixes(batch, events_R)
        num_cells = len(events_R) * self.num_codes
        counts_RI = np.bincount(rows * self.num_codes + codes, minlength=num_cells).reshape(-1, self.num_codes)
        return np.where(counts_RI > 0, counts_RI + self.popularity_I.numpy(), 0)
