"""Batches: whole sessions gathered from flat arrays, without padding.

Shapes: T events of a batch, S sessions.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from features.sequences import Integers, Sequences

Order = Literal["chronological", "shuffled"]


@dataclass(frozen=True)
class Batch:
    """Sessions side by side; every model reads this and nothing else."""

    item_codes: Tensor
    """(T) item codes, session after session."""
    offsets: Tensor
    """(S + 1) where each session begins in T."""
    occurred_at: Tensor
    """(T) microseconds since 1970."""
    target_mask: Tensor
    """(T) whether the event after this one is to be predicted; false for a session's last event and for history."""
    user_offsets: Tensor | None = None
    """(users + 1) where each user's sessions begin in S, for models that carry a user's state."""
    event_columns: dict[str, Tensor] = field(default_factory=dict)
    """Further columns, each (T)."""

    @property
    def lengths(self) -> Tensor:
        """(S) events of each session."""
        return self.offsets.diff()

    @property
    def as_of(self) -> int:
        """The time of the batch, microseconds since 1970: its oldest event, so that nothing of it is known by then."""
        return int(self.occurred_at.min())

    def targets(self) -> Tensor:
        """(number of true entries in target_mask) the item code after each masked event."""
        return self.item_codes.roll(-1)[self.target_mask]

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on a device."""
        return Batch(
            self.item_codes.to(device),
            self.offsets.to(device),
            self.occurred_at.to(device),
            self.target_mask.to(device),
            None if self.user_offsets is None else self.user_offsets.to(device),
            {name: column.to(device) for name, column in self.event_columns.items()},
        )


def gather(sequences: Sequences, sessions: Integers) -> Batch:
    """The batch that holds the given sessions (by number), in the given order."""
    lengths = sequences.lengths[sessions]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    events = np.repeat(sequences.offsets[sessions] - offsets[:-1], lengths) + np.arange(offsets[-1])
    has_next = np.ones(len(events), dtype=bool)
    has_next[offsets[1:][lengths > 0] - 1] = False
    return Batch(
        torch.from_numpy(sequences.item_codes[events]),
        torch.from_numpy(offsets),
        torch.from_numpy(sequences.occurred_at[events]),
        torch.from_numpy(has_next),
    )


def plan_batches(
    lengths: Integers,
    batch_size: int,
    order: Order,
    *,
    seed: int,
    epoch: int,
    rank: int = 0,
    world_size: int = 1,
    batch_events: int = 0,
) -> list[Integers]:
    """Session numbers of each batch of an epoch, for one rank: a pure function.

    `lengths` (S) are the sessions' events. A batch holds at most `batch_size` sessions and, unless it is 0, about
    `batch_events` events: at most so many on one device, but for a longer session, which goes alone. Batches carry no
    padding, so the bound is one of memory, whatever the lengths; shuffled sessions are then put with others of like
    length, which spares models that pad. Over all ranks every session comes once; every rank has equally many
    batches, none of them empty.
    """
    num_sessions = len(lengths)
    if num_sessions == 0:
        return []
    if num_sessions < world_size:
        raise ValueError(f"{num_sessions} sessions cannot keep {world_size} devices busy; train on fewer devices")
    sessions, random = np.arange(num_sessions), np.random.default_rng((seed, epoch))
    if order == "shuffled":
        sessions = random.permutation(num_sessions)
        if batch_events:
            sessions = sessions[lengths[sessions].argsort(kind="stable")]
    cuts = cut(lengths[sessions], batch_size * world_size, batch_events * world_size, world_size)
    steps = np.split(sessions, cuts)
    if len(steps[-1]) < world_size:  # too few for a batch on every rank: they join the step before
        steps[-2:] = [np.concatenate(steps[-2:])]
    if order == "shuffled" and batch_events:
        steps = [steps[number] for number in random.permutation(len(steps))]
    return [np.array_split(part, world_size)[rank] for part in steps]


def cut(lengths: Integers, most_sessions: int, most_events: int, fewest_sessions: int) -> list[int]:
    """Where to cut sessions in a row into batches; `most_events` of 0 is no bound."""
    if not most_events:
        return list(range(most_sessions, len(lengths), most_sessions))
    ends = np.cumsum(lengths)
    cuts = [0]
    while cuts[-1] < len(lengths):
        start = cuts[-1]
        within = int(np.searchsorted(ends, ends[start] - lengths[start] + most_events, side="right"))
        cuts.append(max(start + fewest_sessions, min(within, start + most_sessions)))
    return cuts[1:-1]


def all_batches(sequences: Sequences, batch_size: int) -> Iterator[tuple[Integers, Batch]]:
    """All sessions in order, with their numbers, for evaluation."""
    for sessions in plan_batches(sequences.lengths, batch_size, "chronological", seed=0, epoch=0):
        yield sessions, gather(sequences, sessions)
