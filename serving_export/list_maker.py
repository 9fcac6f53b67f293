"""Make the lists of users, slab by slab: complements first, then what the model ranks, popular items behind.

Rules that do not depend on the user choose the items that are searched. Beyond the places of a list only as many items
are fetched as the user has seen. Whoever has seen very many, or still has places left, is scored against every item.

Shapes: U users of a slab · R of them at a time · N places · K ranked items · A item codes · I the model's · D dimension
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from features.sequences import Integers, Sequences
from serving_export.assortment import Assortment, Mask
from serving_export.bucket_users import BucketUsers, ListInput
from serving_export.filling import COLD, MODEL, RULE, SOURCES, ChannelRules, Floats, Lists, UserItems, alike
from serving_export.item_index import ItemIndex
from serving_export.popular import Popular, allowed_popular
from serving_export.related import Related
from serving_export.scoring import CountScorer, Scorer, Vectors, VectorScorer, session_vectors
from training.bundle import Bundle
from training.export_settings import Seen
from training.models.base import top_of_scores
from training.settings import TrainingSite
from training.units import reads_users

USERS_IN_SLAB = 16_384
SEARCHED_AT_ONCE = 4096
DEEPEST_SEARCH = 1024
"""Who needs more items than this is scored against all of them, which is then faster than a heap."""
SCORES_AT_ONCE = 2**23
CATEGORY_DEPTH = 8
"""Where a channel limits categories, so many times the places are ranked at first, and as many times more if needed."""


@dataclass(frozen=True)
class ChannelPlan:
    """All that a channel's lists are made from, whoever they are for."""

    rules: ChannelRules
    seen: Seen
    complements: int
    popular: Popular
    index: ItemIndex | None
    """Of the items that its rules allow; channels with the same items share it. None without a model of vectors."""
    by_influence: bool = False
    """Whether `because` names what drew an item in, not the user's last item."""


@dataclass(frozen=True)
class ListMaker:
    """A model, or none, with the items and the channels of a night."""

    channels: Sequence[ChannelPlan]
    assortment: Assortment
    bundle: Bundle | None
    vectors_ID: Vectors | None
    related: Related | None

    def slabs(self, users: BucketUsers) -> Iterator["Slab"]:
        """The lists of a bucket, users in order of their ids."""
        for start in range(0, users.size, USERS_IN_SLAB):
            stop = min(start + USERS_IN_SLAB, users.size)
            yield Slab(self.fill(users, start, stop), users.table.slice(start, stop - start), self.assortment)

    def fill(self, users: BucketUsers, start: int, stop: int) -> list[Lists]:
        """The lists of neighbouring users, a `Lists` a channel."""
        return self.fill_lists(users.input(start, stop, self.read(users, start, stop)))

    def read(self, users: BucketUsers, start: int, stop: int) -> Sequences | None:
        """What the model reads of neighbouring users; None without a model."""
        if self.bundle is None:
            return None
        return users.sequences(start, stop, self.assortment.num_known, reads_users(self.bundle.recipe))

    def fill_lists(self, users: ListInput, vectors_UD: Vectors | None = None) -> list[Lists]:
        """The lists of some users, a `Lists` a channel.

        `vectors_UD`: what the model wants next of each, where that is known already; not a number: it knows nothing.
        """
        lists = [Lists(plan.rules, users.seen[plan.seen]) for plan in self.channels]
        for plan, of_channel in zip(self.channels, lists, strict=True):
            if plan.complements and self.related is not None:
                add_complements(of_channel, users.histories, plan.complements, self.related)
        if self.bundle is not None and users.sequences is not None:
            self.add_ranked(lists, self.bundle, users.sequences, vectors_UD)
        for plan, of_channel in zip(self.channels, lists, strict=True):
            plan.popular.fill(of_channel, users.segments)
        return lists

    def add_ranked(self, lists: list[Lists], bundle: Bundle, sequences: Sequences, vectors_UD: Vectors | None) -> None:
        """Fill places with what the model ranks."""
        is_served = sequences.unit_lengths > 0
        scorer: Scorer
        if self.vectors_ID is None:
            scorer = CountScorer(bundle, sequences)
            unfilled = [np.flatnonzero(is_served)] * len(lists)
        else:
            if vectors_UD is None:
                vectors_UD = session_vectors(bundle, sequences, self.vectors_ID.shape[1])
            scorer = VectorScorer(vectors_UD, self.vectors_ID)
            is_served &= np.isfinite(vectors_UD).all(1)
            unfilled = self.search(lists, vectors_UD, np.flatnonzero(is_served))
        for of_channel, users_R in zip(lists, unfilled, strict=True):
            rank_all(of_channel, scorer, users_R, self.assortment.num_known)

    def search(self, lists: list[Lists], vectors_UD: Vectors, served: Integers) -> list[Integers]:
        """Fill lists from the channels' indexes, one search for channels that share one; return who is left to rank."""
        unfilled: list[Integers] = [served] * len(lists)
        for index in {id(plan.index): plan.index for plan in self.channels}.values():
            sharing = [n for n, plan in enumerate(self.channels) if plan.index is index]
            if index is None or not len(served):
                continue
            depth = np.max([depth_wanted(lists[n], served) for n in sharing], axis=0)
            searched = served[depth <= DEEPEST_SEARCH]
            depth = depth[depth <= DEEPEST_SEARCH]
            for part in alike(depth, SEARCHED_AT_ONCE):
                users_R = searched[part]
                codes_RK, scores_RK = index.search(vectors_UD[users_R], int(depth[part[-1]]))
                for n in sharing:
                    lists[n].add(users_R, codes_RK, scores_RK, MODEL)
            for n in sharing:
                unfilled[n] = np.setdiff1d(served, searched[is_final(lists[n], index, searched, depth)])
        return unfilled


