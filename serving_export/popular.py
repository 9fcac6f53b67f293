"""What to show to someone of whom nothing is known: the items that people act on these days."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
import polars as pl

from features.sequences import Integers
from pipeline.dates import ONE_DAY, day_end
from pipeline.days import passed_days
from pipeline.publish import Store
from pipeline.tables import events_table
from serving_export.assortment import Assortment, Mask
from serving_export.filling import POPULAR, Floats, Lists
from training.settings import TrainingSite

HALF_LIFE = timedelta(days=1)
LOOKBACK_DAYS = 7
EVERYONE = "all"
MOST_SEGMENTS = 100
"""Segments with most events have lists of their own; the others get those of everyone."""


def popular_items(site: TrainingSite, store: Store, last: date) -> pl.DataFrame:
    """segment, rank, item_id, score of the week that ends with `last`; an event a day old counts half.

    The segment `all` has every item; one like `device=phone` those that had events there.
    """
    days = passed_days(store, last - (LOOKBACK_DAYS - 1) * ONE_DAY, last)
    age = pl.lit(day_end(last, site.time_zone)).dt.cast_time_unit("us") - pl.col("occurred_at")
    weight = 0.5 ** (age.dt.total_microseconds() / (HALF_LIFE / timedelta(microseconds=1)))
    segment = segment_of(site.export.segment_by)
    by_segment = (
        store.scan(events_table(site.source.context))
        .filter(pl.col("event_date").is_in(days))
        .group_by("item_id", segment=segment)
        .agg(score=weight.sum())
        .collect()
    )
    everyone = (
        by_segment.group_by("item_id")
        .agg(pl.col("score").sum())
        .select(pl.lit(EVERYONE).alias("segment"), "item_id", "score")
    )
    biggest = by_segment.drop_nulls("segment").group_by("segment").agg(pl.col("score").sum())
    kept = biggest.sort("score", "segment", descending=[True, False]).head(MOST_SEGMENTS)
    own = by_segment.join(kept, on="segment", how="semi").select("segment", "item_id", "score")
    ordered = pl.concat([everyone, own]).with_columns(pl.col("score").round(9))
    ordered = ordered.sort("segment", "score", "item_id", descending=[False, True, False])
    rank = pl.int_range(1, pl.len() + 1, dtype=pl.Int64).over("segment")
    return ordered.select("segment", "item_id", "score", rank=rank)


def segment_of(column: str | None) -> pl.Expr:
    """The segment of an event; null where there is none."""
    if column is None:
        return pl.lit(None, pl.String)
    return pl.concat_str(pl.lit(f"{column}="), pl.col(column))


@dataclass(frozen=True)
class Popular:
    """What a channel may show of the popular items: codes and scores by segment, best first."""

    segments: Mapping[str, tuple[Integers, Floats]]
    """Everyone's end with the items that nobody had in the week, with score 0: for who has seen all others."""

    def fill(self, lists: Lists, segment_U: pl.Series) -> None:
        """Fill the places that are left: from the user's segment, and behind that from everyone's."""
        short = lists.short()
        if not len(short):
            return
        segments = segment_U.gather(short)
        is_own = segments.is_in([name for name in self.segments if name != EVERYONE]).fill_null(value=False).to_numpy()
        for name in segments.filter(pl.Series(is_own)).unique().sort():
            users = short[(segments == name).fill_null(value=False).to_numpy()]
            lists.add_alike(users, *self.segments[name], POPULAR)
            lists.add_alike(users[lists.lengths_U[users] < lists.rules.top_n], *self.behind(), POPULAR)
        lists.add_alike(short[~is_own], *self.segments[EVERYONE], POPULAR)

    def behind(self) -> tuple[Integers, Floats]:
        """Everyone's items with scores below 0, so that scores fall behind those of a segment."""
        codes, scores = self.segments[EVERYONE]
        return codes, scores / (1 + scores.max(initial=0)) - 1

    def rows(self, assortment: Assortment, channel: str, n: int) -> pl.DataFrame:
        """Rows of `popular_items`: the best `n` of each segment."""
        parts = []
        for name in sorted(self.segments):
            codes, scores = self.segments[name]
            codes, scores = codes[scores > 0], scores[scores > 0]
            if name != EVERYONE:
                more, below = self.behind()
                is_new = ~np.isin(more, codes) & (below > -1)
                codes, scores = np.concatenate([codes, more[is_new]]), np.concatenate([scores, below[is_new]])
            told = {"item_id": assortment.item_ids.gather(codes[:n]), "score": scores[:n]}
            parts.append(pl.DataFrame(told).with_columns(segment=pl.lit(name)))
        ranked = pl.concat(parts).with_columns(rank=pl.int_range(1, pl.len() + 1, dtype=pl.Int64).over("segment"))
        return ranked.with_columns(channel=pl.lit(channel))


def allowed_popular(popular: pl.DataFrame, assortment: Assortment, allowed_A: Mask) -> Popular:
    """The popular items that a channel's rules allow."""
    coded = assortment.encode(popular)
    kept = coded.filter(pl.Series(allowed_A[coded["item_code"].to_numpy()]))
    found = {
        str(name): (rows["item_code"].to_numpy(), rows["score"].to_numpy())
        for (name,), rows in kept.group_by("segment", maintain_order=True)
    }
    nothing = (np.zeros(0, np.int64), np.zeros(0))
    popular_codes, scores = found.get(EVERYONE, nothing)
    rest = np.setdiff1d(np.flatnonzero(allowed_A), popular_codes)
    everyone = (np.concatenate([popular_codes, rest]), np.concatenate([scores, np.zeros(len(rest))]))
    return Popular(found | {EVERYONE: everyone})
