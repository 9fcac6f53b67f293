"""Batches: whole sessions, or users with all of theirs, gathered from flat arrays, without padding.

Shapes: T events of a batch, S sessions, U users.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from features.sequences import Integers, Sequences, expand

Order = Literal["chronological", "shuffled"]
USER_EVENTS_AT_ONCE = 2**16


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
    """(U + 1) where each user's sessions begin in S, in time order; None: each session stands for itself."""
    event_columns: dict[str, Tensor] = field(default_factory=dict)
    """Further columns, each (T)."""

    @property
    def lengths(self) -> Tensor:
        """(S) events of each session."""
        return self.offsets.diff()

    @property
    def unit_offsets(self) -> Tensor:
        """(units + 1) where each user's events begin in T, or each session's where none are grouped."""
        return self.offsets if self.user_offsets is None else self.offsets[self.user_offsets]

    @property
    def as_of(self) -> int:
        """The time of the batch, microseconds since 1970: its oldest event, so that nothing of it is known by then."""
        return int(self.occurred_at.min())

    @property
    def last_events(self) -> Tensor:
        """(units) places of the last events: of each user's last session, or of each session where none are grouped."""
        return self.unit_offsets[1:] - 1

    def targets(self) -> Tensor:
        """(number of true entries in target_mask) the item code after each masked event."""
        return self.item_codes.roll(-1)[self.target_mask]

    def targets_in_time(self, num_parts: int) -> list[tuple[Tensor, int]]:
        """The targets (rows of `targets()`) in parts, by the time of the event before each, and each part's start."""
        at_R = self.occurred_at[self.target_mask]
        parts = at_R.argsort(stable=True).tensor_split(min(num_parts, len(at_R)))
        return [(rows_R, int(at_R[rows_R[0]])) for rows_R in parts]

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


def gather(sequences: Sequences, units: Integers) -> Batch:
    """The batch that holds the given units (numbers of sessions, or of users where they are grouped), in this order."""
    sessions, user_offsets = units, None
    if sequences.user_offsets is not None:
        sessions = expand(sequences.user_offsets, units)
        num_sessions_U = np.diff(sequences.user_offsets)[units]
        user_offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(num_sessions_U)]))
    lengths, events = sequences.lengths[sessions], sequences.events_of(sessions)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    has_target = np.ones(len(events), dtype=bool)
    has_target[offsets[1:][lengths > 0] - 1] = False
    if sequences.is_history is not None:
        has_target &= ~np.repeat(sequences.is_history[sessions], lengths)
    return Batch(
        torch.from_numpy(sequences.item_codes[events]),
        torch.from_numpy(offsets),
        torch.from_numpy(sequences.occurred_at[events]),
        torch.from_numpy(has_target),
        user_offsets,
        {name: torch.from_numpy(column) for name, column in sequences.columns_at(events).items()},
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
    """Numbers of the units (sessions or users) of each batch of an epoch, for one rank: a pure function.

    `lengths` are the units' events. A batch holds at most `batch_size` units and, unless it is 0, about
    `batch_events` events: at most so many on one device, but for a longer unit, which goes alone. Batches carry no
    padding, so the bound is one of memory, whatever the lengths; shuffled units are then put with others of like
    length, which spares models that pad. Over all ranks every unit comes once; every rank has equally many
    batches, none of them empty.
    """
    num_units = len(lengths)
    if num_units == 0:
        return []
    if num_units < world_size:
        raise ValueError(f"{num_units} sessions or users cannot keep {world_size} devices busy; train on fewer devices")
    units, random = np.arange(num_units), np.random.default_rng((seed, epoch))
    if order == "shuffled":
        units = random.permutation(num_units)
        if batch_events:
            units = units[lengths[units].argsort(kind="stable")]
    cuts = cut(lengths[units], batch_size * world_size, batch_events * world_size, world_size)
    steps = np.split(units, cuts)
    if len(steps[-1]) < world_size:  # too few for a batch on every rank: they join the step before
        steps[-2:] = [np.concatenate(steps[-2:])]
    if order == "shuffled" and batch_events:
        steps = [steps[number] for number in random.permutation(len(steps))]
    return [np.array_split(part, world_size)[rank] for part in steps]


def cut(lengths: Integers, most_units: int, most_events: int, fewest_units: int) -> list[int]:
    """Where to cut units in a row into batches; `most_events` of 0 is no bound."""
    if not most_events:
        return list(range(most_units, len(lengths), most_units))
    ends = np.cumsum(lengths)
    cuts = [0]
    while cuts[-1] < len(lengths):
        start = cuts[-1]
        within = int(np.searchsorted(ends, ends[start] - lengths[start] + most_events, side="right"))
        cuts.append(max(start + fewest_units, min(within, start + most_units)))
    return cuts[1:-1]


def all_batches(sequences: Sequences, batch_size: int) -> Iterator[tuple[Integers, Batch]]:
    """All units in order, with their numbers, for evaluation; users with long histories come in smaller batches."""
    lengths, most_events = sequences.unit_lengths, 0 if sequences.user_offsets is None else USER_EVENTS_AT_ONCE
    for units in plan_batches(lengths, batch_size, "chronological", seed=0, epoch=0, batch_events=most_events):
        yield units, gather(sequences, units)
