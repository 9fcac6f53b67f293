"""Lists under way: places that are filled from rankings, one after the other, by the rules of their channel.

Shapes: U users of a slab · R of these at a time · N places of a list · K ranked items · A item codes (0 is no item).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.sequences import Integers
from serving_export.assortment import NO_CATEGORY, Mask

Floats = NDArray[np.float64]
MARKS_AT_ONCE = 2**26  # one byte for each user and item: what may not be listed any more
NONE, RULE, MODEL, POPULAR = range(4)
NOTHING = -1
SOURCES = ("", "rule", "model", "popular")
COLD = "cold"
"""What the source is called where the model has not learnt the item (training/cold_items.py)."""


@dataclass(frozen=True)
class UserItems:
    """Some items of each user: codes laid end to end."""

    codes: Integers
    offsets: Integers
    """(U + 1) where each user's begin."""

    @property
    def counts(self) -> Integers:
        """(U) items of each user."""
        return np.diff(self.offsets)

    def of(self, users_R: Integers) -> tuple[Integers, Integers]:
        """For some users: place among these (of R), and item code."""
        counts = self.counts[users_R]
        ends = np.cumsum(counts)
        entries = np.repeat(self.offsets[users_R] - (ends - counts), counts) + np.arange(ends[-1] if len(ends) else 0)
        return np.repeat(np.arange(len(users_R)), counts), self.codes[entries]

    def slab(self, start: int, stop: int) -> "UserItems":
        """The same of neighbouring users."""
        offsets = self.offsets[start : stop + 1]
        return UserItems(self.codes[offsets[0] : offsets[-1]], offsets - offsets[0])


def user_items(pairs: pl.DataFrame, num_users: int) -> UserItems:
    """Distinct pairs of `user` (its number) and `item_code`; pairs without a known item are left out."""
    distinct = pairs.filter(pl.col("item_code") > 0).unique().sort("user")
    counts = np.bincount(distinct["user"].to_numpy(), minlength=num_users)
    return UserItems(distinct["item_code"].to_numpy(), np.concatenate([[0], np.cumsum(counts)]))


@dataclass(frozen=True)
class ChannelRules:
    """What a channel's lists are, over the codes of an assortment."""

    name: str
    top_n: int
    allowed_A: Mask
    categories_A: Integers
    max_per_category: int | None


