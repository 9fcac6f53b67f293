"""The active users of a bucket: what each did last, and which items their lists must leave out."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta

import numpy as np
import polars as pl

from features.histories import active_events, last_sessions
from features.intents import Definitions
from features.sequences import Integers, Sequences
from pipeline.dates import day_end
from pipeline.publish import Store
from serving_export.assortment import Assortment
from serving_export.filling import UserItems, user_items
from serving_export.popular import segment_of
from training.export_settings import Seen
from training.settings import TrainingSite


@dataclass(frozen=True)
class ListInput:
    """What the lists of U users are made from, whoever they are and wherever it was read."""

    histories: UserItems
    """The last items, oldest first, of which something is known; an item may come twice."""
    sequences: Sequences | None
    """The same as the model reads them, a unit a user, known items only; None without a model."""
    seen: Mapping[Seen, UserItems]
    """What each rule of the channels leaves out."""
    segments: pl.Series
    """(U) whose popular items are theirs; null: everyone's."""


@dataclass(frozen=True)
class BucketUsers:
    """The users of a bucket who get lists, in order of their ids; U of them."""

    table: pl.DataFrame
    """user_id, last_item (its id), last_code, segment, session_id."""
    histories: UserItems
    """The last items, oldest first, of which something is known; an item may come twice."""
    occurred_at: Integers
    """When the events of `histories` happened, microseconds since 1970."""
    seen: dict[Seen, UserItems]
    """What each rule of the channels leaves out."""
    events: pl.DataFrame
    """user (its number), user_id, item_id, item_code, event_type, occurred_at, event_date; in order of time."""
    session_gap: timedelta
    """The silence that ends a session at this site."""
    event_columns: dict[str, Integers] = field(default_factory=dict)
    """What else the model reads of the events of `histories`."""

    @property
    def size(self) -> int:
        """U."""
        return self.table.height

    def input(self, start: int, stop: int, sequences: Sequences | None) -> ListInput:
        """What the lists of neighbouring users are made from; `sequences`: what the model reads of them."""
        return ListInput(
            self.histories.slab(start, stop),
            sequences,
            {rule: items.slab(start, stop) for rule, items in self.seen.items()},
            self.table["segment"].slice(start, stop - start),
        )

    def sequences(self, start: int, stop: int, num_known: int, by_user: bool) -> Sequences:
        """The histories of neighbouring users as a model reads them: without items that it does not know.

        A user's is a session, or with `by_user` several ones, cut at silences.
        """
        part = self.histories.slab(start, stop)
        first = int(self.histories.offsets[start])
        codes = np.where(part.codes < num_known, part.codes, 0)
        happened = self.occurred_at[first : first + len(codes)]
        told = {name: column[first : first + len(codes)] for name, column in self.event_columns.items()}
        users = self.table["user_id"].slice(start, stop - start)
        sequences = Sequences(codes, part.offsets, happened, users, event_columns=told)
        if not by_user:
            return sequences.known_only()
        return sequences.cut_at_silences(self.session_gap // timedelta(microseconds=1)).known_only().at_least(1)


def read_bucket(
    site: TrainingSite,
    store: Store,
    day: date,
    bucket: int,
    assortment: Assortment,
    rules: Iterable[Seen],
    definitions: Definitions | None = None,
) -> BucketUsers:
    """All that the lists of a bucket are made from, as known at the end of `day`.

    With `definitions` also the properties of events that the model reads.
    """
    export, end, rules = site.export, day_end(day, site.time_zone), list(rules)
    of_triggers = export.triggers.within if export.triggers.names() else timedelta()
    longest = max([export.active_within, of_triggers, *(r.within for r in rules if r.policy != "allow")])
    columns = ("user_id", "visitor", "item_id", "event_type", "occurred_at", "event_id", "event_date")
    read = active_events(site, store, day, longest, bucket)
    named = () if definitions is None else set(definitions.columns) - set(columns)
    told = [name for name in site.source.context if name in named]
    events = read.select(*columns, *told, segment=segment_of(export.segment_by)).collect()
    is_active = pl.col("occurred_at") >= end - export.active_within
    users = events.filter(is_active).select("user_id").unique().sort("user_id")
    numbered = users.with_columns(user=pl.int_range(pl.len(), dtype=pl.Int64))
    coded = assortment.encode(events.join(numbered, on="user_id"))
    coded = coded.sort("user", "occurred_at", "event_id").drop("event_id")
    recent = coded if longest == export.active_within else coded.filter(is_active)
    ends = np.cumsum(np.bincount(recent["user"].to_numpy(), minlength=users.height)).astype(np.int64)
    last = recent.select("visitor", "segment", last_item="item_id", last_code="item_code")[ends - 1]
    sessions = last_sessions(site, store, day, export.active_within, bucket)
    table = pl.concat([users, last], how="horizontal").join(sessions, on="visitor", how="left", maintain_order="left")
    kept, histories = last_known(recent, ends, export.input.last_events)
    seen = {rule: seen_items(coded, end, rule, users.height) for rule in rules}
    return BucketUsers(
        table.drop("visitor"),
        histories,
        kept["occurred_at"].dt.epoch("us").to_numpy(),
        seen,
        coded.drop("visitor", "segment", *told),
        site.sessions.gap,
        {} if definitions is None else definitions.encode(kept),
    )


def last_known(events: pl.DataFrame, ends: Integers, num_events: int) -> tuple[pl.DataFrame, UserItems]:
    """The last events of each user, of those the ones whose item has a code; as rows, and as items."""
    user = events["user"].to_numpy()
    is_last = np.arange(len(user)) >= ends[user] - num_events
    is_kept = is_last & (events["item_code"] > 0).to_numpy()
    kept = events.filter(pl.Series(is_kept))
    counts = np.bincount(user[is_kept], minlength=len(ends))
    return kept, UserItems(kept["item_code"].to_numpy(), np.concatenate([[0], np.cumsum(counts)]))


def seen_items(events: pl.DataFrame, end: object, rule: Seen, num_users: int) -> UserItems:
    """What a rule leaves out of each user's lists."""
    if rule.policy == "allow":
        return UserItems(np.zeros(0, np.int64), np.zeros(num_users + 1, np.int64))
    counted = events.filter(pl.col("occurred_at") >= pl.lit(end) - rule.within)
    if rule.policy == "exclude_bought":
        counted = counted.filter(pl.col("event_type") == rule.bought)
    return user_items(counted.select("user", "item_code"), num_users)
