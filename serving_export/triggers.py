"""Occasions to write to a user: an item left in the cart, an item that was looked at again."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import polars as pl

from serving_export.assortment import Mask
from training.export_settings import AbandonedCart, Triggers, ViewedAgain


def find_triggers(events: pl.DataFrame, rules: Triggers, allowed_A: Mask, end: datetime) -> pl.DataFrame:
    """user_id, trigger, rank, item_id, occurred_at, num_events; of events up to `end` with user_id and item_code."""
    recent = events.filter(pl.col("occurred_at") >= pl.lit(end) - rules.within)
    recent = recent.filter(pl.Series(allowed_A[recent["item_code"].to_numpy()], dtype=pl.Boolean))
    parts = [
        FINDERS[name](recent, getattr(rules, name), end).select(
            "user_id", "item_id", "occurred_at", "num_events", trigger=pl.lit(name)
        )
        for name in rules.names()
    ]
    found = pl.concat(parts).sort(
        "user_id", "trigger", "occurred_at", "item_id", descending=[False, False, True, False]
    )
    rank = pl.int_range(1, pl.len() + 1, dtype=pl.Int64).over("user_id", "trigger")
    return found.with_columns(rank=rank).filter(pl.col("rank") <= rules.top_n)


def abandoned_cart(events: pl.DataFrame, rule: AbandonedCart, end: datetime) -> pl.DataFrame:
    """Items put into the cart, the last time longer ago than `after`, and not bought since."""
    carts = by_item(events.filter(pl.col("event_type") == rule.cart))
    left = carts.filter(pl.col("occurred_at") <= pl.lit(end) - rule.after)
    return without_bought(left, events, rule.purchase, since="occurred_at")


def viewed_again(events: pl.DataFrame, rule: ViewedAgain, end: datetime) -> pl.DataFrame:
    """Items viewed on several days, and not bought since the first of these."""
    views = by_item(events.filter(pl.col("event_type") == rule.view))
    return without_bought(views.filter(pl.col("num_days") >= rule.times), events, rule.purchase, since="first_at")


def by_item(events: pl.DataFrame) -> pl.DataFrame:
    """One row a user and item: when first and last, how often, on how many days."""
    return events.group_by("user_id", "item_id").agg(
        first_at=pl.col("occurred_at").min(),
        occurred_at=pl.col("occurred_at").max(),
        num_events=pl.len().cast(pl.Int64),
        num_days=pl.col("event_date").n_unique(),
    )


def without_bought(found: pl.DataFrame, events: pl.DataFrame, purchase: str, since: str) -> pl.DataFrame:
    """Items that the user did not buy at or after the time in the column `since`."""
    bought = events.filter(pl.col("event_type") == purchase).group_by("user_id", "item_id")
    last = bought.agg(bought_at=pl.col("occurred_at").max())
    joined = found.join(last, on=["user_id", "item_id"], how="left")
    return joined.filter(pl.col("bought_at").is_null() | (pl.col("bought_at") < pl.col(since)))


FINDERS: dict[str, Callable[[pl.DataFrame, Any, datetime], pl.DataFrame]] = {
    "abandoned_cart": abandoned_cart,
    "viewed_again": viewed_again,
}
