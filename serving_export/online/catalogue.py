"""Items by code and by what they are called."""

from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from serving_export.loaded import Loaded


class Catalogue:
    """Items by code and by what they are called."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded

    @cached_property
    def told(self) -> list[dict[str, Any]]:
        """What an answer says of each item, by code."""
        return self.loaded.assortment.items.select("item_id", "title", "category", "price").to_dicts()

    @cached_property
    def searched(self) -> pl.DataFrame:
        """item_id and title in small letters, by code."""
        lower = self.loaded.assortment.items.select(pl.col("item_id", "title").str.to_lowercase())
        return lower.with_columns(pl.col("title").fill_null(""))

    def item(self, item_id: str) -> dict[str, Any]:
        """What is known of an item; its id alone where that is nothing."""
        code = self.loaded.codes.get(item_id)
        return {"item_id": item_id} if code is None else self.told[code]

    def describe(self, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Items with what is known of each."""
        return [item | self.item(item["item_id"]) for item in items]

    def search(self, query: str, limit: int) -> list[dict[str, Any]]:
        """Items whose id, or whose title, holds every word: titles that begin with it first, then as the model knows
        them, which is the most frequent ones first."""
        words = query.lower().split()
        title, item_id = pl.col("title"), pl.col("item_id")
        holds = [title.str.contains(word, literal=True) | item_id.str.contains(word, literal=True) for word in words]
        begins = title.str.starts_with(query.lower().strip()) | (item_id == query.lower().strip())
        found = self.searched.select(
            is_found=pl.all_horizontal(pl.lit(True), item_id.is_not_null(), *holds), first=begins
        )
        codes = np.flatnonzero(found["is_found"].fill_null(value=False).to_numpy())
        is_first = found["first"].fill_null(value=False).to_numpy()[codes]
        return [self.told[code] for code in codes[np.argsort(~is_first, kind="stable")][:limit]]
