from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.durations import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("90s", timedelta(seconds=90)),
        ("30m", timedelta(minutes=30)),
        ("24h", timedelta(hours=24)),
        ("7d", timedelta(days=7)),
        ("2h30m", timedelta(hours=2, minutes=30)),
        ("0s", timedelta()),
    ],
)
def test_a_duration_is_numbers_with_units(text, duration):
    assert parse_duration(text) == duration


@pytest.mark.parametrize(
    "text", ["", "30", "m", "-5m", "1.5h", "30 m", "1w", "30M", 30, 1.5, None, True, "9" * 30 + "d"]
)
def test_anything_else_is_no_duration(text):
    with pytest.raises(ValueError, match="is no duration; write a number and a unit"):
        parse_duration(text)


def test_a_timedelta_passes_through():
    assert parse_duration(timedelta(days=1)) == timedelta(days=1)


def test_the_text_form_is_short():
    assert format_duration(timedelta(minutes=90)) == "1h30m"
    assert format_duration(timedelta(days=1)) == "1d"
    assert format_duration(timedelta()) == "0s"


@given(st.integers(0, 10**8))
def test_the_text_form_is_read_back(seconds):
    duration = timedelta(seconds=seconds)
    assert parse_duration(format_duration(duration)) == duration
