"""Kinds of targets, so that a mean does not hide who is served badly: every target is in one slice of each kind.

all_by_length/{2,3_to_4,5_to_9,10_up}        events of its session, unknown items included
all_by_position/{1,2,3_to_4,5_up}            events before it in its session
all_by_repeat/{repeat,explore}               whether the session had its item before
all_by_popularity/{head,middle,tail,cold}    its item among all items by training events: the most frequent items
                                             that make half of the events, those up to 90 %, the others; and
                                             items that the model does not know
all_by_history/{0,1,2,3_or_more}             sessions of its visitor before this one, in the window and on the day
"""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.sequences import Sequences
from features.vocabulary import Vocabulary

LENGTHS = {2: "2", 3: "3_to_4", 5: "5_to_9", 10: "10_up"}
POSITIONS = {0: "first", 1: "1", 2: "2", 3: "3_to_4", 5: "5_up"}
POPULARITIES = ("cold", "head", "middle", "tail")
HISTORIES = {0: "0", 1: "1", 2: "2", 3: "3_or_more"}
HEAD, MIDDLE = 0.5, 0.9
KINDS = ("all_by_length", "all_by_position", "all_by_repeat", "all_by_popularity", "all_by_history")


def slice_events(
    coded: Sequences, named: Sequences, vocabulary: Vocabulary, num_earlier_S: NDArray[np.int64]
) -> pl.DataFrame:
    """(T rows) the slice of each event as a target, a column a kind; a session's first event is none.

    `coded` and `named` are the same sessions: in the model's codes, and in codes that tell all items apart.
    `num_earlier_S` are the sessions of its visitor before each.
    """
    session_of_event = named.session_of_event()
    events_before = np.arange(len(session_of_event)) - named.offsets[:-1][session_of_event]
    return pl.DataFrame(
        {
            "all_by_length": in_bands(named.lengths[session_of_event], LENGTHS),
            "all_by_position": in_bands(events_before, POSITIONS),
            "all_by_repeat": np.where(is_repeat(named), "repeat", "explore"),
            "all_by_popularity": np.array(POPULARITIES)[popularity_band(vocabulary)[coded.item_codes]],
            "all_by_history": in_bands(num_earlier_S[session_of_event], HISTORIES),
        }
    )


def in_bands(numbers: NDArray[np.int64], bands: dict[int, str]) -> NDArray[np.str_]:
    """The name of the band of each number; a band is named by its least number."""
    return np.array(list(bands.values()))[np.searchsorted(list(bands), numbers, side="right") - 1]


def is_repeat(named: Sequences) -> NDArray[np.bool_]:
    """(T) whether the session had an event's item before."""
    item_in_session = named.session_of_event() * (named.item_codes.max(initial=0) + 1) + named.item_codes
    _, first = np.unique(item_in_session, return_index=True)
    repeats = np.ones(len(named.item_codes), dtype=bool)
    repeats[first] = False
    return repeats


def popularity_band(vocabulary: Vocabulary) -> NDArray[np.int64]:
    """(I) the place in POPULARITIES of each item code; padding, which stands for unknown items, is cold.

    An item belongs to the band in which its events begin, when all are laid end to end, the most frequent first.
    """
    counts = vocabulary.items["num_events"].to_numpy()
    ordered = np.argsort(-counts, kind="stable")
    begins = np.cumsum(counts[ordered]) - counts[ordered]
    bands = np.zeros(vocabulary.num_codes, dtype=np.int64)
    bands[ordered + 1] = 1 + np.searchsorted(counts.sum() * np.array([HEAD, MIDDLE]), begins, side="right")
    return bands
