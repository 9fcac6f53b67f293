"""Measure a bundle on a day: all three protocols, on what the store holds of it."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from typing import NamedTuple

import polars as pl

from features.histories import active_events, last_events, listed_user, seen_items
from features.window import earlier_sessions, held_out_sessions
from pipeline.dates import ONE_DAY
from pipeline.days import passed_days
from pipeline.publish import Store
from pipeline.tables import events_table
from training.bundle import Bundle
from training.evaluation import evaluate_lists, evaluate_next
from training.intent_quality import intent_quality
from training.outcomes import Outcomes, merge
from training.recipes import MOST_SESSIONS
from training.settings import TrainingSite


class HeldOutDay(NamedTuple):
    """What models are tested on: the sessions of a day, and what its users had done by the evening before."""

    day: date
    sessions: pl.DataFrame
    earlier: pl.DataFrame
    """Sessions of the same visitors in the window before the day."""
    histories: pl.DataFrame
    """Last events before the day of every user who is there on the day."""
    seen: pl.DataFrame
    """What their lists must leave out: user_id, item_id."""
    truths: pl.DataFrame
    """Distinct items of each user on the day: user_id, item_id."""


def read_held_out_day(site: TrainingSite, store: Store, day: date) -> HeldOutDay:
    """A day to test on."""
    parts = [list_inputs(site, store, day, bucket) for bucket in range(site.buckets)]
    sessions = held_out_sessions(site, store, day)
    earlier = earlier_sessions(site, store, sessions, day, MOST_SESSIONS)
    return HeldOutDay(day, sessions, earlier, *map(pl.concat, zip(*parts, strict=True)))


def measure_bundle(bundle: Bundle, held_out: HeldOutDay, ks: Sequence[int]) -> Outcomes:
    """Outcomes of a bundle that has seen nothing of the day, in all three protocols."""
    if bundle.data_through >= held_out.day:
        raise ValueError(f"a model that has seen {bundle.data_through} cannot be tested on {held_out.day}")
    lists = evaluate_lists(bundle, held_out.histories, held_out.seen, held_out.truths, ks)
    outcomes = merge([evaluate_next(bundle, held_out.sessions, ks, held_out.earlier), lists])
    intents = intent_quality(bundle, held_out.sessions, held_out.earlier, max(ks))
    return replace(outcomes, whole=dict(outcomes.whole) | intents)


def list_inputs(
    site: TrainingSite, store: Store, day: date, bucket: int
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Histories and seen items of a bucket's users before `day`, and what they did on it."""
    rules = site.export
    before = active_events(site, store, day - ONE_DAY, rules.active_within, bucket)
    truths = user_items(site, store, day, bucket)
    present = before.join(truths.lazy(), on="user_id", how="semi")
    histories = last_events(present, rules.input.last_events, site.sessions.gap, site.source.context)
    return histories, seen_before(site, store, day - ONE_DAY, bucket, histories), truths


def seen_before(site: TrainingSite, store: Store, last: date, bucket: int, histories: pl.DataFrame) -> pl.DataFrame:
    """What lists of the evening of `last` must leave out: user_id, item_id; no rows if the site allows seen items."""
    rule = site.export.seen
    if rule.policy == "allow":
        return pl.DataFrame(schema={"user_id": pl.String, "item_id": pl.String})
    events = active_events(site, store, last, rule.within, bucket)
    if rule.policy == "exclude_bought":
        events = events.filter(pl.col("event_type") == rule.bought)
    return seen_items(events.join(histories.lazy(), on="user_id", how="semi"), last, rule.within, site)


def user_items(site: TrainingSite, store: Store, day: date, bucket: int) -> pl.DataFrame:
    """Distinct items of each user on a day."""
    events = store.scan(events_table(site.source.context)).filter(
        pl.col("event_date").is_in(passed_days(store, day, day)), pl.col("user_bucket") == bucket
    )
    return (
        events.select(listed_user(site).alias("user_id"), "item_id")
        .drop_nulls("user_id")
        .unique()
        .sort("user_id")
        .collect()
    )
