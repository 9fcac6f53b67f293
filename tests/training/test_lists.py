from dataclasses import replace
from datetime import UTC, date, datetime

import numpy as np
import pandas as pd
import polars as pl
import pytest

from features.intents import Definitions
from features.vocabulary import learn_vocabulary
from training.bundle import Bundle, build_for
from training.lists import encode_histories, fill_lists
from training.recipes import RECIPES, SequenceRecipe
from training.score import score_sessions
from training.served_model import SessionRecommender

SCORES = [[0] * 6, [0, 5, 4, 3, 2, 1], [0, 1, 2, 3, 4, 5], [0] * 6, [0] * 6, [0] * 6]
NOON = 1_772_366_400_000_000
NOW = pl.datetime(2026, 3, 1, time_zone="UTC", time_unit="us")


def histories(**items: list[str]) -> pl.DataFrame:
    frame = pl.DataFrame({"user_id": list(items), "item_ids": list(items.values())})
    return frame.with_columns(last_at=NOW)


def lists(bundle, told: pl.DataFrame, seen: dict[str, list[str]], n: int) -> dict[str, list[str]]:
    pairs = pl.DataFrame(
        {"user_id": list(seen), "item_id": list(seen.values())}, schema_overrides={"item_id": pl.List(pl.String)}
    ).explode("item_id")
    if pairs.is_empty():
        pairs = pl.DataFrame(schema={"user_id": pl.String, "item_id": pl.String})
    rows = pl.concat(fill_lists(bundle.recommender, 0, bundle.vocabulary, told, pairs, n))
    ids = bundle.vocabulary.item_ids()
    found = {}
    for (user,), part in rows.group_by("user_id"):
        assert part["rank"].to_list() == list(range(1, part.height + 1))
        found[user] = [ids[code] for code in part["item_code"]]
    return found


def test_a_list_follows_the_last_known_item(scripted):
    told = histories(u=["b", "a"], v=["a", "b", "?"], w=["?"])
    assert lists(scripted(SCORES), told, {}, 2) == {"u": ["a", "b"], "v": ["e", "d"]}


def test_seen_items_are_left_out_and_the_list_is_as_long(scripted):
    told = histories(u=["a"], v=["a"], w=["b"])
    found = lists(scripted(SCORES), told, {"u": ["a", "c"], "w": ["e", "?"]}, 3)
    assert found == {"u": ["b", "d", "e"], "v": ["a", "b", "c"], "w": ["d", "c", "b"]}


def test_a_list_ends_where_the_items_end(scripted):
    assert lists(scripted(SCORES), histories(u=["a"]), {"u": ["a", "b", "c"]}, 10) == {"u": ["d", "e"]}
    assert lists(scripted(SCORES), histories(u=["a"]), {"u": list("abcde")}, 10) == {}


def test_nobody_gets_no_lists(scripted):
    bundle = scripted(SCORES)
    empty = pl.DataFrame(schema={"user_id": pl.String, "item_id": pl.String})
    assert list(fill_lists(bundle.recommender, 0, bundle.vocabulary, histories(w=["?"]), empty, 3)) == []


def test_histories_become_sessions_of_known_items(scripted):
    sequences, users = encode_histories(histories(u=["b", "?", "a"], v=["?"], w=["e"]), scripted(SCORES).vocabulary)
    assert users.to_list() == ["u", "w"]
    assert sequences.item_codes.tolist() == [2, 1, 5]
    assert sequences.offsets.tolist() == [0, 2, 3]
    assert sequences.occurred_at.dtype == np.int64


def test_sessions_of_raw_ids_are_scored(scripted):
    bundle = scripted(SCORES)
    found = score_sessions(bundle, [["b", "a"], ["?"], [], ["a", "?", "b"]], 2)
    assert found == [(["a", "b"], [5.0, 4.0]), ([], []), ([], []), (["e", "d"], [5.0, 4.0])]
    assert score_sessions(bundle, [], 2) == []
    assert score_sessions(bundle, [["?"]], 2) == [([], [])]


@pytest.mark.parametrize("top", [5, 50])
def test_asking_for_more_than_there_is_gives_all(scripted, top):
    (ids, scores), *_ = score_sessions(scripted(SCORES), [["a"]], top)
    assert ids == list("abcde")
    assert scores == [5, 4, 3, 2, 1]


