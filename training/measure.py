"""Measure a bundle on a day: all three protocols, on what the store holds of it."""

from datetime import date

import polars as pl

from features.histories import active_events, last_events, listed_user, seen_items
from features.window import held_out_sessions
from pipeline.dates import ONE_DAY
from pipeline.days import passed_days
from pipeline.publish import Store
from pipeline.tables import events_table
from training.bundle import Bundle
from training.evaluation import evaluate_lists, evaluate_next
from training.order import ShuffleTest, shuffle_test
from training.outcomes import Outcomes, merge
from training.settings import TrainingSite


def measure_bundle(site: TrainingSite, store: Store, bundle: Bundle, day: date) -> Outcomes:
    """Outcomes of a bundle that has seen nothing of `day`."""
    if bundle.data_through >= day:
        raise ValueError(f"a model that has seen {bundle.data_through} cannot be tested on {day}")
    sessions = held_out_sessions(site, store, day)
    return merge([evaluate_next(bundle, sessions, site.training.metric_ks), measure_lists(site, store, bundle, day)])


def measure_order(site: TrainingSite, store: Store, bundle: Bundle, day: date) -> ShuffleTest:
    """Whether the order of events tells this bundle anything on `day`."""
    return shuffle_test(bundle, held_out_sessions(site, store, day), max(site.training.metric_ks))


def measure_lists(site: TrainingSite, store: Store, bundle: Bundle, day: date) -> Outcomes:
    """Outcomes of the lists that this bundle would have published the evening before `day`."""
    parts = [list_inputs(site, store, day, bucket) for bucket in range(site.buckets)]
    histories, seen, truths = (pl.concat(frames) for frames in zip(*parts, strict=True))
    return evaluate_lists(bundle, histories, seen, truths, site.training.metric_ks)


def list_inputs(
    site: TrainingSite, store: Store, day: date, bucket: int
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Histories and seen items of a bucket's users before `day`, and what they did on it."""
    rules = site.export
    before = active_events(site, store, day - ONE_DAY, rules.active_within, bucket)
    truths = user_items(site, store, day, bucket)
    histories = last_events(before.join(truths.lazy(), on="user_id", how="semi"), rules.input.last_events)
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
