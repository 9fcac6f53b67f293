"""What to show to someone of whom nothing is known: the items that people act on these days."""

from datetime import date, timedelta

import polars as pl

from pipeline.dates import ONE_DAY, day_end
from pipeline.days import passed_days
from pipeline.publish import Store
from pipeline.tables import events_table
from training.settings import TrainingSite

HALF_LIFE = timedelta(days=1)
LOOKBACK_DAYS = 7
EVERYONE = "all"


def popular_items(site: TrainingSite, store: Store, last: date) -> pl.DataFrame:
    """All items of the week that ends with `last`, the most popular first; an event a day old counts half."""
    days = passed_days(store, last - (LOOKBACK_DAYS - 1) * ONE_DAY, last)
    age = pl.lit(day_end(last, site.time_zone)).dt.cast_time_unit("us") - pl.col("occurred_at")
    weight = 0.5 ** (age.dt.total_microseconds() / (HALF_LIFE / timedelta(microseconds=1)))
    return (
        store.scan(events_table(site.source.context))
        .filter(pl.col("event_date").is_in(days))
        .group_by("item_id")
        .agg(score=weight.sum().round(9))
        .sort("score", "item_id", descending=[True, False])
        .with_columns(segment=pl.lit(EVERYONE), rank=pl.int_range(1, pl.len() + 1, dtype=pl.Int64))
        .collect()
    )
