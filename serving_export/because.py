"""Say in exported lists which of a user's items drew an item in: the one without which its score would lose most.

Leaving out each event in turn costs a pass of the model for every event, so it is done for channels that ask
(`because: influence`) and within a time (`export.reasons_within`): users with few events first, as most are explained
so. Users beyond it keep what other channels say, their last item, and are counted. Where no item of the user speaks for
an item, `because` is empty.

Shapes: U users of a slab · R of these at a time · E their events · N places of all lists that ask, side by side.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from features.sequences import Integers, Sequences
from features.vocabulary import PADDING
from serving_export.filling import MODEL, NOTHING, Lists
from training.bundle import Bundle
from training.reasons import few_at_a_time, leave_one_out

EVENTS_AT_ONCE = 2**14
"""Events read between two looks at the clock."""


@dataclass
class Budget:
    """Seconds that are left, shared evenly among the parts of the work that are left."""

    seconds: float
    num_parts: int
    started: float = 0.0

    def next_deadline(self) -> float:
        """When the next part must have ended, on the clock that never goes back."""
        self.started = time.monotonic()
        return self.started + self.seconds / max(1, self.num_parts)

    def part_done(self) -> None:
        """Take what a part has used."""
        self.seconds = max(0.0, self.seconds - (time.monotonic() - self.started))
        self.num_parts -= 1


def find_because(bundle: Bundle, sequences: Sequences, lists: Sequence[Lists], deadline: float) -> dict[str, int]:
    """Fill what led to the model's items in the lists of some users, until the deadline.

    Return how many users were explained, and how many were not, as the time was up.
    """
    has_rows = np.any([(each.sources_UN == MODEL).any(1) for each in lists], axis=0)
    users = np.flatnonzero(has_rows & (sequences.unit_lengths > 0))
    users = users[np.argsort(sequences.unit_lengths[users], kind="stable")]
    num_done = 0
    for part in few_at_a_time(sequences.unit_lengths[users] ** 2, EVENTS_AT_ONCE):
        if time.monotonic() >= deadline:
            break
        explain_users(bundle, sequences, lists, users[part])
        num_done += len(part)
    return {"users_explained": num_done, "users_out_of_time": len(users) - num_done}


def explain_users(bundle: Bundle, sequences: Sequences, lists: Sequence[Lists], users_R: Integers) -> None:
    """Fill what led to the model's items of some users."""
    some = sequences.take_units(users_R)
    is_model_RN = np.concatenate([each.sources_UN[users_R] == MODEL for each in lists], axis=1)
    codes_RN = np.concatenate([each.codes_UN[users_R] for each in lists], axis=1).astype(np.int64)
    influence_EN = leave_one_out(bundle, some, np.where(is_model_RN, codes_RN, PADDING))
    starts = np.cumsum(some.unit_lengths) - some.unit_lengths
    most_RN = np.maximum.reduceat(influence_EN, starts)
    row_E = np.repeat(np.arange(len(users_R)), some.unit_lengths)
    place_EN = np.where(influence_EN == most_RN[row_E], np.arange(len(row_E))[:, None], -1)
    newest_RN = np.maximum.reduceat(place_EN, starts)  # of events that do as much
    because_RN = np.where(most_RN > 0, some.item_codes[newest_RN], NOTHING)
    first = 0
    for each in lists:
        width = each.rules.top_n
        is_model, because = (values[:, first : first + width] for values in (is_model_RN, because_RN))
        each.because_UN[users_R] = np.where(is_model, because, each.because_UN[users_R])
        first += width
