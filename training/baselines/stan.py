"""STAN: nearest sessions with three decays: by place in the session, age of the neighbour, place in the neighbour.

    weight(n)           = exp(-age(n) / l2) / sqrt(number of items of n)
    weight(item in s)   = exp(-(events since the item) / l1)
    weight(i in n)      = exp(-|place of i in n - place in n of the last shared item| / l3)

l1 is `event_decay` in events, l2 `session_decay`, l3 `item_decay` in events; any of them may be off (null). The age is
taken at the end of the window: another moment would change all similarities of a session by one factor.

Garg, Gupta, Malhotra, Vig and Shroff, "Sequence and Time Aware Neighborhood for Session-based Recommendations",
SIGIR 2019; decays and sample as in session-rec, number of neighbours as tuned there for RetailRocket.
"""

import numpy as np

from features.sequences import Integers
from training.baselines.base import Floats
from training.baselines.session_knn import Met, SessionKnn
from training.recipes import StanRecipe


class Stan(SessionKnn):
    """Sequence and time aware neighbourhood."""

    def __init__(self, num_codes: int, recipe: StanRecipe) -> None:
        super().__init__(num_codes, recipe)
        self.recipe = recipe

    def session_weights(self, ages_S: Floats, num_items_S: Integers) -> Floats:
        """(S) by age, and by length as the cosine asks."""
        weights_S = 1 / np.sqrt(num_items_S)
        if self.recipe.session_decay is not None:
            weights_S = weights_S * np.exp(-ages_S / self.recipe.session_decay.total_seconds())
        return weights_S

    def event_weights(self, back: Integers, lengths: Integers) -> Floats:
        """Falling from the last event to the first."""
        return decay(back, self.recipe.event_decay)

    def item_weights(self, met: Met) -> Floats:
        """(E) by the distance to the last item of the neighbour that the session has too."""
        last_shared_P = np.maximum.reduceat(np.where(met.back_E >= 0, met.place_E, 0), met.starts_P)
        return decay(np.abs(met.place_E - last_shared_P[met.pair_E]), self.recipe.item_decay)


def decay(distance: Integers, scale: float | None) -> Floats:
    """exp(-distance / scale), or 1."""
    return np.ones(len(distance)) if scale is None else np.exp(-distance / scale)
