"""Sessions in progress: what a recurrent model carries after each of them, so that one event more costs one step.

A state is a function of the version and the known events before it, and it is kept under just these. So nobody has to
say which session a request goes on with, an item that is taken back leads to the state before it, and a state can be
neither stale nor another visitor's. What is not found is read again from the first event.

Shapes: U sessions at a time · T their events end to end · C width of what the model carries · D of its vectors.
"""

from hashlib import blake2b
from itertools import pairwise
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from cachetools import TTLCache
from torch import Tensor

from features.sequences import Integers, Sequences
from serving_export.online.metrics import Metrics
from serving_export.scoring import Vectors
from training.bundle import Bundle
from training.models.base import SessionModel

MOST_STATES = 50_000
"""About 100 MB for a model of 128 numbers."""


class State(NamedTuple):
    """After an event of a session."""

    vector_D: Tensor
    carry_C: Tensor


class SessionStates:
    """States by version and events, for a while; the longest unused leave first where there are too many."""

    def __init__(self, seconds: float, metrics: Metrics, most: int = MOST_STATES) -> None:
        self.kept: TTLCache[bytes, State] = TTLCache(most, seconds)
        self.lock = Lock()
        self.metrics = metrics

    def vectors(self, bundle: Bundle, version: int, sequences: Sequences, dimension: int) -> Vectors:
        """(U, D) what a model that keeps states wants next of each unit; not a number without a known event."""
        model: Any = bundle.recommender
        codes_T = sequences.item_codes
        starts_T = np.zeros(len(codes_T) + 1, bool)
        starts_T[sequences.offsets] = True
        bounds = sequences.offsets if sequences.user_offsets is None else sequences.offsets[sequences.user_offsets]
        events_T = codes_T * 2 + starts_T[:-1]
        histories = [events_T[first:last] for first, last in pairwise(bounds)]
        found = [self.longest_known(version, events) for events in histories]
        states = self.read_on(model, histories, found)
        with self.lock:
            for events, state in zip(histories, states, strict=True):
                if state is not None:
                    self.kept[key_of(version, events)] = state
            self.metrics.states.set(len(self.kept))
        vectors_UD = np.full((len(histories), dimension), np.nan, np.float32)
        for row, state in enumerate(states):
            if state is not None:
                vectors_UD[row] = state.vector_D.numpy()
        return vectors_UD

    def longest_known(self, version: int, events: Integers) -> tuple[int, State | None]:
        """How many of the events some state has read, and that state."""
        with self.lock:
            for num_events in range(len(events), 0, -1):
                state = self.kept.get(key_of(version, events[:num_events]))
                if state is not None:
                    return num_events, state
        return 0, None

    @torch.inference_mode()
    def read_on(
        self, model: SessionModel, histories: list[Integers], found: list[tuple[int, State | None]]
    ) -> list[State | None]:
        """The states at the end of each, an event of many sessions at a time."""
        states = [state for _, state in found]
        left = [events[num_read:] for events, (num_read, _) in zip(histories, found, strict=True)]
        for step in range(max(map(len, left), default=0)):
            rows = [row for row, events in enumerate(left) if len(events) > step]
            events_R = torch.from_numpy(np.array([left[row][step] for row in rows]))
            blank_C = model.new_carry(1)[0]
            carries = [blank_C if state is None else state.carry_C for state in (states[row] for row in rows)]
            moved_RD, carry_RC = model.advance(events_R // 2, torch.stack(carries), events_R % 2 == 1)
            for row, vector_D, carry_C in zip(rows, moved_RD, carry_RC, strict=True):
                states[row] = State(vector_D.clone(), carry_C.clone())
            self.metrics.steps.inc(len(rows))
        self.metrics.reads.inc(
            sum(len(events) > 0 and not num_read for events, (num_read, _) in zip(left, found, strict=True))
        )
        return states


def key_of(version: int, events: Integers) -> bytes:
    """Under what a state is kept."""
    return blake2b(events.tobytes(), digest_size=16, salt=version.to_bytes(8, "little")).digest()


def keeps_state(model: Any) -> bool:
    """Whether a recommender can go on from a state."""
    if not isinstance(model, SessionModel):
        return False
    try:
        model.new_carry(0)
    except NotImplementedError:
        return False
    return True