@dataclass
class Lists:
    """The lists of a channel for U users, filled from the front."""

    rules: ChannelRules
    seen: UserItems
    codes_UN: NDArray[np.int32] = field(init=False)
    scores_UN: Floats = field(init=False)
    sources_UN: NDArray[np.uint8] = field(init=False)
    because_UN: NDArray[np.int32] = field(init=False)
    """The code of the item that led to an item; 0: nobody has looked; NOTHING: no item of the user did."""
    lengths_U: Integers = field(init=False)

    def __post_init__(self) -> None:
        shape = (len(self.seen.counts), self.rules.top_n)
        self.codes_UN = np.zeros(shape, np.int32)
        self.scores_UN = np.zeros(shape)
        self.sources_UN = np.zeros(shape, np.uint8)
        self.because_UN = np.zeros(shape, np.int32)
        self.lengths_U = np.zeros(shape[0], np.int64)

    def short(self) -> Integers:
        """Users with places left."""
        return np.flatnonzero(self.lengths_U < self.rules.top_n)

    def clear(self, users_R: Integers, source: int) -> None:
        """Take back what came from a source, the last one that was added, for some users."""
        is_taken = self.sources_UN[users_R] == source
        for values_UN in (self.codes_UN, self.scores_UN, self.sources_UN, self.because_UN):
            part = values_UN[users_R]
            part[is_taken] = 0
            values_UN[users_R] = part
        self.lengths_U[users_R] -= is_taken.sum(1)

    def add(
        self,
        users_R: Integers,
        codes_RK: Integers,
        scores_RK: NDArray[np.floating],
        source: int,
        because_RK: Integers | None = None,
    ) -> None:
        """Fill places with ranked items, best first, without those seen, listed, or one too many of a category.

        Code 0 and scores that are no numbers stand for nothing. An item must not stand twice in a ranking.
        """
        at_once = max(1, MARKS_AT_ONCE // max(len(self.rules.allowed_A), 8 * codes_RK.shape[1]))
        marks = np.zeros((min(at_once, len(users_R)), len(self.rules.allowed_A)), bool)
        for start in range(0, len(users_R), at_once):
            part = slice(start, start + at_once)
            because = None if because_RK is None else because_RK[part]
            self.add_part(users_R[part], codes_RK[part], scores_RK[part], source, because, marks)

    def add_part(
        self,
        users_R: Integers,
        codes_RK: Integers,
        scores_RK: NDArray[np.floating],
        source: int,
        because_RK: Integers | None,
        marks: Mask,
    ) -> None:
        """The same for as many users as `marks` has rows; it is clean before and after."""
        width = marks.shape[1]
        flat = marks.reshape(-1)
        row_R1 = np.arange(len(users_R))[:, None]
        taken = np.concatenate(
            [places(*self.seen.of(users_R), width), (self.codes_UN[users_R] + row_R1 * width).reshape(-1)]
        )
        flat[taken] = True
        is_kept = ~flat[codes_RK + row_R1 * width] & np.isfinite(scores_RK) & (codes_RK > 0)
        flat[taken] = False
        if self.rules.max_per_category is not None:
            is_kept &= self.is_within_category(users_R, codes_RK, is_kept, self.rules.max_per_category)
        place_RK = self.lengths_U[users_R][:, None] + np.cumsum(is_kept, axis=1) - 1
        is_kept &= place_RK < self.rules.top_n
        row, rank = np.nonzero(is_kept)
        user, place = users_R[row], place_RK[row, rank]
        self.codes_UN[user, place] = codes_RK[row, rank]
        self.scores_UN[user, place] = scores_RK[row, rank]
        self.sources_UN[user, place] = source
        if because_RK is not None:
            self.because_UN[user, place] = because_RK[row, rank]
        self.lengths_U[users_R] += is_kept.sum(1)

    def is_within_category(self, users_R: Integers, codes_RK: Integers, is_kept: Mask, most: int) -> Mask:
        """Whether an item is among the first `most` of its category, counting those that are listed."""
        listed_RN = self.codes_UN[users_R]
        codes = np.concatenate([listed_RN, codes_RK], axis=1)
        counts = np.concatenate([listed_RN > 0, is_kept], axis=1)
        categories = np.where(counts, self.rules.categories_A[codes], NO_CATEGORY)
        order = np.argsort(categories, axis=1, kind="stable")
        in_order = np.take_along_axis(categories, order, axis=1)
        place = np.arange(codes.shape[1])[None, :]
        is_first = np.ones(codes.shape, bool)
        is_first[:, 1:] = in_order[:, 1:] != in_order[:, :-1]
        start = np.maximum.accumulate(np.where(is_first, place, 0), axis=1)
        nth = np.empty(codes.shape, np.int64)
        np.put_along_axis(nth, order, place - start, axis=1)
        is_within = (nth < most) | (categories == NO_CATEGORY)
        found: Mask = is_within[:, listed_RN.shape[1] :]
        return found

    def add_alike(self, users_R: Integers, codes_K: Integers, scores_K: Floats, source: int) -> None:
        """Fill places of all these users from one ranking, going down as deep as some of them need."""
        start, step = 0, 2 * self.rules.top_n + int(self.seen.counts[users_R].max(initial=0))
        while len(users_R) and start < len(codes_K):
            part, shape = slice(start, start + step), (len(users_R), len(codes_K[start : start + step]))
            self.add(users_R, np.broadcast_to(codes_K[part], shape), np.broadcast_to(scores_K[part], shape), source)
            users_R = users_R[self.lengths_U[users_R] < self.rules.top_n]
            start, step = start + step, 4 * step


def places(rows: Integers, codes: Integers, width: int) -> Integers:
    """Places in a matrix of that width, laid flat."""
    return rows * width + codes


def alike(wanted: Integers, at_once: int) -> Iterator[Integers]:
    """Places of `wanted` in parts of so many, those that want as much beside each other."""
    order = np.argsort(wanted, kind="stable")
    for start in range(0, len(order), at_once):
        yield order[start : start + at_once]
