from datetime import UTC, date, datetime

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from features.intents import MISSING, Definitions, clock, edges, learn_definitions
from features.sequences import encode_sessions
from features.vocabulary import extend_vocabulary, learn_vocabulary
from pipeline.catalogue import latest_items
from pipeline.normalise import occurred_at
from pipeline.settings import Items, Source

TYPES = [["view", "cart"], ["view", "view", "buy"], ["view"]]


@pytest.fixture
def sessions(sessions_of):
    return sessions_of([["a", "b"], ["a", "c", "a"], ["b"]]).with_columns(
        event_types=pl.Series(TYPES), device=pl.Series([["phone", None], [None] * 3, ["desk"]])
    )


@pytest.fixture
def catalogue():
    return pl.DataFrame(
        {
            "item_id": ["a", "b", "c", "late"],
            "category": ["hats", "socks", None, "boats"],
            "price": [1.0, 2.0, None, 9.0],
            "first_seen": [date(2026, 2, 1), date(2026, 3, 1), date(2026, 2, 28), date(2026, 1, 1)],
        }
    )


@pytest.fixture
def site(raw_shop):
    source = {"context": ["device"]}
    return raw_shop.with_changes(source=source, intents=["event_type", "category", "item_age", "price_band", "device"])


def test_classes_come_from_the_window_the_most_frequent_first(site, sessions, catalogue):
    found = learn_definitions(site, sessions, catalogue)
    assert found.classes == {
        "category": ("hats", "socks"),
        "price_band": ("below 2", "2 and more"),
        "item_age": ("below 0.00139 days", "0.00139 to 1 days", "1 to 28 days", "28 days and more"),
        "new_or_repeat": ("new", "repeat"),
        "event_type": ("view", "buy", "cart"),
        "device": ("desk", "phone"),
    }
    assert found.columns == ("event_type", "device")
    assert found.intents == site.intents


def test_an_intent_with_one_class_is_left_out_with_a_warning(site, sessions, catalogue, caplog):
    same = sessions.with_columns(event_types=pl.Series([["view"] * 2, ["view"] * 3, ["view"]]))
    found = learn_definitions(site, same, catalogue.with_columns(category=pl.lit(None, pl.String)))
    assert found.intents == ("item_age", "price_band", "device")
    assert "event_type" not in found.classes
    assert "intent event_type is left out: the window holds 1 class of it" in caplog.text
    assert "intent category is left out: the window holds 0 class of it" in caplog.text


def test_without_a_side_table_there_are_still_event_type_age_and_new_or_repeat(raw_shop, sessions, catalogue):
    bare = catalogue.with_columns(category=pl.lit(None, pl.String), price=pl.lit(None, pl.Float64))
    found = learn_definitions(raw_shop.site, sessions, bare)
    assert found.intents == ("event_type", "item_age", "new_or_repeat")


def test_what_the_log_does_not_tell_is_missing_and_so_is_what_the_window_did_not_hold(site, sessions, catalogue):
    definitions = learn_definitions(site, sessions, catalogue)
    vocabulary = learn_vocabulary(sessions, 1).describe(definitions, catalogue)
    later = sessions.with_columns(event_types=pl.Series([["view", "swim"], [None, "buy", "cart"], ["view"]]))
    told = encode_sessions(later, vocabulary).event_columns
    assert told["event_type"].tolist() == [1, MISSING, MISSING, 2, 3, 1]
    assert told["device"].tolist() == [2, 0, 0, 0, 0, 1]
    assert encode_sessions(later.drop("device"), vocabulary).event_columns.keys() == {"event_type"}
    assert encode_sessions(later, learn_vocabulary(sessions, 1)).event_columns == {}, "others stay as fast as they were"


def test_event_columns_go_with_their_events(site, sessions, catalogue):
    vocabulary = learn_vocabulary(sessions, 2).describe(learn_definitions(site, sessions, catalogue), catalogue)
    known = encode_sessions(sessions, vocabulary).known_only()
    assert known.item_codes.tolist() == [1, 2, 1, 1, 2], "c is too rare"
    assert known.event_columns["event_type"].tolist() == [1, 3, 1, 2, 1]
    assert known.at_least(2).event_columns["event_type"].tolist() == [1, 3, 1, 2]
    assert known.take(np.array([2, 0])).event_columns["event_type"].tolist() == [1, 1, 3]


def test_items_are_described_by_code_and_a_category_of_later_is_missing(site, sessions, catalogue):
    definitions = learn_definitions(site, sessions, catalogue)
    vocabulary = learn_vocabulary(sessions, 1).describe(definitions, catalogue)
    assert vocabulary.items["item_id"].to_list() == ["a", "b", "c"]
    described = vocabulary.described()
    assert described["category"].tolist() == [0, 1, 2, 0]
    assert described["price_band"].tolist() == [0, 1, 2, 0]
    first = [int(datetime(2026, month, day, tzinfo=UTC).timestamp() * 1e6) for month, day in ((2, 1), (3, 1), (2, 28))]
    assert described["first_seen"].tolist() == [0, *first]
    grown = extend_vocabulary(vocabulary, sessions.with_columns(item_ids=pl.Series([["late"] * 2, ["a"], ["b"]])), 1)
    described = grown.describe(definitions, catalogue).described()
    assert described["category"].tolist() == [0, 1, 2, 0, MISSING], "boats came after the window"
    assert described["first_seen"].tolist() == [0, *first, MISSING], "boats were there when the log began"


