from datetime import date

import pytest
from pydantic import ValidationError

from pipeline.tables import ITEMS
from training.export_settings import ITEM_COLUMNS, Export, ItemRule


def test_rules_may_name_every_column_of_items():
    assert set(ITEM_COLUMNS) == set(ITEMS.columns) - {"snapshot_date"}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"column": "catgory", "op": "==", "value": "x"}, "items have no column 'catgory'; did you mean 'category'?"),
        ({"column": "price", "op": "<", "value": "5"}, "price holds numbers, and '5' is none"),
        ({"column": "category", "op": "in", "value": "x"}, "category in takes a list of values; found 'x'"),
        ({"column": "category", "op": "==", "value": ["x"]}, "category == takes one value"),
        ({"column": "category", "op": "not_in", "value": ["x", 3]}, "category holds text, and 3 is none"),
        ({"column": "title", "op": "is_null", "value": "x"}, "title is_null takes no value; found 'x'"),
        ({"column": "title", "op": "=="}, "title holds text, and None is none"),
        ({"column": "available", "op": "<", "value": True}, "available is yes or no and knows no <"),
        ({"column": "price", "op": "==", "value": True}, "price holds numbers, and True is none"),
        ({"column": "first_seen", "op": ">", "value": "soon"}, "first_seen holds days, and 'soon' is none"),
        ({"column": "price", "op": "like", "value": "x"}, "Input should be '==', '!='"),
    ],
    ids=lambda told: told if isinstance(told, str) else "-".join(str(part) for part in told.values()),
)
def test_a_rule_that_cannot_hold_is_refused(rule, message):
    with pytest.raises(ValidationError) as caught:
        ItemRule.model_validate(rule)
    assert message in str(caught.value)


def test_a_rule_keeps_the_type_of_its_value():
    for value, column in ((3, "price"), (0.5, "price"), ("3", "category"), (date(2026, 3, 1), "first_seen")):
        assert ItemRule(column=column, op="==", value=value).value == value
    assert ItemRule(column="available", op="==", value=False).value is False


def test_a_channel_takes_over_what_it_does_not_say():
    export = Export.model_validate(
        {
            "top_n": 7,
            "seen": {"policy": "allow"},
            "channels": {"web": None, "cart": {"top_n": 3, "seen": {"policy": "exclude_bought"}}},
        }
    )
    channels = export.all_channels()
    assert list(channels) == ["cart", "web"], "in the order in which they stand in the table"
    assert [channel.top_n for channel in channels.values()] == [3, 7]
    assert [channel.seen.policy for channel in channels.values()] == ["exclude_bought", "allow"]
    assert list(Export().all_channels()) == ["home"]


@pytest.mark.parametrize("name", ["", "Home", "9am", "a b", "a/b", "ä", "x" * 41])
def test_a_channel_has_a_plain_name(name):
    with pytest.raises(ValidationError, match="is no name for a channel"):
        Export.model_validate({"channels": {name: {}}})


@pytest.mark.parametrize(
    ("export", "message"),
    [
        (
            {"channels": {"home": {"deny": [{"column": "available", "op": "is_null"}]}}},
            "no item of this site has a avail",
        ),
        ({"segment_by": "devce"}, "'devce' is not in source.context; it is empty"),
        ({"seen": {"policy": "exclude_bought", "bought": "purchse"}}, "did you mean 'purchase'?"),
        ({"triggers": {"abandoned_cart": {"cart": "basket"}}}, "export.triggers.abandoned_cart.cart is 'basket'"),
        ({"related": None, "channels": {"cart": {"complements": 2}}}, "complements are related items"),
        ({"channels": {"home": {"to_n": 3}}}, "to_n"),
        ({"channels": {}}, "at least 1 item"),
    ],
    ids=["rule", "segment", "bought", "trigger", "complements", "misspelt", "none"],
)
def test_an_export_that_does_not_fit_the_site_is_refused(raw_shop, export, message):
    with pytest.raises(ValidationError) as caught:
        raw_shop.with_changes(export=export)
    assert message in str(caught.value)


def test_a_limit_on_categories_needs_categories(raw_shop):
    items = {"path": "raw/items.csv", "columns": {"item_id": "item_id"}}
    with pytest.raises(ValidationError, match="max_per_category needs categories"):
        raw_shop.with_changes(items=items, export={"channels": {"home": {"max_per_category": 1}}})
