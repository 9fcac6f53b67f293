"""Sessions as flat arrays: all item codes in a row, and where each session begins.

    item_codes   [3 7 7 | 1 4 | 9 2 5 1]
    offsets      [0       3     5        9]

No prefix is ever written out, and nothing is padded: a batch is a gather from these arrays.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.vocabulary import PADDING, Vocabulary

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Sequences:
    """S sessions with T events in all, in order of their start."""

    item_codes: Integers
    """(T) item codes; 0 for an item that the vocabulary does not know."""
    offsets: Integers
    """(S + 1) where each session's events begin; the last entry is T."""
    occurred_at: Integers
    """(T) microseconds since 1970, UTC."""
    visitors: pl.Series
    """(S) whose session it is."""

    @property
    def num_sessions(self) -> int:
        """S."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Integers:
        """(S) events of each session."""
        return np.diff(self.offsets)

    def session_of_event(self) -> Integers:
        """(T) the number of the session that an event belongs to."""
        return np.repeat(np.arange(self.num_sessions), self.lengths)

    def known_only(self) -> "Sequences":
        """Without events of unknown items; a session may become empty, but stays."""
        is_known = self.item_codes != PADDING
        num_known_before = np.concatenate([[0], np.cumsum(is_known)])
        return Sequences(
            self.item_codes[is_known], num_known_before[self.offsets], self.occurred_at[is_known], self.visitors
        )

    def at_least(self, num_events: int) -> "Sequences":
        """Only sessions of at least so many events."""
        is_kept = self.lengths >= num_events
        of_event = np.repeat(is_kept, self.lengths)
        offsets = np.concatenate([[0], np.cumsum(self.lengths[is_kept])])
        return Sequences(
            self.item_codes[of_event], offsets, self.occurred_at[of_event], self.visitors.filter(pl.Series(is_kept))
        )


def encode_sessions(sessions: pl.DataFrame, vocabulary: Vocabulary) -> Sequences:
    """Rows of `sessions` as codes, in order of start, then of session_id."""
    ordered = sessions.sort("started_at", "session_id")
    events = ordered.select("started_at", "offsets_seconds", item_id="item_ids").explode("offsets_seconds", "item_id")
    coded = vocabulary.encode(events).with_columns(happened=happened_at())
    return Sequences(
        coded["item_code"].to_numpy(),
        np.concatenate([[0], ordered["item_ids"].list.len().cast(pl.Int64).to_numpy().cumsum()]),
        coded["happened"].to_numpy(),
        ordered["visitor"],
    )


def happened_at() -> pl.Expr:
    """Microseconds since 1970 of an event, from its session's start and its offset."""
    return pl.col("started_at").dt.epoch("us") + (pl.col("offsets_seconds") * 1e6).round().cast(pl.Int64)


def read_sequences(rows: pl.DataFrame) -> Sequences:
    """Rows of the `sequences` table as flat arrays."""
    ordered = rows.sort("started_at", "session_id")
    happened = ordered.select("started_at", "offsets_seconds").explode("offsets_seconds").select(happened_at())
    return Sequences(
        ordered["item_codes"].explode().to_numpy(),
        np.concatenate([[0], ordered["item_codes"].list.len().cast(pl.Int64).to_numpy().cumsum()]),
        happened.to_series().to_numpy(),
        ordered["visitor"],
    )
