"""Which items go with an item: what people went on to in the window, and behind it what is near in the item vectors.

The first are sequential rules (training/baselines/sequential_rules.py), of all items of the window; the second, for
items that the model knows, cosines of its item vectors.
"""

from dataclasses import dataclass
from datetime import date

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.sequences import Integers, Sequences, encode_sessions
from features.vocabulary import Vocabulary
from features.window import sessions_until
from pipeline.dates import ONE_DAY, day_end
from pipeline.days import passed_days
from pipeline.publish import Store
from serving_export.assortment import NO_CATEGORY, Assortment, Mask
from serving_export.filling import MODEL, RULE, SOURCES, ChannelRules, Floats, Lists, UserItems
from serving_export.item_index import choose_index
from serving_export.scoring import Vectors
from training.baselines.sequential_rules import SequentialRules
from training.recipes import SequentialRulesRecipe
from training.settings import TrainingSite

ITEMS_AT_ONCE = 8192
NUM_QUERIES = 1000


@dataclass(frozen=True)
class Related:
    """Related items by item code: M of each item, 0 where there are fewer."""

    codes_AM: NDArray[np.int32]
    scores_AM: Floats
    sources_AM: NDArray[np.uint8]

    def rows(self, assortment: Assortment) -> pl.DataFrame:
        """Rows of `related_items`."""
        code, place = np.nonzero(self.codes_AM)
        order = np.argsort(assortment.item_ids.rank("ordinal").fill_null(0).to_numpy()[code], kind="stable")
        code, place = code[order], place[order]
        return pl.DataFrame(
            {
                "item_id": assortment.item_ids.gather(code),
                "rank": place + 1,
                "related_item_id": assortment.item_ids.gather(self.codes_AM[code, place].astype(np.int64)),
                "score": self.scores_AM[code, place],
                "source": pl.Series(SOURCES, dtype=pl.String).gather(self.sources_AM[code, place].astype(np.int64)),
            }
        )


def read_related(rows: pl.DataFrame, assortment: Assortment) -> Related:
    """Rows of `related_items` by the codes of an assortment; what it does not have is left out."""
    coded = assortment.encode(rows).rename({"item_code": "code"}).drop("item_id")
    coded = assortment.encode(coded.rename({"related_item_id": "item_id"})).filter(pl.col("code") > 0)
    shape = (assortment.size, int(rows["rank"].max() or 0))  # type: ignore[arg-type]
    codes_AM, scores_AM = np.zeros(shape, np.int32), np.zeros(shape)
    sources_AM = np.zeros(shape, np.uint8)
    at = (coded["code"].to_numpy(), coded["rank"].to_numpy() - 1)
    codes_AM[at], scores_AM[at] = coded["item_code"].to_numpy(), coded["score"].to_numpy()
    sources_AM[at] = coded["source"].replace_strict(list(SOURCES), range(len(SOURCES))).to_numpy()
    return Related(codes_AM, scores_AM, sources_AM)


def relate(
    site: TrainingSite, store: Store, day: date, assortment: Assortment, vectors_ID: Vectors | None
) -> Related | None:
    """The related items of every item, by what was known at the end of `day`; None if the site wants none."""
    rules = site.export.related
    if rules is None:
        return None
    allowed_A = assortment.allowed(rules)
    no_category = np.full(assortment.size, NO_CATEGORY)
    channel = ChannelRules("related", rules.top_n, allowed_A, no_category, None)
    follow_AK, weight_AK = best_followers(
        window_sequences(site, store, day, assortment), allowed_A, rules.top_n, end_of(site, day)
    )
    near = NearItems(site, vectors_ID, allowed_A, rules.top_n) if vectors_ID is not None else None
    parts = []
    for start in range(0, assortment.size, ITEMS_AT_ONCE):
        codes_R = np.arange(start, min(start + ITEMS_AT_ONCE, assortment.size))
        lists = Lists(channel, UserItems(codes_R, np.arange(len(codes_R) + 1)))
        lists.add(np.arange(len(codes_R)), follow_AK[codes_R], weight_AK[codes_R], RULE)
        if near is not None:
            known = np.flatnonzero((codes_R > 0) & (codes_R < len(near.vectors_ID)))
            if len(known):
                lists.add(known, *near.of(codes_R[known]), MODEL)
        parts.append((lists.codes_UN, lists.scores_UN, lists.sources_UN))
    return Related(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def end_of(site: TrainingSite, day: date) -> int:
    """The end of a day in microseconds since 1970."""
    return int(day_end(day, site.time_zone).timestamp() * 1e6)


def window_sequences(site: TrainingSite, store: Store, day: date, assortment: Assortment) -> Sequences:
    """The sessions of the window that ends with `day`, over all items."""
    days = passed_days(store, day - (site.window.length // ONE_DAY - 1) * ONE_DAY, day)
    items = Vocabulary(assortment.codes.with_columns(num_events=pl.lit(0, pl.Int64)))
    return encode_sessions(sessions_until(site, store, days, day), items)


def best_followers(sequences: Sequences, allowed_A: Mask, n: int, as_of: int) -> tuple[Integers, Floats]:
    """(A, n) of each item the allowed items that followed most, and how much; 0 behind them."""
    size = len(allowed_A)
    counted = SequentialRules(size, SequentialRulesRecipe())
    counted.fit(sequences, as_of)
    table = counted.table.matrix(size).tocoo()
    is_kept = allowed_A[table.col] & (table.row != table.col) & (table.data > 0)
    row, column, weight = table.row[is_kept], table.col[is_kept], table.data[is_kept]
    order = np.lexsort((column, -weight, row))
    row, column, weight = row[order], column[order], weight[order]
    starts = np.searchsorted(row, np.arange(size))
    place = np.arange(len(row)) - starts[row]
    is_best = place < n
    codes_AN, weights_AN = np.zeros((size, n), np.int64), np.zeros((size, n))
    codes_AN[row[is_best], place[is_best]] = column[is_best]
    weights_AN[row[is_best], place[is_best]] = weight[is_best]
    return codes_AN, weights_AN


class NearItems:
    """Allowed items by cosine."""

    def __init__(self, site: TrainingSite, vectors_ID: Vectors, allowed_A: Mask, n: int) -> None:
        length_I = np.linalg.norm(vectors_ID, axis=1, keepdims=True)
        self.vectors_ID = vectors_ID / np.maximum(length_I, np.finfo(np.float32).tiny)
        self.depth = 2 * n + 1  # the item itself, and what follows it
        codes = np.flatnonzero(allowed_A[: len(vectors_ID)])
        queries = self.vectors_ID[1:][:: max(1, len(vectors_ID) // NUM_QUERIES)]
        export = site.export
        self.index = (
            choose_index(self.vectors_ID, codes, export.index, export.index_recall, queries, n) if len(codes) else None
        )

    def of(self, codes_R: Integers) -> tuple[Integers, Vectors]:
        """(R, depth) the nearest of each item."""
        if self.index is None:
            return np.zeros((len(codes_R), 0), np.int64), np.zeros((len(codes_R), 0), np.float32)
        return self.index.search(self.vectors_ID[codes_R], self.depth)
