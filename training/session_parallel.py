"""Session-parallel steps: sessions side by side in slots, one event of each a step.

    slot 0   a1 a2 a3 | d1 d2 …          a session that ends gives its slot to the next one in order of start;
    slot 1   b1 b2 | c1 c2 c3 …          when none is left, the slot goes and the steps shrink

A session of n events takes n - 1 steps: its last event is a target only.

Shapes: B sessions of a step.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from features.sequences import Sequences


class Step(NamedTuple):
    """One event of each of B sessions, and the one after it."""

    item_codes_B: Tensor
    targets_B: Tensor
    slots_B: Tensor
    """Where each session's state stands in the step before."""
    is_new_B: Tensor
    """Whether the session begins here, so that nothing is carried into it."""
    as_of: int
    """The oldest of the events, microseconds since 1970."""

    def to(self, device: torch.device | str) -> "Step":
        """The same step on a device."""
        codes_B, targets_B, slots_B, is_new_B, as_of = self
        return Step(codes_B.to(device), targets_B.to(device), slots_B.to(device), is_new_B.to(device), as_of)


def parallel_steps(sequences: Sequences, batch_size: int) -> Iterator[Step]:
    """The steps of an epoch, at most `batch_size` sessions wide; sessions of one event have none."""
    sequences = sequences.at_least(2)
    starts, lasts = sequences.offsets[:-1], sequences.offsets[1:] - 1
    sessions = np.arange(min(batch_size, sequences.num_sessions))
    num_begun = len(sessions)
    places, slots, is_new = starts[sessions], sessions, np.ones(len(sessions), dtype=bool)
    while len(sessions):
        yield Step(
            torch.from_numpy(sequences.item_codes[places]),
            torch.from_numpy(sequences.item_codes[places + 1]),
            torch.from_numpy(slots),
            torch.from_numpy(is_new),
            int(sequences.occurred_at[places].min()),
        )
        places = places + 1
        is_new = places == lasts[sessions]
        sessions = sessions.copy()
        sessions[is_new] = num_begun + np.arange(is_new.sum())
        num_begun += int(is_new.sum())
        slots = np.flatnonzero(sessions < sequences.num_sessions)
        sessions, is_new = sessions[slots], is_new[slots]
        places = np.where(is_new, starts[sessions], places[slots])
