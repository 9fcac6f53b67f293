"""Items of the catalogue that came lately: those that a model may not have learnt yet."""

from datetime import date

import polars as pl

from features.histories import first_day
from features.settings import FeaturesSite
from pipeline.catalogue import latest_items
from pipeline.dates import ONE_DAY
from pipeline.durations import Duration
from pipeline.publish import Store


def new_items(site: FeaturesSite, store: Store, last: date, within: Duration) -> pl.DataFrame:
    """Rows of `items` at the end of `last` of what came `within` before it and is not known to be unavailable.

    An item comes when a log first sees it; one that no log has seen, when a catalogue first lists it. What was there
    when the log began, or in the first catalogue, has been there for nobody knows how long, and is not new.
    """
    first = first_day(site, last, within)
    catalogue, before = latest_items(store, last), latest_items(store, first - ONE_DAY)
    seen = pl.col("first_seen")
    is_new = (seen >= first) & (seen > seen.min())
    if before.height:
        is_new |= seen.is_null() & ~pl.col("item_id").is_in(before["item_id"].implode())
    return catalogue.filter(is_new.fill_null(False) & pl.col("available").fill_null(True)).sort("item_id")
