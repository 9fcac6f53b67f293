"""What models read of the users of a bucket."""

from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest

from features.intents import Definitions
from features.vocabulary import learn_vocabulary
from pipeline.catalogue import latest_items
from pipeline.tables import events_table
from serving_export.assortment import make_assortment
from serving_export.bucket_users import read_bucket
from serving_export.scoring import session_vectors
from training.batch import gather
from training.bundle import Bundle, build
from training.recipes import RECIPES


@pytest.mark.parametrize("by_user", [False, True], ids=["session", "user"])
def test_last_events_are_read_as_the_model_wants_them(by_user, loaded_shop):
    site, store, day = loaded_shop.site, loaded_shop.store, loaded_shop.days[4]
    events = store.scan(events_table([])).filter(pl.col("event_date") <= day, pl.col("user_id").is_not_null()).collect()
    ids = events["item_id"].unique().sort().head(90)
    vocabulary = learn_vocabulary(pl.DataFrame({"item_ids": [ids.to_list()]}), 1)
    assortment = make_assortment(vocabulary, latest_items(store, day))
    users = read_bucket(site, store, day, 0, assortment, [])
    sequences = users.sequences(0, users.size, assortment.num_known, by_user)
    assert sequences.num_units == users.size
    assert (sequences.user_offsets is not None) == by_user
    code_of = {item: code for code, item in enumerate(vocabulary.item_ids().to_list())}
    several = 0
    for number, user in enumerate(users.table["user_id"]):
        told = events.filter(pl.col("user_id") == user).sort("occurred_at", "event_id")
        told = told.tail(site.export.input.last_events)
        is_silent = (told["occurred_at"].diff() > timedelta(minutes=30)).fill_null(False).cum_sum()
        visits = [told.filter(is_silent == visit)["item_id"].to_list() for visit in is_silent.unique().sort()]
        coded = [[code_of[item] for item in visit if item in code_of] for visit in visits]
        expected = [visit for visit in (coded if by_user else [[code for visit in coded for code in visit]]) if visit]
        batch = gather(sequences, np.array([number]))
        found = [part.tolist() for part in np.split(batch.item_codes.numpy(), batch.offsets[1:-1])]
        assert (found if len(batch.item_codes) else []) == expected, user
        several += len(expected) > 1
    assert not by_user or several > 20, "users with several sessions"
    recipe = RECIPES["hrnn" if by_user else "gru"]().model_copy(update={"hidden_size": 4})
    bundle = Bundle(build(recipe, vocabulary.num_codes).eval(), vocabulary, "r", recipe, date(2026, 3, 1), 0)
    vectors_UD = session_vectors(bundle, sequences, 5)
    assert np.isfinite(vectors_UD).all(1).tolist() == (sequences.unit_lengths > 0).tolist()


@pytest.mark.parametrize("by_user", [False, True], ids=["session", "user"])
def test_what_else_a_model_reads_goes_with_the_items(by_user, loaded_shop):
    site, store, day = loaded_shop.site, loaded_shop.store, loaded_shop.days[4]
    events = store.scan(events_table([])).filter(pl.col("event_date") <= day, pl.col("user_id").is_not_null()).collect()
    items = events["item_id"].unique().sort().head(90).to_list()
    definitions = Definitions(classes={"event_type": ("view", "cart")}, columns=("event_type",))
    vocabulary = learn_vocabulary(pl.DataFrame({"item_ids": [items]}), 1)
    assortment = make_assortment(vocabulary, latest_items(store, day))
    users = read_bucket(site, store, day, 0, assortment, [], definitions)
    sequences = users.sequences(0, users.size, assortment.num_known, by_user)
    last = (
        events.sort("occurred_at", "event_id")
        .group_by("user_id", maintain_order=True)
        .tail(site.export.input.last_events)
    )
    known = users.table.select("user_id").join(
        last.filter(pl.col("item_id").is_in(items)), on="user_id", maintain_order="left_right"
    )
    codes = known["event_type"].replace_strict({"view": 1, "cart": 2}, default=0).to_list()
    assert sequences.event_columns["event_type"].tolist() == codes
    assert {0, 1, 2} == set(codes)
    assert read_bucket(site, store, day, 0, assortment, []).event_columns == {}
