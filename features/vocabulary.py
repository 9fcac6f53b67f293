"""item_id <-> item_code. Code 0 is padding and stands for no item; codes of items run from 1 without holes."""

import hashlib
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.intents import MISSING, Definitions
from pipeline.ids import content_digest, stable_id

PADDING = 0


@dataclass(frozen=True)
class Vocabulary:
    """The items that a model knows."""

    items: pl.DataFrame
    """item_code (1..I), item_id, num_events; sorted by item_code. With definitions also what they describe of items."""
    definitions: Definitions | None = None
    """What is read of an event beside its item; None: nothing, as most models read items only."""
    num_cold: int = 0
    """How many of the items, the last ones, are offered without having been learnt (training/cold_items.py)."""

    @property
    def num_codes(self) -> int:
        """Items and the padding code: the number of rows of an item table."""
        return self.items.height + 1

    @property
    def num_learnt(self) -> int:
        """Codes below this one are of items that the model has learnt, or padding."""
        return self.num_codes - self.num_cold

    def item_ids(self) -> pl.Series:
        """item_id by item_code; null for padding."""
        return pl.concat([pl.Series([None], dtype=pl.String), self.items["item_id"]])

    def encode(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Add `item_code` to rows with an `item_id`; 0 for an unknown item. Keeps the order of rows."""
        codes = self.items.select("item_id", "item_code")
        return rows.join(codes, on="item_id", how="left", maintain_order="left").with_columns(
            pl.col("item_code").fill_null(PADDING)
        )

    def describe(self, definitions: Definitions, catalogue: pl.DataFrame) -> "Vocabulary":
        """The same codes, with what `definitions` say of events and the catalogue (rows of `items`) of items."""
        items = self.items.select("item_code", "item_id", "num_events")
        told = definitions.describe(items["item_id"], catalogue)
        return Vocabulary(pl.concat([items, told], how="horizontal"), definitions)

    def described(self) -> dict[str, NDArray[np.int64]]:
        """(I) by item_code: what is described of items; nothing without definitions."""
        columns = self.items.drop("item_code", "item_id", "num_events").iter_columns()
        return {column.name: np.concatenate([[MISSING], column.to_numpy()]) for column in columns}

    def digest(self) -> str:
        """Equal for vocabularies that give the same codes."""
        of_items = str(self.items.select(content_digest(stable_id(pl.col("item_code"), pl.col("item_id")))).item())
        if self.definitions is None:
            return of_items
        return hashlib.sha256(f"{of_items}{self.definitions.text()}".encode()).hexdigest()[:32]


def learn_vocabulary(sessions: pl.DataFrame, min_item_count: int) -> Vocabulary:
    """Items with at least `min_item_count` events in the sessions; the most frequent has code 1."""
    counts = count_items(sessions).filter(pl.col("num_events") >= min_item_count)
    return Vocabulary(number_from(counts, 1))


def extend_vocabulary(known: Vocabulary, sessions: pl.DataFrame, min_item_count: int) -> Vocabulary:
    """The same codes for known items, new codes behind them for items that have become frequent enough.

    What was described of items falls away: `describe` them anew.
    """
    counts = count_items(sessions)
    new = counts.filter(pl.col("num_events") >= min_item_count).join(known.items, on="item_id", how="anti")
    kept = known.items.drop("num_events").join(counts, on="item_id", how="left", maintain_order="left")
    added = number_from(new, known.num_codes)
    return Vocabulary(pl.concat([kept.with_columns(pl.col("num_events").fill_null(0)).select(added.columns), added]))


def count_items(sessions: pl.DataFrame) -> pl.DataFrame:
    """Events by item."""
    return (
        sessions.select(item_id=pl.col("item_ids").explode())
        .drop_nulls()
        .group_by("item_id")
        .agg(num_events=pl.len().cast(pl.Int64))
    )


def number_from(counts: pl.DataFrame, first: int) -> pl.DataFrame:
    """Codes in order of frequency, then of item_id."""
    ordered = counts.sort("num_events", "item_id", descending=[True, False])
    return ordered.select(
        pl.int_range(first, first + pl.len(), dtype=pl.Int64).alias("item_code"), "item_id", "num_events"
    )
