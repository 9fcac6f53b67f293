"""All items that a list can name, under one numbering: the model's items with the model's codes, all others behind."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.sequences import Integers
from features.vocabulary import Vocabulary
from pipeline.terminal import log
from serving_export.item_rules import may_stand
from training.export_settings import ItemRules

NO_CATEGORY = -1
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Assortment:
    """Items by code. Code 0 is no item."""

    items: pl.DataFrame
    """Columns of `items`, row = code; `snapshot_date` is null for an item that the catalogue does not have."""
    num_known: int
    """Codes below this one are the model's."""
    num_cold: int = 0
    """How many of these, the last ones, it has not learnt."""

    @property
    def size(self) -> int:
        """Number of codes."""
        return self.items.height

    @property
    def item_ids(self) -> pl.Series:
        """item_id by code."""
        return self.items["item_id"]

    def is_cold(self, codes: NDArray[np.integer]) -> Mask:
        """Which codes are of items that the model offers without having learnt them."""
        found: Mask = (codes >= self.num_known - self.num_cold) & (codes < self.num_known)
        return found

    @cached_property
    def categories(self) -> Integers:
        """A number for each item's category, by code; NO_CATEGORY where it has none."""
        category = self.items["category"]
        numbers = category.rank("dense").cast(pl.Int64) - 1
        found: Integers = numbers.fill_null(NO_CATEGORY).to_numpy()
        return found

    @cached_property
    def codes(self) -> pl.DataFrame:
        """item_id, item_code of every item."""
        return self.items.select("item_id", item_code=pl.int_range(pl.len(), dtype=pl.Int64)).slice(1)

    def encode(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Add `item_code` to rows with an `item_id`; 0 for an item of which nothing is known. Keeps the order."""
        coded = rows.join(self.codes, on="item_id", how="left", maintain_order="left")
        return coded.with_columns(pl.col("item_code").fill_null(0))

    def allowed(self, rules: ItemRules) -> Mask:
        """Which codes may stand in a list under these rules: of items of the catalogue only."""
        found: Mask = self.items.select(may_stand(rules) & pl.col("snapshot_date").is_not_null()).to_series().to_numpy()
        return found


def make_assortment(vocabulary: Vocabulary | None, catalogue: pl.DataFrame) -> Assortment:
    """The items of a model (where there is one), then the other ones of `items`.

    An item that stands twice in the catalogue counts once, as its last row says; one that the model knows and the
    catalogue does not may stand in no list.
    """
    catalogue = once_each(catalogue)
    known = pl.Series("item_id", [None], dtype=pl.String)
    if vocabulary is not None:
        known = vocabulary.item_ids().rename("item_id")
    behind = catalogue["item_id"].filter(~catalogue["item_id"].is_in(known.drop_nulls().implode()))
    ids = pl.concat([known, behind]).to_frame()
    items = ids.join(catalogue, on="item_id", how="left", maintain_order="left")
    return Assortment(items, len(known), 0 if vocabulary is None else vocabulary.num_cold)


def once_each(catalogue: pl.DataFrame) -> pl.DataFrame:
    """The last row of each item."""
    single = catalogue.unique("item_id", keep="last", maintain_order=True)
    if single.height < catalogue.height:
        log.warning(
            "`items` holds %d rows for %d items; of an item that stands twice the last row counts. Mend the side "
            "table and run ingest for its day",
            catalogue.height,
            single.height,
        )
    return single
