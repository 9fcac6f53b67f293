"""Sessions as flat arrays: all item codes in a row, and where each session begins.

    item_codes     [3 7 7 | 1 4 | 9 2 5 1]
    offsets        [0       3     5        9]
    user_offsets   [0                2      3]      sessions 0 and 1 are of one user, session 2 is of another one

No prefix is ever written out, and nothing is padded: a batch is a gather from these arrays. What is gathered is a
unit: a session, or, where sessions are grouped, a user with all of them.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.vocabulary import PADDING, Vocabulary

Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Sequences:
    """S sessions with T events in all, in order of their start; or user after user, each one's in that order."""

    item_codes: Integers
    """(T) item codes; 0 for an item that the vocabulary does not know."""
    offsets: Integers
    """(S + 1) where each session's events begin; the last entry is T."""
    occurred_at: Integers
    """(T) microseconds since 1970, UTC."""
    visitors: pl.Series
    """(S) whose session it is."""
    user_offsets: Integers | None = None
    """(U + 1) where each user's sessions begin in S; None: sessions are not grouped, each one is a unit."""
    is_history: Mask | None = None
    """(S) sessions that are input only, none of whose events is a target; None: there are none."""
    event_columns: dict[str, Integers] = field(default_factory=dict)
    """Further columns by name, each (T): codes as `Definitions` tell them, for models that read them."""

    @property
    def num_sessions(self) -> int:
        """S."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Integers:
        """(S) events of each session."""
        return np.diff(self.offsets)

    @property
    def num_units(self) -> int:
        """Users if sessions are grouped, else S."""
        return self.num_sessions if self.user_offsets is None else len(self.user_offsets) - 1

    @property
    def unit_lengths(self) -> Integers:
        """(units) events of each unit."""
        return self.lengths if self.user_offsets is None else np.diff(self.offsets[self.user_offsets])

    @property
    def num_targets(self) -> Integers:
        """(S) events that follow another one in a session that is no history."""
        following = np.maximum(self.lengths - 1, 0)
        return following if self.is_history is None else np.where(self.is_history, 0, following)

    def session_of_event(self) -> Integers:
        """(T) the number of the session that an event belongs to."""
        return np.repeat(np.arange(self.num_sessions), self.lengths)

    def events_of(self, sessions: Integers) -> Integers:
        """Places in T of the events of some sessions, in the order given."""
        return expand(self.offsets, sessions)

    def events_of_units(self, units: Integers) -> Integers:
        """Places in T of the events of some units, in the order given."""
        bounds = self.offsets if self.user_offsets is None else self.offsets[self.user_offsets]
        return expand(bounds, units)

    def columns_at(self, events: Integers | Mask) -> dict[str, Integers]:
        """The further columns of some events, by place or mask."""
        return {name: column[events] for name, column in self.event_columns.items()}

    def take(self, sessions: Integers) -> "Sequences":
        """Some sessions in the order given, not grouped."""
        events, chosen = self.events_of(sessions), pl.Series(sessions, dtype=pl.UInt32)
        return Sequences(
            self.item_codes[events],
            np.concatenate([[0], np.cumsum(self.lengths[sessions])]).astype(np.int64),
            self.occurred_at[events],
            self.visitors.gather(chosen),
            is_history=None if self.is_history is None else self.is_history[sessions],
            event_columns=self.columns_at(events),
        )

    def take_units(self, units: Integers) -> "Sequences":
        """Some units in the order given: sessions, or users with all of theirs."""
        if self.user_offsets is None:
            return self.take(units)
        num_sessions = np.diff(self.user_offsets)[units]
        taken = self.take(expand(self.user_offsets, units))
        return replace(taken, user_offsets=np.concatenate([[0], np.cumsum(num_sessions)]))

    def after(self, history: "Sequences") -> "Sequences":
        """The sessions behind earlier ones, which become history; neither may be grouped."""
        return Sequences(
            np.concatenate([history.item_codes, self.item_codes]),
            np.concatenate([history.offsets, history.offsets[-1] + self.offsets[1:]]),
            np.concatenate([history.occurred_at, self.occurred_at]),
            pl.concat([history.visitors, self.visitors]),
            is_history=np.arange(history.num_sessions + self.num_sessions) < history.num_sessions,
            event_columns={
                name: np.concatenate([history.event_columns.get(name, np.zeros_like(history.item_codes)), column])
                for name, column in self.event_columns.items()
            },
        )

    def known_only(self) -> "Sequences":
        """Without events of unknown items; a session may become empty, but stays."""
        return self.only(self.item_codes != PADDING)

    def only(self, is_kept: Mask) -> "Sequences":
        """The events that are marked (T); a session may become empty, but stays."""
        num_kept_before = np.concatenate([[0], np.cumsum(is_kept)])
        return replace(
            self,
            item_codes=self.item_codes[is_kept],
            offsets=num_kept_before[self.offsets],
            occurred_at=self.occurred_at[is_kept],
            event_columns=self.columns_at(is_kept),
        )

    def at_least(self, num_events: int) -> "Sequences":
        """Only sessions of at least so many events; a user may be left without any, but stays."""
        is_kept = self.lengths >= num_events
        kept = self.take(np.flatnonzero(is_kept))
        if self.user_offsets is None:
            return kept
        num_kept_before = np.concatenate([[0], np.cumsum(is_kept)])
        return replace(kept, user_offsets=num_kept_before[self.user_offsets])

    def by_user(self) -> "Sequences":
        """Grouped by visitor, who come in order of their last session's start; `user_order` gives the sessions."""
        sessions, user_offsets = user_order(self.visitors)
        return replace(self.take(sessions), user_offsets=user_offsets)

    def with_targets(self) -> "Sequences":
        """Of grouped sessions, those of users who have a target."""
        assert self.user_offsets is not None, "sessions are not grouped by user"
        num_before = np.concatenate([[0], np.cumsum(self.num_targets)])
        return self.take_units(np.flatnonzero(np.diff(num_before[self.user_offsets])))

    def newest(self, num_sessions: int) -> "Sequences":
        """Of each user only so many sessions, the newest ones; not grouped."""
        sessions, user_offsets = user_order(self.visitors)
        num_later = np.repeat(user_offsets[1:], np.diff(user_offsets)) - 1 - np.arange(len(sessions))
        return self.take(np.sort(sessions[num_later < num_sessions]))

    def cut_at_silences(self, longest: int) -> "Sequences":
        """Each session as a user with sessions of its own, cut where more than `longest` microseconds pass."""
        starts = np.zeros(len(self.item_codes) + 1, dtype=bool)
        starts[1:-1] = np.diff(self.occurred_at) > longest
        starts[self.offsets] = True
        offsets = np.flatnonzero(starts)
        user_offsets = np.searchsorted(offsets, self.offsets)
        visitors = self.visitors.gather(np.repeat(np.arange(self.num_sessions), np.diff(user_offsets)))
        return replace(self, offsets=offsets, visitors=visitors, user_offsets=user_offsets)


