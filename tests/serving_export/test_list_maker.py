"""With k wanted and m left out, k come back whenever k exist: against a reference that looks at every item."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from features.vocabulary import learn_vocabulary
from pipeline.tables import ITEMS
from serving_export import list_maker
from serving_export.assortment import make_assortment
from serving_export.bucket_users import BucketUsers
from serving_export.filling import SOURCES, ChannelRules, UserItems
from serving_export.item_index import ItemIndex, exact_index
from serving_export.list_maker import ChannelPlan, ListMaker
from serving_export.popular import EVERYONE, Popular
from serving_export.related import Related
from training.bundle import Bundle
from training.export_settings import Seen
from training.models.base import SessionModel
from training.recipes import PopularityRecipe

SEEN = Seen()
NOW = int(datetime(2026, 3, 1, tzinfo=UTC).timestamp() * 1e6)


class LastItem(SessionModel):
    """What is wanted next is a fixed vector of the last item."""

    def __init__(self, vectors_ID: np.ndarray) -> None:
        super().__init__()
        self.vectors_ID = torch.from_numpy(vectors_ID)

    def states(self, batch):
        return self.vectors_ID[batch.item_codes]

    def item_vectors(self, as_of, codes_C=None):
        return self.vectors_ID if codes_C is None else self.vectors_ID[codes_C]


@dataclass
class Case:
    """A few users and items, drawn at random."""

    vectors_ID: np.ndarray
    popular: np.ndarray
    categories: np.ndarray
    allowed: np.ndarray
    seen: list[list[int]]
    histories: list[list[int]]
    top_n: int
    max_per_category: int | None
    complements: int
    related: np.ndarray
    is_approximate: bool
    deepest: int


@st.composite
def cases(draw) -> Case:
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    known, others, users = random.integers((1, 0, 1), (25, 4, 6))
    size = known + others + 1
    most_seen = int(random.choice([1, 1, 4, size]))
    codes = np.arange(1, size)
    related = np.zeros((size, 3), int)
    for code in codes:
        near = random.permutation(codes[codes != code])[: random.integers(0, 4)]
        related[code, : len(near)] = near
    return Case(
        vectors_ID=random.normal(size=(known + 1, 3)).astype(np.float32),
        popular=random.permutation(codes)[: random.integers(0, size)] if random.random() < 0.7 else codes[:0],
        categories=random.integers(random.choice([-1, 0, 0]), random.choice([3, 3, 9]), size),
        allowed=np.append(False, random.random(size - 1) < 0.8),
        seen=[sorted(random.permutation(codes)[: random.integers(0, most_seen)].tolist()) for _ in range(users)],
        histories=[random.choice(codes, random.integers(1, 4)).tolist() for _ in range(users)],
        top_n=draw(st.integers(1, 8)),
        max_per_category=draw(st.sampled_from([None, 1, 1, 2])),
        complements=draw(st.sampled_from([0, 1, 2])),
        related=related,
        is_approximate=random.random() < 0.3,
        deepest=draw(st.sampled_from([0, 5, 1000, 1000, 1000])),
    )


def expected(case: Case, user: int) -> list[tuple[int, str, int]]:
    """The list of a user, item by item: code, source and reason."""
    known = len(case.vectors_ID)
    history = case.histories[user]
    candidates = []
    last = history[::-1][: case.complements]
    candidates += [
        (int(case.related[item, rank]), "rule", item)
        for rank in range(3)
        for item in last
        if case.related[item, rank] not in last
    ]
    of_model = [item for item in history if item < known]
    if of_model:
        scores = case.vectors_ID @ case.vectors_ID[of_model[-1]]
        ranked = sorted(range(1, known), key=lambda code: -scores[code])
        candidates += [(code, "model", 0) for code in ranked]
    candidates += [(int(code), "popular", 0) for code in case.popular]
    listed: list[tuple[int, str, int]] = []
    for code, source, because in candidates:
        category = case.categories[code]
        of_category = sum(case.categories[c] == category for c, _, _ in listed)
        if code == 0 or not case.allowed[code] or code in case.seen[user] or code in [c for c, _, _ in listed]:
            continue
        if case.max_per_category and category >= 0 and of_category >= case.max_per_category:
            continue
        listed.append((code, source, because))
    return listed[: case.top_n]


def of_users(lists: list[list[int]]) -> UserItems:
    codes = np.array([code for items in lists for code in items], dtype=np.int64)
    return UserItems(codes, np.concatenate([[0], np.cumsum([len(items) for items in lists])]).astype(np.int64))


def users_of(case: Case) -> BucketUsers:
    ids = [f"u{n}" for n in range(len(case.seen))]
    nulls = [None] * len(ids)
    table = pl.DataFrame(
        {"user_id": ids, "last_item": ids, "last_code": 0, "segment": nulls, "session_id": nulls},
        schema_overrides={"segment": pl.String, "session_id": pl.String},
    )
    histories = of_users(case.histories)
    return BucketUsers(
        table,
        histories,
        np.full(len(histories.codes), NOW),
        {SEEN: of_users(case.seen)},
        pl.DataFrame(),
        timedelta(minutes=30),
    )


def maker_of(case: Case) -> ListMaker:
    known = len(case.vectors_ID)
    vocabulary = learn_vocabulary(pl.DataFrame({"item_ids": [[f"i{n:02}" for n in range(1, known)]]}), 1)
    catalogue = pl.DataFrame({"item_id": [f"i{n:02}" for n in range(1, len(case.allowed))]})
    assortment = make_assortment(vocabulary, pl.concat([ITEMS.empty(), catalogue], how="diagonal"))
    codes = np.flatnonzero(case.allowed[:known])
    index = exact_index(case.vectors_ID, codes) if len(codes) else None
    if index is not None and case.is_approximate:
        index = ItemIndex(Forgetful(index.index), index.codes, "Forgetful")
    scores = -np.arange(len(case.popular), dtype=float)
    rules = ChannelRules("home", case.top_n, case.allowed, case.categories, case.max_per_category)
    popular = Popular({EVERYONE: (case.popular[case.allowed[case.popular]], scores[case.allowed[case.popular]])})
    plan = ChannelPlan(rules, SEEN, case.complements, popular, index)
    related = Related(
        case.related.astype(np.int32), np.zeros(case.related.shape), np.ones(case.related.shape, np.uint8)
    )
    bundle = Bundle(LastItem(case.vectors_ID), vocabulary, "last", PopularityRecipe(), date(2026, 2, 28), NOW)
    return ListMaker([plan], assortment, bundle, case.vectors_ID, related)


class Forgetful:
    """An index that finds every second item only."""

    def __init__(self, index) -> None:
        self.index, self.ntotal = index, index.ntotal

    def search(self, vectors, n):
        scores, rows = self.index.search(vectors, n)
        rows[:, 1::2] = -1
        return scores, rows


@given(cases())
@settings(max_examples=300, deadline=None, derandomize=True)
def test_lists_are_those_of_a_slow_reference(case):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(list_maker, "DEEPEST_SEARCH", case.deepest)
        (lists,) = maker_of(case).fill(users_of(case), 0, len(case.seen))
    for user in range(len(case.seen)):
        length = lists.lengths_U[user]
        found = [
            (int(code), SOURCES[source], int(because))
            for code, source, because in zip(
                lists.codes_UN[user, :length],
                lists.sources_UN[user, :length],
                lists.because_UN[user, :length],
                strict=True,
            )
        ]
        wanted = expected(case, user)
        if case.is_approximate and case.deepest:
            # What an approximate index misses may be missing from a list, but its length is that of the exact one.
            wanted_length = len(wanted) if case.max_per_category is None else length
            assert length == wanted_length
            assert len({code for code, _, _ in found}) == length
        else:
            assert found == wanted
        assert not lists.codes_UN[user, length:].any()


def test_rows_come_by_user_channel_and_rank():
    case = Case(
        vectors_ID=np.eye(4, dtype=np.float32),
        popular=np.array([1, 2, 3, 4]),
        categories=np.full(5, -1),
        allowed=np.array([False, True, True, True, True]),
        seen=[[1], [], [1, 2, 3, 4]],
        histories=[[2], [4], [1]],
        top_n=2,
        max_per_category=None,
        complements=0,
        related=np.zeros((5, 3), int),
        is_approximate=False,
        deepest=1000,
    )
    maker = maker_of(case)
    home = maker.channels[0]
    short = ChannelPlan(
        ChannelRules("short", 1, home.rules.allowed_A, home.rules.categories_A, None), SEEN, 0, home.popular, home.index
    )
    (slab,) = ListMaker([home, short], maker.assortment, maker.bundle, maker.vectors_ID, None).slabs(users_of(case))
    told = slab.rows.select("user_id", "channel", "rank", "item_id", "source", "because").rows()
    assert told[:3] == [
        ("u0", "home", 1, "i02", "model", "u0"),
        ("u0", "home", 2, "i03", "model", "u0"),
        ("u0", "short", 1, "i02", "model", "u0"),
    ]
    assert told[3:] == [
        ("u1", "home", 1, "i01", "popular", None),
        ("u1", "home", 2, "i02", "popular", None),
        ("u1", "short", 1, "i01", "popular", None),
    ], "an item that the model does not know leads nowhere; who has seen everything has no list"
    assert (slab.num_users, slab.num_popular_only) == (3, 2)


def line(**changes: object) -> Case:
    """One user who wants item 1 most, then 2, and so on up to 20; the first 18 are of one category."""
    vectors_ID = np.arange(21, 0, -1, dtype=np.float32)[:, None]
    told = {
        "vectors_ID": vectors_ID,
        "popular": np.zeros(0, int),
        "categories": np.array([-1] + [0] * 18 + [1, 2]),
        "allowed": np.arange(21) > 0,
        "seen": [[]],
        "histories": [[1]],
        "top_n": 3,
        "max_per_category": 1,
        "complements": 0,
        "related": np.zeros((21, 3), int),
        "is_approximate": False,
        "deepest": 1000,
    }
    return Case(**told | changes)


@pytest.mark.parametrize(
    ("changes", "codes"),
    [
        ({}, [1, 19, 20]),
        ({"seen": [[1, 2, 19]]}, [3, 20]),
        ({"max_per_category": 2}, [1, 2, 19]),
        ({"max_per_category": None, "seen": [list(range(2, 19))]}, [1, 19, 20]),
        ({"max_per_category": None, "is_approximate": True, "top_n": 20}, list(range(1, 21))),
        ({"top_n": 100, "max_per_category": None}, list(range(1, 21))),
        ({"histories": [[]]}, []),
    ],
    ids=[
        "deep",
        "deep_seen",
        "two",
        "many_seen",
        "approximate_short",
        "more_than_items",
        "unknown_user",
    ],
)
def test_what_is_left_out_is_made_up_for(changes, codes):
    case = line(**changes)
    (lists,) = maker_of(case).fill(users_of(case), 0, 1)
    assert lists.codes_UN[0, : lists.lengths_U[0]].tolist() == codes
    assert (np.diff(lists.scores_UN[0, : lists.lengths_U[0]]) <= 0).all()