def test_a_model_of_users_gets_the_last_items_as_sessions(scripted):
    bundle = scripted(SCORES)
    told = histories(u=["a", "b", "?", "c"], v=["?"], w=["d", "e"])
    told = told.with_columns(session=pl.Series([[0, 0, 1, 2], [4], [3, 3]]))
    sequences, users = encode_histories(told, bundle.vocabulary, by_user=True)
    assert users.to_list() == ["u", "w"]
    assert sequences.item_codes.tolist() == [1, 2, 3, 4, 5]
    assert (sequences.offsets.tolist(), sequences.user_offsets.tolist()) == ([0, 2, 3, 5], [0, 2, 3])
    empty = pl.DataFrame(schema={"user_id": pl.String, "item_id": pl.String})
    plain, grouped = (
        pl.concat(fill_lists(bundle.recommender, 0, bundle.vocabulary, told, empty, 3, by_user))
        for by_user in (False, True)
    )
    assert grouped.equals(plain), "this model looks at the last item alone"


def test_a_model_of_properties_reads_what_histories_hold_of_their_events():
    definitions = Definitions(
        classes={"event_type": ("view", "cart"), "device": ("phone", "desk")}, columns=("event_type", "device")
    )
    plain = learn_vocabulary(pl.DataFrame({"item_ids": [["a", "b"]]}), 1)
    vocabulary = replace(plain, definitions=definitions)
    times = [datetime(2026, 3, 1, hour, tzinfo=UTC) for hour in (1, 2, 3)]
    told = histories(u=["a", "?", "b"]).with_columns(
        event_type=pl.Series([["cart", "view", "swim"]]),
        occurred_at=pl.Series([times]).cast(pl.List(pl.Datetime("us", "UTC"))),
    )
    read, _ = encode_histories(told, vocabulary)
    assert read.event_columns["event_type"].tolist() == [2, 0]
    assert read.event_columns.keys() == {"event_type"}, "no history tells the device"
    assert np.diff(read.occurred_at).tolist() == [2 * 3_600_000_000]
    assert encode_histories(told, plain)[0].event_columns == {}


def test_what_is_told_of_events_reaches_the_model_that_mlflow_loads():
    definitions = Definitions(
        classes={"event_type": ("view", "cart")}, columns=("event_type",), intents=("event_type",)
    )
    vocabulary = replace(learn_vocabulary(pl.DataFrame({"item_ids": [list("abcd")]}), 1), definitions=definitions)
    recipe = SequenceRecipe(encoder="intentrec", hidden_size=8)
    served = SessionRecommender()
    served.bundle = Bundle(build_for(recipe, vocabulary).eval(), vocabulary, "r", recipe, date(2026, 3, 1), NOON)
    items = [["a", "?", "b"]] * 4
    types = [["cart", "view", "cart"], ["view"] * 3, [None] * 3, ["swim"] * 3]
    frame = pd.DataFrame({"item_ids": items, "event_type": types})
    cart, view, none, other = served.predict(None, frame, {"top": 3})["scores"]
    assert cart != view != none
    assert other == pytest.approx(none), "a class that training never saw is a missing value"
    (alone, *_) = served.predict(None, items)["scores"]
    assert alone[:3] == pytest.approx(none)
    late = frame.assign(occurred_at=[["2026-03-01T23:00:00Z", None, "2026-03-02T01:00:00+01:00"]] * 4)
    assert served.predict(None, late, {"top": 3})["scores"][0] != cart
    with pytest.raises(ValueError, match="event_type has 1 values for 3 item ids"):
        served.predict(None, frame.assign(event_type=[["view"]] * 4))


def test_earlier_sessions_reach_a_model_of_users_that_mlflow_loads():
    vocabulary = learn_vocabulary(pl.DataFrame({"item_ids": [list("abcd")]}), 1)
    recipe = RECIPES["hrnn"]().model_copy(update={"hidden_size": 8})
    served = SessionRecommender()
    served.bundle = Bundle(build_for(recipe, vocabulary).eval(), vocabulary, "hrnn", recipe, date(2026, 3, 1), NOON)
    told = {"item_ids": [["a", "b", "c"], ["c"], ["?", "c"]], "session": [[0, 0, 1], [0], [0, 3]]}
    scores = served.predict(None, told, {"top": 2})["scores"]
    assert scores[0] != pytest.approx(scores[1])
    assert scores[1] == pytest.approx(scores[2]), "an unknown item is no history"
    assert scores[1] == pytest.approx(served.predict(None, [["c"]], {"top": 2})["scores"][0])
