"""States of users are what reading their whole history gives, however they came about."""

from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from features.sequences import encode_sessions
from features.vocabulary import learn_vocabulary
from features.window import sessions_until
from serving_export.tables import USER_STATES
from serving_export.user_states import bring_up_to_date, known_histories, update_user_states
from training.batch import gather
from training.bundle import Bundle, build
from training.models.base import SessionModel
from training.recipes import RECIPES, SequenceRecipe

ITEMS = [f"i{n}" for n in range(12)]
DAY = date(2026, 3, 1)
NONE_KEPT = USER_STATES.empty()


@pytest.fixture
def bundle(sessions_of) -> Bundle:
    recipe = RECIPES["hrnn"]()
    assert isinstance(recipe, SequenceRecipe)
    recipe = recipe.model_copy(update={"hidden_size": 6, "max_sessions": 4})
    vocabulary = learn_vocabulary(sessions_of([ITEMS]), 1)
    return Bundle(build(recipe, vocabulary.num_codes).eval(), vocabulary, "hrnn", recipe, DAY, 0)


def draw(sessions_of, num_sessions: int, seed: int = 1) -> pl.DataFrame:
    random = np.random.default_rng(seed)
    items = [random.choice([*ITEMS, "?"], length).tolist() for length in random.integers(1, 5, num_sessions)]
    return sessions_of(items, [f"v{n}" for n in random.integers(9, size=num_sessions)])


def roll(bundle: Bundle, sessions: pl.DataFrame, kept: pl.DataFrame = NONE_KEPT) -> tuple[pl.DataFrame, int]:
    histories = known_histories(sessions, bundle.vocabulary, bundle.recipe.max_sessions, DAY)
    return bring_up_to_date(bundle, histories, kept)


def assert_same(one: pl.DataFrame, other: pl.DataFrame) -> None:
    """But for the last digits, which depend on how many users are read at once."""
    numbers = ("carry", "checksum")
    assert one.drop(numbers, strict=False).equals(other.drop(numbers, strict=False))
    torch.testing.assert_close(torch.tensor(one["carry"].to_list()), torch.tensor(other["carry"].to_list()))


def test_a_state_scores_as_the_whole_history_read_again(sessions_of, bundle):
    sessions = draw(sessions_of, 40)
    states, num_read = roll(bundle, sessions)
    model = bundle.recommender
    assert isinstance(model, SessionModel)
    known = encode_sessions(sessions, bundle.vocabulary).known_only().at_least(1).newest(4)
    assert num_read == known.num_sessions
    assert sorted(states["visitor"]) == sorted(known.visitors.unique())
    next_session = sessions_of([["i3", "i5"]] * states.height, states["visitor"].to_list(), DAY + timedelta(days=1))
    day = encode_sessions(next_session, bundle.vocabulary)
    again = day.after(known).by_user()
    expected = model.session_vectors(gather(again, np.arange(again.num_units)))
    of_unit = again.visitors.gather(again.user_offsets[1:] - 1).to_list()
    carry = torch.tensor(states["carry"].to_list(), dtype=torch.float32)
    codes = torch.tensor(day.item_codes[:2]).expand(states.height, 2)
    is_new = torch.ones(states.height, dtype=torch.bool)
    _, carry = model.advance(codes[:, 0], carry, is_new)
    found, _ = model.advance(codes[:, 1], carry)
    places = [of_unit.index(visitor) for visitor in states["visitor"]]
    torch.testing.assert_close(found, expected[places], rtol=1e-5, atol=1e-6)


def test_only_new_sessions_are_read_where_nothing_else_changed(sessions_of, bundle):
    sessions = draw(sessions_of, 24)
    before, _ = roll(bundle, sessions.head(16))
    whole, num_all = roll(bundle, sessions)
    rolled, num_read = roll(bundle, sessions, before)
    assert_same(rolled, whole)
    histories = known_histories(sessions, bundle.vocabulary, 99, DAY)
    grown = histories.group_by("visitor").agg(pl.len()).filter(pl.col("len") > 4)["visitor"]
    new = pl.col("session_id") >= "s000016"
    expected = histories.filter(new & ~pl.col("visitor").is_in(grown.implode())).height + 4 * len(grown)
    assert num_read <= expected < num_all, "of who has more than max_sessions the oldest fell away: all is read again"
    _, nothing = roll(bundle, sessions, whole)
    assert nothing == 0
    assert roll(bundle, sessions.clear(), whole)[0].height == 0


