"""The recency prior: what is popular just now, as one more column of any session model.

    c_i(t) = sum over events of i before t of 2^(-(t - t_event) / half_life)
    score_i(t) = model's score + w * log(1 + c_i(t))

`w` is learnt with the model. Where items age within hours, the model then need not follow the hour's favourites with
its own weights, and what it learns beside them lasts longer. Training asks for the prior at the oldest event of a
batch, so that nothing of the batch is counted in it; evaluation and export ask for the one at the end of the window.

Counts are kept at STEPS_A_HALF_LIFE instants a half-life; between them they decay, and what happened since is left out.

Shapes: G instants · I item codes.
"""

from collections.abc import Mapping
from datetime import timedelta

import numpy as np
import torch
from torch import Tensor, nn

from features.sequences import Integers, Sequences
from training.batch import Batch
from training.models.base import SessionModel

STEPS_A_HALF_LIFE = 8


class WithPrior(SessionModel):
    """A session model whose states and item vectors have a column more."""

    counts_I: Tensor
    counted_at: Tensor

    def __init__(self, model: SessionModel, num_codes: int, half_life: timedelta) -> None:
        super().__init__()
        self.model = model
        self.half_life = half_life / timedelta(microseconds=1)
        self.weight = nn.Parameter(torch.ones(()))
        self.register_buffer("counts_I", torch.zeros(num_codes))
        self.register_buffer("counted_at", torch.zeros((), dtype=torch.int64))
        self.earlier_GI = torch.zeros(0, num_codes)
        self.first_at = 0

    def describe_items(self, described: Mapping[str, Integers]) -> None:
        """The model's own."""
        self.model.describe_items(described)

    def begin_items(self, codes_C: Tensor) -> None:
        """The model's own; nothing of them was counted."""
        self.model.begin_items(codes_C)

    def see(self, sequences: Sequences) -> None:
        """Count the events of the window: (I) at its last event, to be kept, and (G, I) on the way, for training."""
        self.model.see(sequences)
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

    def prior(self, as_of: int, codes_C: Tensor | None = None) -> Tensor:
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

    def states(self, batch: Batch) -> Tensor:
        """(T, D + 1) the model's states and what the prior weighs."""
        return self.widen(self.model.states(batch))

    def step(self, item_codes_B: Tensor, carry_BD: Tensor) -> tuple[Tensor, Tensor]:
        """The same for a session-parallel step; the prior has no state to carry."""
        states_BD, carry_BD = self.model.step(item_codes_B, carry_BD)
        return self.widen(states_BD), carry_BD

    def new_carry(self, num_sessions: int) -> Tensor:
        """The model's own."""
        return self.model.new_carry(num_sessions)

    def advance(
        self, item_codes_B: Tensor, carry_BC: Tensor | None = None, is_new_B: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The model's own, and what the prior weighs."""
        states_BD, carry_BC = self.model.advance(item_codes_B, carry_BC, is_new_B)
        return self.widen(states_BD), carry_BC

    def widen(self, states_RD: Tensor) -> Tensor:
        """(R, D + 1) states with the weight of the prior."""
        return torch.cat([states_RD, self.weight.expand(len(states_RD), 1)], dim=1)

    def item_vectors(self, as_of: int, codes_C: Tensor | None = None) -> Tensor:
        """(I, D + 1) or (C, D + 1) the model's vectors and the prior."""
        return torch.cat([self.model.item_vectors(as_of, codes_C), self.prior(as_of, codes_C)[:, None]], dim=1)

    def extra_terms(self, batch: Batch) -> dict[str, Tensor]:
        """The model's own."""
        return self.model.extra_terms(batch)
