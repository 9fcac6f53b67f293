from datetime import date

import polars as pl
import pytest

from serving_export.assortment import make_assortment
from serving_export.item_rules import compile_rule, may_stand
from training.export_settings import ItemRule, ItemRules

ITEMS = pl.DataFrame(
    {
        "snapshot_date": [date(2026, 3, 3)] * 3,
        "item_id": ["a", "b", "c"],
        "title": ["x'; DROP TABLE items", None, "c"],
        "category": ["book", None, "toy"],
        "price": [1.0, None, 3.0],
        "available": [True, None, False],
        "first_seen": [date(2026, 3, 2), None, date(2026, 3, 1)],
    }
)


@pytest.mark.parametrize(
    ("column", "op", "value", "met"),
    [
        ("category", "==", "book", "a"),
        ("category", "!=", "book", "bc"),
        ("category", "in", ["book", "toy"], "ac"),
        ("category", "in", [], ""),
        ("category", "not_in", ["book"], "bc"),
        ("price", "<", 3, "a"),
        ("price", "<=", 3, "ac"),
        ("price", ">", 1.5, "c"),
        ("price", ">=", 1, "ac"),
        ("price", "in", [1, 2.5], "a"),
        ("price", "is_null", None, "b"),
        ("price", "not_null", None, "ac"),
        ("available", "==", True, "a"),
        ("available", "!=", True, "bc"),
        ("first_seen", ">", date(2026, 3, 1), "a"),
        ("title", "==", "x'; DROP TABLE items", "a"),
    ],
)
def test_a_rule_holds_for_these_items(column, op, value, met):
    expression = compile_rule(ItemRule(column=column, op=op, value=value))
    assert "".join(ITEMS.filter(expression)["item_id"]) == met
    assert ITEMS.select(expression).to_series().null_count() == 0


@pytest.mark.parametrize(
    ("rules", "left"),
    [
        ({}, "ab"),
        ({"available_only": False}, "abc"),
        ({"allow": [{"column": "price", "op": ">", "value": 0}]}, "a"),
        ({"available_only": False, "allow": [{"column": "price", "op": ">", "value": 0}]}, "ac"),
        ({"deny": [{"column": "category", "op": "==", "value": "book"}]}, "b"),
        (
            {
                "available_only": False,
                "deny": [
                    {"column": "category", "op": "==", "value": "book"},
                    {"column": "category", "op": "is_null"},
                ],
            },
            "c",
        ),
    ],
    ids=["available", "all", "allow", "allow_all", "deny", "deny_either"],
)
def test_rules_together(rules, left):
    found = ITEMS.filter(may_stand(ItemRules.model_validate(rules)))
    assert "".join(found["item_id"]) == left


def test_an_assortment_numbers_the_models_items_first(popularity_vocabulary, caplog):
    twice = pl.concat([ITEMS, ITEMS.head(1).with_columns(title=pl.lit("last"))])
    with caplog.at_level("WARNING"):
        assortment = make_assortment(popularity_vocabulary, twice)
    assert assortment.item_ids[:3].to_list() == [None, "c", "gone"]
    assert set(assortment.item_ids[3:]) == {"a", "b"}
    assert assortment.items.filter(pl.col("item_id") == "a")["title"].to_list() == ["last"], "the last row counts"
    assert "`items` holds 4 rows for 3 items" in caplog.text
    coded = assortment.encode(pl.DataFrame({"item_id": ["c", "?", "gone"]}))
    assert coded["item_code"].to_list() == [1, 0, 2]
    allowed = assortment.allowed(ItemRules())
    assert {assortment.item_ids[code] for code in range(5) if allowed[code]} == {"a", "b"}
    category = {assortment.item_ids[code]: int(assortment.categories[code]) for code in range(1, 5)}
    assert category["b"] == category["gone"] == -1
    assert category["a"] != category["c"]


@pytest.fixture
def popularity_vocabulary():
    from features.vocabulary import Vocabulary

    return Vocabulary(pl.DataFrame({"item_code": [1, 2], "item_id": ["c", "gone"], "num_events": [3, 1]}))