class Slab(NamedTuple):
    """The lists of neighbouring users, a `Lists` a channel."""

    lists: Sequence[Lists]
    users: pl.DataFrame
    assortment: Assortment

    @property
    def rows(self) -> pl.DataFrame:
        """Rows of `recommendations`."""
        return list_rows(self.lists, self.users, self.assortment)

    @property
    def num_users(self) -> int:
        """The users, also those whose list is empty."""
        return self.users.height

    @property
    def num_popular_only(self) -> int:
        """Users whose lists hold nothing but popular items."""
        is_served = np.any([np.isin(part.sources_UN, (RULE, MODEL)).any(1) for part in self.lists], axis=0)
        return int((~is_served).sum())


def plan_channels(
    site: TrainingSite,
    assortment: Assortment,
    indexes: Mapping[bytes, ItemIndex],
    popular: Mapping[str, pl.DataFrame],
) -> list[ChannelPlan]:
    """A plan for each channel, in order of their names.

    Indexes come by the mask of the model's items that they hold, popular items by channel.
    """
    plans = []
    for name, channel in site.export.all_channels().items():
        allowed_A = assortment.allowed(channel)
        rules = ChannelRules(name, channel.top_n or 0, allowed_A, assortment.categories, channel.max_per_category)
        index = indexes.get(allowed_A[: assortment.num_known].tobytes())
        shown = allowed_popular(popular[name], assortment, allowed_A)
        by_influence = channel.because == "influence"
        seen = channel.seen or site.export.seen
        plans.append(ChannelPlan(rules, seen, channel.complements, shown, index, by_influence))
    return plans


def is_final(lists: Lists, index: ItemIndex, users_R: Integers, depth_R: Integers) -> Mask:
    """Whether ranking more items for a user who was searched `depth` items for could not change the list."""
    is_full = lists.lengths_U[users_R] == lists.rules.top_n
    if not index.is_exact:
        return is_full
    found: Mask = is_full | (lists.rules.max_per_category is None) | (depth_R >= index.size)
    return found


def depth_wanted(lists: Lists, users_R: Integers) -> Integers:
    """(R) how many items must be ranked: as many as a list has places, and as many as the user's rules take out."""
    listed_R = lists.lengths_U[users_R]
    places = lists.rules.top_n * (1 if lists.rules.max_per_category is None else 2)
    return places + listed_R + lists.seen.counts[users_R]


