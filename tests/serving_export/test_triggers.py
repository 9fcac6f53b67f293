from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl

from serving_export.triggers import find_triggers
from training.export_settings import Triggers

END = datetime(2026, 3, 8, tzinfo=UTC)
RULES = {"within": "7d", "abandoned_cart": {"after": "4h"}, "viewed_again": {"times": 2}}
CODES = {"a": 1, "b": 2, "gone": 3}
ALLOWED = np.array([False, True, True, False])


def triggers(*events: tuple[str, str, float], **rules: object) -> list[tuple[str, int, str, int]]:
    """trigger, rank, item, number of events of one user; events are (item, type, hours before the end)."""
    rows = [
        {"user_id": "u", "item_id": i, "item_code": CODES[i], "event_type": t, "occurred_at": END - timedelta(hours=h)}
        for i, t, h in events
    ]
    frame = pl.DataFrame(rows).with_columns(
        pl.col("occurred_at").cast(pl.Datetime("us", "UTC")), event_date=pl.col("occurred_at").dt.date()
    )
    found = find_triggers(frame, Triggers.model_validate(RULES | rules), ALLOWED, END)
    return found.select("trigger", "rank", "item_id", "num_events").rows()


def test_a_cart_counts_as_left_after_a_time():
    assert triggers(("a", "cart", 5)) == [("abandoned_cart", 1, "a", 1)]
    assert triggers(("a", "cart", 3)) == []
    assert triggers(("a", "cart", 24 * 8)) == []


def test_what_was_bought_is_no_cart():
    assert triggers(("a", "cart", 6), ("a", "purchase", 5)) == []
    assert triggers(("a", "purchase", 7), ("a", "cart", 6)) == [("abandoned_cart", 1, "a", 1)]
    assert triggers(("a", "cart", 6), ("b", "purchase", 5)) == [("abandoned_cart", 1, "a", 1)]
    assert triggers(("a", "cart", 9), ("a", "purchase", 8), ("a", "cart", 6)) == [("abandoned_cart", 1, "a", 2)]


def test_an_item_is_viewed_again_on_another_day():
    assert triggers(("a", "view", 30), ("a", "view", 5)) == [("viewed_again", 1, "a", 2)]
    assert triggers(("a", "view", 6), ("a", "view", 5)) == []
    assert triggers(("a", "view", 30), ("a", "view", 5), ("a", "purchase", 20)) == []


def test_the_newest_comes_first_and_few_are_kept():
    events = (("a", "cart", 10), ("b", "cart", 6), ("gone", "cart", 5))
    assert triggers(*events) == [("abandoned_cart", 1, "b", 1), ("abandoned_cart", 2, "a", 1)], "gone may not be listed"
    assert triggers(*events, top_n=1) == [("abandoned_cart", 1, "b", 1)]


def test_each_row_says_when():
    frame = pl.DataFrame(
        {
            "user_id": ["u"],
            "item_id": ["a"],
            "item_code": [1],
            "event_type": ["cart"],
            "occurred_at": [END - timedelta(hours=9)],
            "event_date": [date(2026, 3, 7)],
        }
    )
    found = find_triggers(frame, Triggers.model_validate(RULES), ALLOWED, END)
    assert found["occurred_at"].to_list() == [END - timedelta(hours=9)]
