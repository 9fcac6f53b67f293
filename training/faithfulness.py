"""Whether reasons are true: do the events that are said to matter matter?

The best item of a session is looked at while events are taken out of the session, those first that are said to matter
most (deletion), or put in (insertion). What is looked at is the item's reciprocal rank, averaged over the steps: the
area under the curve. True reasons lose the item early (a small area) and find it early (a large one). Beside them the
same in random order, and with the newest event first, which is a strong guess for most session models.

Method: Petsiuk et al., "RISE", BMVC 2018, for pictures; Bruun et al., ECIR 2025, for sessions.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from features.sequences import Integers, Sequences
from features.vocabulary import PADDING
from training.batch import gather
from training.bundle import Bundle
from training.reasons import Floats, leave_one_out
from training.score import all_scores

Mask = NDArray[np.bool_]
NUM_SESSIONS = 100
SHORTEST, LONGEST = 3, 20
"""Sessions of fewer events tell little; of longer ones the last events are taken."""


def faithfulness(bundle: Bundle, sequences: Sequences, seed: int = 1) -> dict[str, float]:
    """Areas by name, over some sessions of known items only; nothing where no session is long enough."""
    sessions = some_sessions(sequences, seed)
    if not sessions.num_sessions:
        return {}
    best = bundle.recommender.recommend_last(gather(sessions, np.arange(sessions.num_sessions)), 1, bundle.as_of)
    best_S = best.codes_RN[:, 0].numpy()
    matters_T = leave_one_out(bundle, sessions, best_S[:, None])[:, 0]
    random = np.random.default_rng(seed)
    orders = {
        "": matters_T,
        "_random": random.random(len(matters_T)),
        "_newest_first": np.arange(len(matters_T), dtype=np.float64),
    }
    found = {"reasons/num_sessions": float(sessions.num_sessions)}
    for name, importance_T in orders.items():
        place_T = places(sessions, importance_T)
        found[f"reasons/deletion{name}"] = area(bundle, sessions, best_S, partial(np.greater_equal, place_T))
        found[f"reasons/insertion{name}"] = area(bundle, sessions, best_S, partial(np.less, place_T))
    return found


def some_sessions(sequences: Sequences, seed: int) -> Sequences:
    """Some sessions that are long enough, of each the last events."""
    fitting = np.flatnonzero(sequences.lengths >= SHORTEST)
    drawn = np.random.default_rng(seed).permutation(fitting)[:NUM_SESSIONS]
    sessions = sequences.take(np.sort(drawn))
    back = np.repeat(sessions.offsets[1:], sessions.lengths) - np.arange(len(sessions.item_codes))
    return sessions.only(back <= LONGEST)


def places(sessions: Sequences, importance_T: Floats) -> Integers:
    """(T) the place of each event in its session, the most important one at 0."""
    of_event = sessions.session_of_event()
    order = np.lexsort((-importance_T, of_event))
    place_T = np.empty(len(order), np.int64)
    place_T[order] = np.arange(len(order)) - sessions.offsets[of_event[order]]
    return place_T


def area(bundle: Bundle, sessions: Sequences, codes_S: Integers, is_kept: Callable[[int], Mask]) -> float:
    """The mean of the items' reciprocal ranks over all steps; step k, of 1 to L - 1, keeps what `is_kept(k)` marks."""
    found = []
    for k in range(1, int(sessions.lengths.max())):
        left = np.flatnonzero(sessions.lengths > k)
        found.append(reciprocal_ranks(bundle, sessions.only(is_kept(k)).take(left), codes_S[left]))
    return float(np.concatenate(found).mean())


def reciprocal_ranks(bundle: Bundle, sessions: Sequences, codes_S: Integers) -> Floats:
    """(S) of an item after each session, among all items; ties count against it."""
    scores_SI = all_scores(bundle, gather(sessions, np.arange(sessions.num_sessions)))
    own_S1 = scores_SI.gather(1, torch.from_numpy(codes_S)[:, None])
    found: Floats = 1 / (scores_SI[:, PADDING + 1 :] >= own_S1).sum(1).double().numpy()
    return found