def rank_all(lists: Lists, scorer: Scorer, users_R: Integers, num_known: int) -> None:
    """Fill the lists of some users anew from the scores of all the model's items."""
    allowed_I = lists.rules.allowed_A[:num_known]
    num_allowed = int(allowed_I.sum())
    lists.clear(users_R, MODEL)
    at_once = max(1, SCORES_AT_ONCE // num_known)
    for start in range(0, len(users_R), at_once):
        part_R = users_R[start : start + at_once]
        scores_RI = scorer.scores(part_R).copy()
        scores_RI[:, ~allowed_I] = -np.inf
        row, code = lists.seen.of(part_R)
        is_known = code < num_known
        scores_RI[row[is_known], code[is_known]] = -np.inf
        scores_RI[~np.isfinite(scores_RI)] = -np.inf
        add_best(lists, part_R, scores_RI, num_allowed)


def add_best(lists: Lists, users_R: Integers, scores_RI: Vectors, num_allowed: int) -> None:
    """Fill lists from a row of scores each, ranking only as deep as is needed; what is no item has -inf."""
    depth = lists.rules.top_n + int(lists.lengths_U[users_R].max(initial=0))
    if lists.rules.max_per_category is not None:
        depth *= CATEGORY_DEPTH
    rows = np.arange(len(users_R))
    while len(rows):
        lists.clear(users_R[rows], MODEL)
        top = top_of_scores(torch.from_numpy(scores_RI[rows]), depth)
        lists.add(users_R[rows], top.codes_RN.numpy(), top.scores_RN.numpy(), MODEL)
        if lists.rules.max_per_category is None or depth >= num_allowed:
            return
        rows = rows[lists.lengths_U[users_R[rows]] < lists.rules.top_n]
        depth *= CATEGORY_DEPTH


def add_complements(lists: Lists, histories: UserItems, num_items: int, related: Related) -> None:
    """Put what goes with the last items first: all first ones, those of the newest item leading, then all second ones.

    The score is 1 / the item's rank among the related ones.
    """
    users = np.flatnonzero(histories.counts)
    back = np.arange(1, num_items + 1)
    is_there = back <= histories.counts[users][:, None]
    entries = np.where(is_there, histories.offsets[users + 1][:, None] - back, 0)
    last_RL = np.where(is_there, histories.codes[entries], 0)
    num_ranks = related.codes_AM.shape[1]
    codes_RK = related.codes_AM[last_RL].transpose(0, 2, 1).reshape(len(users), -1).astype(np.int64)
    because_RK = np.broadcast_to(last_RL[:, None, :], (len(users), num_ranks, num_items)).reshape(codes_RK.shape)
    scores_K: Floats = np.repeat(1 / np.arange(1, num_ranks + 1), num_items)
    codes_RK[(codes_RK[:, :, None] == last_RL[:, None, :]).any(2)] = 0  # who has it needs no second one
    codes_RK = first_of_each(codes_RK, lists.rules.allowed_A)
    lists.add(users, codes_RK, np.broadcast_to(scores_K, codes_RK.shape), RULE, because_RK)


def first_of_each(codes_RK: Integers, allowed_A: Mask) -> Integers:
    """(R, K) codes, 0 in place of those that are not allowed or stand further left already."""
    order = np.argsort(codes_RK, axis=1, kind="stable")
    in_order = np.take_along_axis(codes_RK, order, axis=1)
    is_again = np.zeros(codes_RK.shape, bool)
    np.put_along_axis(is_again, order[:, 1:], in_order[:, 1:] == in_order[:, :-1], axis=1)
    return np.where(is_again | ~allowed_A[codes_RK], 0, codes_RK)


def source_names(sources: NDArray[np.uint8], codes: NDArray[np.integer], assortment: Assortment) -> pl.Series:
    """What the sources of listed items are called."""
    names = pl.Series(SOURCES, dtype=pl.String).gather(sources.astype(np.int64))
    is_cold = (sources == MODEL) & assortment.is_cold(codes)
    return names.set(pl.Series(is_cold), COLD) if is_cold.any() else names


def list_rows(lists: Sequence[Lists], users: pl.DataFrame, assortment: Assortment) -> pl.DataFrame:
    """Lists as rows of `recommendations`, by user, channel and rank; channels must come in order of their names."""
    codes = np.concatenate([of_channel.codes_UN for of_channel in lists], axis=1)
    user, place = np.nonzero(codes)
    widths = [of_channel.rules.top_n for of_channel in lists]
    channel_of_place = np.repeat(np.arange(len(lists)), widths)
    rank_of_place = np.concatenate([np.arange(1, width + 1) for width in widths])

    def listed(name: str) -> np.ndarray:
        return np.concatenate([getattr(of_channel, name) for of_channel in lists], axis=1)[user, place]

    source, because = listed("sources_UN"), listed("because_UN").astype(np.int64)
    is_last_item = pl.Series((source == MODEL) & (because == 0))
    names = pl.Series([of_channel.rules.name for of_channel in lists], dtype=pl.String)
    of_user = users.select("user_id", "last_item", "session_id")[user]
    return of_user.with_columns(
        channel=names.gather(channel_of_place[place]),
        rank=pl.Series(rank_of_place[place]),
        item_id=assortment.item_ids.gather(codes[user, place].astype(np.int64)),
        score=pl.Series(listed("scores_UN")),
        source=source_names(source, codes[user, place], assortment),
        because=pl.when(is_last_item).then("last_item").otherwise(assortment.item_ids.gather(because.clip(0))),
    ).drop("last_item")