def test_items_may_have_several_categories(site, sessions, catalogue):
    items = {
        "path": "raw/items.csv",
        "columns": {"item_id": "item_id", "category": "genres"},
        "category_separator": "|",
    }
    several = site.model_copy(update={"items": Items.model_validate(items)})
    told = catalogue.with_columns(category=pl.Series(["drama | war|drama", "war", "||", "boats|war|film"]))
    found = learn_definitions(several, sessions, told)
    assert found.classes["category"] == ("war", "drama"), "a counts for both of its categories, c has none"
    assert (found.num_categories, found.category_columns) == (2, ("category", "category_2"))
    vocabulary = learn_vocabulary(sessions.with_columns(item_ids=pl.Series([["late", "b"], ["a", "c", "a"], ["b"]])), 1)
    described = vocabulary.describe(found, told).described()
    of_items = dict(
        zip(vocabulary.item_ids(), zip(described["category"], described["category_2"], strict=True), strict=True)
    )
    assert of_items == {None: (0, 0), "a": (2, 1), "b": (1, 0), "c": (0, 0), "late": (1, 0)}, "boats are no class"
    one = learn_definitions(site, sessions, told)
    assert one.classes["category"] == ("drama | war|drama", "war", "||")
    assert one.text() != found.text()
    assert "num_categories" not in one.text()


def test_the_digest_follows_the_definitions(site, sessions, catalogue):
    plain = learn_vocabulary(sessions, 1)
    definitions = learn_definitions(site, sessions, catalogue)
    one = plain.describe(definitions, catalogue)
    other = plain.describe(definitions.model_copy(update={"intents": ("event_type",)}), catalogue)
    assert len({plain.digest(), one.digest(), other.digest()}) == 3
    assert (
        one.digest()
        == plain.describe(Definitions.model_validate_json(definitions.model_dump_json()), catalogue).digest()
    )


def test_edges_cut_values_in_two():
    assert edges(pl.Series([5.0, 5.0, 5.0])) == ()
    assert edges(pl.Series([], dtype=pl.Float64)) == ()
    assert edges(pl.Series([None, float("nan"), 0.0, 0.0, 0.0, 1.0])) == (), "three quarters are alike"
    assert edges(pl.Series([0.0, 1.0, 2.0, 3.0, 4.0])) == (1.0, 2.0, 3.0)


def test_the_clock_is_that_of_the_site():
    summer = int(datetime(2026, 7, 5, 22, 30, tzinfo=UTC).timestamp() * 1e6)
    winter = int(datetime(2026, 1, 4, 22, 30, tzinfo=UTC).timestamp() * 1e6)
    hours, weekdays = clock(np.array([summer, winter]), "Europe/Berlin")
    assert (hours.tolist(), weekdays.tolist()) == ([0, 23], [0, 6])


def test_a_time_without_a_zone_has_the_hour_that_the_log_says():
    written = pl.Series(["2026-07-05 23:30:00", "2026-01-04 00:10:00"])
    source = Source.model_validate({"events": "a.csv", "columns": {"item_id": "i", "user_id": "u", "occurred_at": "t"}})
    instants = occurred_at(written, source, "Europe/Berlin")
    hours, weekdays = clock(instants.dt.epoch("us").to_numpy(), "Europe/Berlin")
    assert (hours.tolist(), weekdays.tolist()) == ([23, 0], [6, 6])


@pytest.mark.parametrize(
    ("intents", "message"),
    [
        (["categry"], "there is no 'categry'; there are event_type, category, item_age, new_or_repeat, price_band"),
        (["category", "category"], "give each once"),
    ],
    ids=["unknown", "twice"],
)
def test_a_wrong_intent_is_refused_when_the_site_file_is_read(raw_shop, intents, message):
    with pytest.raises(ValidationError, match=message):
        raw_shop.with_changes(intents=intents)


def test_the_shop_tells_its_categories_and_prices(loaded_shop):
    from features.window import sessions_until

    site = loaded_shop.with_changes(intents=["event_type", "category", "item_age", "new_or_repeat", "price_band"])
    store, last = loaded_shop.store, loaded_shop.days[3]
    found = learn_definitions(site, sessions_until(site, store, loaded_shop.days[:4], last), latest_items(store, last))
    assert found.intents == site.intents
    assert found.classes["event_type"] == ("view", "cart", "purchase")
    assert len(found.classes["category"]) == 12
    assert len(found.classes["price_band"]) == 4
