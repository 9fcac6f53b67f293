"""The recency prior: what is popular just now, as one more column of any session model.

    c_i(t) = sum over events of i before t of 2^(-(t - t_event) / half_life)
    score_i(t) = model's score + w * log(1 + c_i(t))

`w` is learnt with the model. Where items age within hours, the model then need not follow the hour's favourites with
its own weights, and what it learns beside them lasts longer. Training asks for the prior at the oldest event of a
batch, so that nothing of the batch is counted in it; evaluation and export ask for the one at the end of the window.

Counts are kept at STEPS_A_HALF_LIFE instants a half-life; between them they decay, and what happened since is left out.

Shapes: G instants · I item codes.
"""

from datetime import timedelta

import numpy as np
import torch
from torch import Tensor, nn

from features.sequences import Sequences
from training.models.base import SessionModel
from training.models.widened import Widened

STEPS_A_HALF_LIFE = 8


class WithPrior(Widened):
    """A session model whose states and item vectors have the prior as a column."""

    counts_I: Tensor
    counted_at: Tensor

    def __init__(self, model: SessionModel, num_codes: int, half_life: timedelta) -> None:
        super().__init__(model)
        self.half_life = half_life / timedelta(microseconds=1)
        self.weight = nn.Parameter(torch.ones(()))
        self.register_buffer("counts_I", torch.zeros(num_codes))
        self.register_buffer("counted_at", torch.zeros((), dtype=torch.int64))
        self.earlier_GI = torch.zeros(0, num_codes)
        self.first_at = 0

    def see(self, sequences: Sequences) -> None:
        """Count the events of the window: (I) at its last event, to be kept, and (G, I) on the way, for training."""
        super().see(sequences)
        codes, happened = sequences.item_codes, sequences.occurred_at
        step = self.half_life / STEPS_A_HALF_LIFE
        self.first_at = int(happened.min())
        instant = ((happened - self.first_at) // step).astype(np.int64) + 1  # the first one after the event
        age = self.first_at + instant * step - happened
        num_instants, num_codes = int(instant.max()), len(self.counts_I)
        place = instant * num_codes + codes
        new = np.bincount(place, np.exp2(-age / self.half_life), minlength=(num_instants + 1) * num_codes)
        counts_GI = new.reshape(num_instants + 1, num_codes).astype(np.float32)
        for later in range(1, len(counts_GI)):
            counts_GI[later] += counts_GI[later - 1] * 2.0 ** (-1 / STEPS_A_HALF_LIFE)
        last = int(happened.max())
        weights = np.exp2((happened - last) / self.half_life)
        self.counts_I.copy_(torch.from_numpy(np.bincount(codes, weights, minlength=num_codes)))
        self.counted_at.fill_(last)
        self.earlier_GI = torch.from_numpy(counts_GI)

    def column(self, as_of: int, codes_C: Tensor | None = None) -> Tensor:
        """(I) or (C) log(1 + c_i) at a moment, microseconds since 1970."""
        counts_I, half_lives = self.counts_before(as_of)
        counts = counts_I if codes_C is None else counts_I[codes_C.to(counts_I.device)]
        return (counts.to(self.weight.device) * 2.0**-half_lives).log1p()

    def counts_before(self, as_of: int) -> tuple[Tensor, float]:
        """(I) the newest counts kept that hold nothing after a moment, and how many half-lives they are old then."""
        last = int(self.counted_at)
        if as_of >= last or not len(self.earlier_GI):
            return self.counts_I, max(0, as_of - last) / self.half_life
        steps = max(0.0, (as_of - self.first_at) / self.half_life * STEPS_A_HALF_LIFE)
        return self.earlier_GI[int(steps)], (steps % 1) / STEPS_A_HALF_LIFE
