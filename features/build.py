"""Sessions of the window become a vocabulary and training sequences.

Reads   `sessions` of the passed days of the window that ends with the day before
Writes  `vocabulary`, `sequences`: the partition of the night
"""

from datetime import date
from typing import Any

import polars as pl

from features.settings import FeaturesSite
from features.tables import SEQUENCES, VOCABULARY
from features.vocabulary import Vocabulary, learn_vocabulary
from features.window import data_digest, sessions_until, window_days
from pipeline.dates import ONE_DAY
from pipeline.errors import ConfigurationError, ContractError
from pipeline.forgotten import check_nobody_forgotten
from pipeline.publish import Store
from pipeline.tables import Table
from pipeline.terminal import log


def build_features(site: FeaturesSite, store: Store, night: date) -> dict[str, Any]:
    """Learn the night's vocabulary and write the training sequences; return their counts and digest."""
    store = store.pinned()
    days = window_days(site, store, night - ONE_DAY)
    sessions = sessions_until(site, store, days, night - ONE_DAY)
    vocabulary = learn_vocabulary(sessions, site.window.min_item_count)
    sequences = training_rows(sessions, vocabulary, night)
    if sequences.filter(pl.col("item_codes").list.len() >= 2).is_empty():
        raise ContractError(
            f"{site.name}: no session of {days[0]} to {days[-1]} holds two items with at least "
            f"{site.window.min_item_count} events. Lower window.min_item_count or lengthen window.length"
        )
    metadata = {
        "night": night,
        "first_day": days[0],
        "last_day": days[-1],
        "data_digest": data_digest(store, days, site.window.min_item_count),
    }
    check_nobody_forgotten(store)
    store.replace(VOCABULARY, vocabulary.items.with_columns(night=pl.lit(night)), {"night": [night]}, metadata)
    store.replace(SEQUENCES, sequences, {"night": [night]}, metadata)
    log.info("window %s to %s: %d days, %d items", days[0], days[-1], len(days), vocabulary.items.height)
    return {
        "days": len(days),
        "items": vocabulary.items.height,
        "sequences": sequences.height,
        "data_digest": metadata["data_digest"],
    }


def training_rows(sessions: pl.DataFrame, vocabulary: Vocabulary, night: date) -> pl.DataFrame:
    """Sessions as rows of `sequences`: known items only, at least one of them; with just one, a session is history."""
    lists = ("item_ids", "offsets_seconds")
    events = (
        sessions.select("session_id", "visitor", "started_at", *lists).explode(lists).rename({"item_ids": "item_id"})
    )
    coded = vocabulary.encode(events).filter(pl.col("item_code") > 0)
    rows = coded.group_by("session_id", "visitor", "started_at", maintain_order=True).agg(
        "offsets_seconds", item_codes="item_code"
    )
    return rows.with_columns(night=pl.lit(night))


def read_vocabulary(store: Store, night: date) -> Vocabulary:
    """The vocabulary of a night; raises ConfigurationError if its features were not built."""
    items = store.scan(VOCABULARY).filter(pl.col("night") == night).drop("night").sort("item_code").collect()
    if items.is_empty():
        raise ConfigurationError(f"no features for {night} in {store.root}. Run `nightjar features` for that day first")
    return Vocabulary(items)


def check_features(site: FeaturesSite, store: Store, night: date) -> str:
    """The digest of the data that the night's features were built from.

    Raises ConfigurationError if there are none, or if the days of the window have changed since.
    """
    read_vocabulary(store, night)
    present = data_digest(store, window_days(site, store, night - ONE_DAY), site.window.min_item_count)
    if any(digest_of(store, table, night) != present for table in (VOCABULARY, SEQUENCES)):
        raise ConfigurationError(
            f"{site.name}: the features for {night} were built from other data than its window holds now. "
            "Run `nightjar features` for that day again"
        )
    return present


def digest_of(store: Store, table: Table, night: date) -> str | None:
    """What the newest commit of a night's partition says it was built from; None where the log has none."""
    commits = store.commits(table)
    return next((commit.get("data_digest") for commit in commits if commit.get("night") == str(night)), None)


def read_training_rows(store: Store, night: date) -> pl.DataFrame:
    """The training sequences of a night, in order of start."""
    return store.scan(SEQUENCES).filter(pl.col("night") == night).sort("started_at", "session_id").collect()