def expand(offsets: Integers, chosen: Integers) -> Integers:
    """The places that lie between `offsets[n]` and `offsets[n + 1]`, for each n chosen, end to end."""
    lengths = np.diff(offsets)[chosen]
    ends = np.cumsum(lengths)
    return np.repeat(offsets[chosen] - (ends - lengths), lengths) + np.arange(ends[-1] if len(ends) else 0)


def user_order(visitors: pl.Series) -> tuple[Integers, Integers]:
    """Sessions (S) with those of a visitor side by side and in their order, and where each visitor's begin.

    Visitors come in order of their last session.
    """
    numbered = pl.DataFrame({"visitor": visitors}).with_row_index("session")
    ordered = numbered.with_columns(last=pl.col("session").max().over("visitor")).sort("last", "session")
    lengths = ordered.group_by("last", maintain_order=True).len()["len"].cast(pl.Int64).to_numpy()
    return ordered["session"].cast(pl.Int64).to_numpy(), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def encode_sessions(sessions: pl.DataFrame, vocabulary: Vocabulary) -> Sequences:
    """Rows of `sessions` as codes, in order of start, then of session_id; further columns as the vocabulary defines."""
    ordered = sessions.sort("started_at", "session_id")
    columns = () if vocabulary.definitions is None else vocabulary.definitions.columns
    listed = {name: "event_types" if name == "event_type" else name for name in columns}
    told = {name: column for name, column in listed.items() if column in ordered.columns}
    events = ordered.select("started_at", "offsets_seconds", item_id="item_ids", **told)
    coded = vocabulary.encode(events.explode("offsets_seconds", "item_id", *told)).with_columns(happened=happened_at())
    return Sequences(
        coded["item_code"].to_numpy(),
        np.concatenate([[0], ordered["item_ids"].list.len().cast(pl.Int64).to_numpy().cumsum()]),
        coded["happened"].to_numpy(),
        ordered["visitor"],
        event_columns={} if vocabulary.definitions is None else vocabulary.definitions.encode(coded),
    )


def happened_at() -> pl.Expr:
    """Microseconds since 1970 of an event, from its session's start and its offset."""
    return pl.col("started_at").dt.epoch("us") + (pl.col("offsets_seconds") * 1e6).round().cast(pl.Int64)


def read_sequences(rows: pl.DataFrame) -> Sequences:
    """Rows of the `sequences` table as flat arrays, in order of start."""
    return read_in_order(rows.sort("started_at", "session_id"))


def read_in_order(ordered: pl.DataFrame) -> Sequences:
    """The same for rows whose order is to stay."""
    happened = ordered.select("started_at", "offsets_seconds").explode("offsets_seconds").select(happened_at())
    return Sequences(
        ordered["item_codes"].explode().to_numpy(),
        np.concatenate([[0], ordered["item_codes"].list.len().cast(pl.Int64).to_numpy().cumsum()]),
        happened.to_series().to_numpy(),
        ordered["visitor"],
    )
