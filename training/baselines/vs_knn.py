"""V-SkNN: nearest sessions, where recent events of the session count more.

    weight(n)           = 1
    weight(item in s)   = d(event of the item), 1 for the last event, falling towards the first
    weight(i in n)      = f(x) * (1 + idf * ln(S / c_i))

x is 1 if the neighbour has the session's last item, 2 if the last it has is the one before, and so on. d and f are
`event_decay` and `neighbour_decay`: with L events in s and an event that is its p-th,
    same 1 · linear, d: 1 - (L - p)/10, f: 1 - x/10, never below 0 · div, d: p/L, f: 1/x · quadratic, the square of div
    log, d: 1/log10(L - p + 1.7), f: 1/log10(x + 1.7)

Ludewig and Jannach, "Evaluation of Session-based Recommendation Algorithms", 2018 (arXiv 1803.09587); decays, sample
and number of neighbours as in their session-rec (VMContextKNN).
"""

import numpy as np
import torch
from torch import Tensor

from features.sequences import Integers, Sequences
from training.baselines.base import Floats
from training.baselines.session_knn import Met, SessionKnn
from training.recipes import VsKnnRecipe


class VsKnn(SessionKnn):
    """Vector multiplication session-kNN."""

    idf_I: Tensor

    def __init__(self, num_codes: int, recipe: VsKnnRecipe) -> None:
        super().__init__(num_codes, recipe)
        self.recipe = recipe
        self.register_buffer("idf_I", torch.zeros(num_codes, dtype=torch.float64))

    def learn(self, known: Sequences, as_of: int) -> None:
        """Sessions, and how rare each item is."""
        super().learn(known, as_of)
        counts_I = np.bincount(known.item_codes, minlength=self.num_codes).clip(1)
        self.idf_I.copy_(torch.from_numpy(np.log(max(known.num_sessions, 1) / counts_I).clip(0)))

    def session_weights(self, ages_S: Floats, num_items_S: Integers) -> Floats:
        """(S) all alike."""
        return np.ones(len(ages_S))

    def event_weights(self, back: Integers, lengths: Integers) -> Floats:
        """Falling from the last event to the first."""
        match self.recipe.event_decay:
            case "same":
                return np.ones(len(back))
            case "linear":
                return (1 - back / 10).clip(0)
            case "div":
                return (lengths - back) / lengths
            case "quadratic":
                return ((lengths - back) / lengths) ** 2
            case "log":
                return 1 / np.log10(back + 1.7)

    def item_weights(self, met: Met) -> Floats:
        """(E) by how recently the session had something that the neighbour has."""
        far = np.iinfo(np.int64).max
        latest_P = np.minimum.reduceat(np.where(met.back_E >= 0, met.back_E, far), met.starts_P)
        decay_E = self.neighbour_decay(latest_P + 1)[met.pair_E]
        return decay_E * (1 + self.recipe.idf * self.idf_I.numpy()[met.code_E])

    def neighbour_decay(self, steps: Integers) -> Floats:
        """By the steps back to the last shared item, from 1."""
        match self.recipe.neighbour_decay:
            case "same":
                return np.ones(len(steps))
            case "linear":
                return (1 - steps / 10).clip(0)
            case "div":
                return 1 / steps
            case "quadratic":
                return 1 / steps.astype(np.float64) ** 2
            case "log":
                return 1 / np.log10(steps + 1.7)