@pytest.mark.parametrize("change", ["grown", "gone", "other"])
def test_a_history_that_changed_is_read_again(change, sessions_of, bundle):
    sessions = sessions_of([["i1", "i2"], ["i3"], ["i4"]], ["u", "u", "v"])
    kept, _ = roll(bundle, sessions)
    items = {
        "grown": [["i1", "i2", "i5"], ["i3"], ["i4"]],
        "other": [["i1", "i7"], ["i3"], ["i4"]],
        "gone": [["?"], ["i3"], ["i4"]],
    }[change]
    changed = sessions_of(items, ["u", "u", "v"])
    rolled, num_read = roll(bundle, changed, kept)
    whole, _ = roll(bundle, changed)
    assert_same(rolled, whole)
    assert num_read == {"grown": 2, "other": 2, "gone": 1}[change], "v's state stands"


def test_the_table_holds_the_users_of_the_window_for_one_version(copy_shop, bundle):
    shop = copy_shop()
    site, store, days = shop.site, shop.store, shop.days
    sessions = sessions_until(site, store, days[:5], days[4])
    vocabulary = learn_vocabulary(sessions, 2)
    recipe = bundle.recipe
    served = Bundle(build(recipe, vocabulary.num_codes).eval(), vocabulary, "hrnn", recipe, days[4], 0)
    first = update_user_states(site, store, served, 3, days[3])
    second = update_user_states(site, store, served, 3, days[4])
    rolled = store.scan(USER_STATES).sort("visitor").collect()
    assert 0 < second["sessions_read"] < first["sessions_read"]
    in_window = sessions_until(site, store, days[1:5], days[4]).filter(pl.col("user_id").is_not_null())
    assert set(rolled["visitor"]) <= set(in_window["visitor"])
    assert second["users_with_state"] == rolled.height > 50
    update_user_states(site, store, served, 4, days[4])
    fresh = store.scan(USER_STATES).sort("visitor").collect()
    assert fresh["model_version"].unique().to_list() == [4]
    assert_same(fresh.drop("model_version"), rolled.drop("model_version"))


def test_a_state_that_was_damaged_on_disk_is_made_again(copy_shop, bundle):
    shop = copy_shop()
    site, store, day = shop.site, shop.store, shop.days[3]
    vocabulary = learn_vocabulary(sessions_until(site, store, shop.days[:4], day), 2)
    served = Bundle(build(bundle.recipe, vocabulary.num_codes).eval(), vocabulary, "hrnn", bundle.recipe, day, 0)
    update_user_states(site, store, served, 3, day)
    whole = store.scan(USER_STATES).sort("visitor").collect()
    assert update_user_states(site, store, served, 3, day)["sessions_read"] == 0
    (odd,) = whole.filter(user_bucket=0).head(1)["visitor"]
    shifted = pl.col("carry").list.eval(pl.element() + 1)
    damaged = whole.with_columns(pl.when(pl.col("visitor") == odd).then(shifted).otherwise("carry").alias("carry"))
    store.replace(USER_STATES, damaged, {"user_bucket": [0, 1]})
    told = update_user_states(site, store, served, 3, day)
    assert told["sessions_read"] == int(whole.filter(visitor=odd)["num_sessions"].item())
    assert_same(store.scan(USER_STATES).sort("visitor").collect(), whole)
    for file in Path(store.table_uri(USER_STATES.name)).rglob("*.parquet"):
        file.write_bytes(file.read_bytes()[:-40])
    update_user_states(site, store, served, 3, day)
    assert_same(store.scan(USER_STATES).sort("visitor").collect(), whole)
