import json
from datetime import UTC, date, datetime
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.ids import stable_id
from pipeline.normalise import event_id, normalise
from pipeline.settings import PipelineSite

DAY = date(2026, 3, 3)
GOOD = {"u": "ann", "s": "s1", "i": "x", "t": "2026-03-03T10:00:00Z", "e": "view", "d": "phone"}


def make_site(time_zone: str = "UTC", **source: Any) -> PipelineSite:
    columns = {"user_id": "u", "session_id": "s", "item_id": "i", "occurred_at": "t"}
    told = {"events": "{date}.csv", "columns": columns, "context": ["d"]} | source
    return PipelineSite.model_validate({"name": "a", "store": "s", "time_zone": time_zone, "source": told})


def run(
    site: PipelineSite, *rows: dict[str, Any], day: date = DAY, known_items: pl.Series | None = None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    told = [{f"raw:{name}": value for name, value in (GOOD | row).items() if name != "fields"} for row in rows]
    records = pl.DataFrame(told).with_columns(pl.col(pl.Null).cast(pl.String))
    records = records.with_columns(
        source_file=pl.lit("f.csv"),
        record=pl.int_range(1, pl.len() + 1),
        fault=pl.Series(["unparsable_row" if "fields" in row else None for row in rows], dtype=pl.String),
        fields=pl.Series([row.get("fields") for row in rows], dtype=pl.String),
    )
    good, bad = normalise(records, site, day, known_items)
    good = good.with_columns(event_id=event_id(site.source.context))
    assert good.height + bad.height == len(rows)
    return good, bad


def reason(site: PipelineSite, day: date = DAY, **row: Any) -> str | None:
    _, bad = run(site, row, day=day)
    return bad["reason"].item() if bad.height else None


def instant(text: Any, time_unit: str = "iso", time_zone: str = "UTC") -> datetime | None:
    good, bad = run(make_site(time_zone, time_unit=time_unit, events="all.csv"), {"t": text})
    assert bad["reason"].to_list() in ([], ["bad_time"])
    return good["occurred_at"].item() if good.height else None


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)


def test_a_record_becomes_an_event():
    good, _ = run(make_site(), {})
    event = good.row(0, named=True)
    assert event.pop("user_bucket") in range(8)
    assert event.pop("event_id") == (
        pl.select(stable_id(*map(pl.lit, ["ann", "x", 1772532000000000, "view", "s1", "phone"]))).item()
    )
    assert event == {
        "delivery_date": DAY,
        "source_file": "f.csv",
        "record": 1,
        "event_date": DAY,
        "visitor": "ann",
        "user_id": "ann",
        "item_id": "x",
        "event_type": "view",
        "occurred_at": utc(2026, 3, 3, 10),
        "given_session_id": "s1",
        "d": "phone",
    }


def test_an_anonymous_visitor_is_the_given_session():
    good, _ = run(make_site(), {"u": ""})
    assert good.select("visitor", "user_id", "given_session_id").row(0) == (" session:s1", None, "s1")


def test_spaces_around_a_value_do_not_count():
    good, _ = run(make_site(), {"u": " ann ", "i": "\tx", "t": " 2026-03-03T10:00:00Z ", "d": "  "})
    assert good.select("visitor", "item_id", "d").row(0) == ("ann", "x", None)
    assert good["occurred_at"].item() == utc(2026, 3, 3, 10)


def test_an_event_is_told_by_what_happened_not_by_where_it_was_written():
    site = make_site()
    first, _ = run(site, {})
    moved, _ = run(site, {"u": "bob"}, {"t": "2026-03-03 11:00:00+01:00"}, day=date(2026, 3, 4))
    assert moved["event_id"][1] == first["event_id"].item() != moved["event_id"][0]


@pytest.mark.parametrize("change", [{"u": "bob"}, {"s": "s2"}, {"i": "y"}, {"t": "2026-03-03T10:00:01Z"}, {"d": "tv"}])
def test_whatever_a_mapped_column_says_is_part_of_the_event(change):
    good, _ = run(make_site(), {}, change)
    assert good["event_id"].n_unique() == 2


# --- reasons


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({}, None),
        ({"fields": "[]"}, "unparsable_row"),
        ({"u": None, "s": ""}, "missing_user"),
        ({"i": ""}, "missing_item"),
        ({"i": None}, "missing_item"),
        ({"t": ""}, "bad_time"),
        ({"t": None}, "bad_time"),
        ({"t": "2026-03-04T00:00:00Z"}, "future_time"),
        ({"t": "2026-02-28T23:59:59Z"}, "too_late"),
        ({"t": "2026-03-01T00:00:00Z"}, None),
        ({"u": "", "s": "", "i": "", "t": "x"}, "missing_user"),
    ],
)
def test_a_record_that_cannot_be_an_event_gets_the_first_reason_that_holds(row, expected):
    assert reason(make_site(lateness="2d"), **row) == expected


def test_a_file_is_judged_by_its_own_day():
    site, row = make_site(lateness="2d"), {"t": "2026-03-03T10:00:00Z"}
    days = {day: reason(site, date(2026, 3, day), **row) for day in (2, 3, 5, 6)}
    assert days == {2: "future_time", 3: None, 5: None, 6: "too_late"}


def test_a_file_is_judged_by_its_day_in_the_zone_of_the_site():
    berlin = make_site("Europe/Berlin", lateness="1d")
    assert reason(berlin, t="2026-03-03T22:59:59Z") is None
    assert reason(berlin, t="2026-03-03T23:00:00Z") == "future_time"
    assert reason(berlin, t="2026-03-01T22:59:59Z") == "too_late"
    assert reason(berlin, t="2026-03-01T23:00:00Z") is None


def test_lateness_is_exact_and_counts_from_the_start_of_the_day():
    site = make_site(lateness="90m")
    assert reason(site, t="2026-03-02T22:30:00Z") is None
    assert reason(site, t="2026-03-02T22:29:59.999Z") == "too_late"


def test_a_day_of_lateness_is_a_day_of_the_sites_clock():
    berlin = make_site("Europe/Berlin", lateness="1d")
    for day in (29, 30, 31):  # the clock is put forward on the 29th
        assert reason(berlin, date(2026, 3, day), t=f"2026-03-{day - 1}T00:00:00") is None
        assert reason(berlin, date(2026, 3, day), t=f"2026-03-{day - 2}T23:59:59") == "too_late"


def test_an_item_that_is_not_known_is_the_last_reason():
    known = pl.Series(["x", "y"])
    _, bad = run(make_site(), {"i": " y "}, {"i": "z"}, {"i": "z", "t": "soon"}, {"i": ""}, known_items=known)
    assert bad["reason"].to_list() == ["item_not_in_catalogue", "bad_time", "missing_item"]


def test_without_a_lateness_no_row_is_too_late_and_without_a_delivery_day_none_is_early():
    assert reason(make_site(), t="2000-01-01") is None
    assert reason(make_site(events="all.csv"), t="2100-01-01") is None


def test_event_types_are_mapped_and_others_are_rejected():
    site = make_site(event_type={"column": "e", "map": {"VIEW": "view", "ADD": "cart"}})
    good, bad = run(site, {"e": "VIEW"}, {"e": " ADD "}, {"e": "view"}, {"e": ""})
    assert good["event_type"].to_list() == ["view", "cart"]
    assert bad["reason"].to_list() == ["unknown_event_type"] * 2


def test_event_types_without_a_map_stay_as_they_are():
    good, bad = run(make_site(event_type={"column": "e"}), {"e": "Wish"}, {"e": None})
    assert good["event_type"].to_list() == ["Wish"]
    assert bad["reason"].to_list() == ["unknown_event_type"]


def test_a_rejected_row_keeps_its_raw_fields_and_is_booked_on_the_day_of_its_file():
    _, bad = run(make_site(), {"i": " ", "t": "2026-03-01"}, {"fields": '["a"]'})
    assert json.loads(bad["fields"][0]) == GOOD | {"i": " ", "t": "2026-03-01"}
    assert bad["fields"][1] == '["a"]'
    assert bad.select("source_file", "record", "event_date").rows() == [("f.csv", 1, DAY), ("f.csv", 2, DAY)]


@pytest.mark.parametrize(
    ("rule", "kept", "excluded"),
    [
        ({"one_of": ["POST", "D"]}, ["POSTER", "post", "", None], ["POST", " D "]),
        ({"matches": "^C[0-9]"}, ["1C2", "c1", "C", "", None], ["C1", " C22"]),
        ({"less_than": 1}, ["1", "1e3", "x", "", None], ["0", "-2", " 0.5 ", "-inf"]),
        ({"more_than": 9.5}, ["9.5", "-10", "x", "nan", "", None], ["10", "1e9"]),
    ],
)
def test_a_rule_of_the_site_excludes_rows_by_one_column(rule, kept, excluded):
    site = make_site(exclude=[{"reason": "unwanted", "column": "q", **rule}])
    good, bad = run(site, *({"q": value} for value in kept + excluded))
    assert good["record"].to_list() == list(range(1, len(kept) + 1))
    assert bad["reason"].to_list() == ["unwanted"] * len(excluded)


def test_of_two_rules_the_first_that_holds_gives_the_reason_before_all_but_unreadable_rows():
    rules = [{"reason": "odd", "column": "i", "one_of": ["x"]}, {"reason": "sad", "column": "t", "matches": "never"}]
    rows = ({"t": "never"}, {"i": "y", "t": "never"}, {"i": "y", "t": "often"}, {"fields": "[]"})
    _, bad = run(make_site(exclude=rules), *rows)
    assert bad["reason"].to_list() == ["odd", "sad", "bad_time", "unparsable_row"]


def test_in_a_log_without_days_a_rejected_row_is_booked_on_the_day_it_tells():
    rows = ({"i": "", "t": "2025-01-02"}, {"i": "", "t": "x"}, {"fields": "[]", "t": None})
    _, bad = run(make_site(events="all.csv"), *rows)
    assert bad["event_date"].to_list() == [date(2025, 1, 2), DAY, DAY]


# --- times


@pytest.mark.parametrize(
    ("unit", "text", "expected"),
    [
        ("s", "1510603454", utc(2017, 11, 13, 20, 4, 14)),
        ("s", "1510603454.886", utc(2017, 11, 13, 20, 4, 14, 886_000)),
        ("s", "1510603454.123457", utc(2017, 11, 13, 20, 4, 14, 123_457)),
        ("ms", "1510603454886", utc(2017, 11, 13, 20, 4, 14, 886_000)),
        ("ms", "1510603454886.5", utc(2017, 11, 13, 20, 4, 14, 886_500)),
        ("us", "1510603454886123", utc(2017, 11, 13, 20, 4, 14, 886_123)),
        ("ns", "1510603454886123999", utc(2017, 11, 13, 20, 4, 14, 886_123)),
    ],
)
def test_a_number_counts_from_1970(unit, text, expected):
    assert instant(text, unit) == expected


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("text", ["x", "nan", "inf", "-inf", "1e300", "9" * 25, "-" + "9" * 25, "9223372036854775807"])
def test_a_number_that_is_no_time_is_a_bad_time(unit, text):
    assert instant(text, unit) is None


def test_milliseconds_read_as_seconds_are_bad_times():
    assert instant("1510603454886", "s") is None


@settings(max_examples=20, deadline=None)
@given(st.datetimes(datetime(1971, 1, 1), datetime(2100, 1, 1)))  # noqa: DTZ001
def test_whole_microseconds_survive_every_unit(moment):
    moment = moment.replace(tzinfo=UTC)
    microseconds = round((moment - utc(1970, 1, 1)).total_seconds() * 1e6)
    assert instant(str(microseconds), "us") == moment
    assert instant(f"{microseconds // 1000}.{microseconds % 1000:03}", "ms") == moment
    assert instant(f"{microseconds // 10**6}.{microseconds % 10**6:06}", "s") == moment
    assert instant(str(microseconds * 1000), "ns") == moment
    assert instant(moment.isoformat()) == moment


@pytest.mark.parametrize(
    "text",
    [
        "2026-03-01T10:00:00Z",
        "2026-03-01 10:00:00z",
        "2026-03-01T10:00Z",
        "2026-03-01T11:00:00.000+01:00",
        "2026-03-01 11:00:00 +0100",
        "2026-03-01T05:00:00-05:00",
        "2026-03-01T10:00:00",
        "2026-03-01 10:00",
    ],
)
def test_iso_times_have_a_zone_or_are_local(text):
    assert instant(text) == utc(2026, 3, 1, 10)


def test_a_local_time_is_in_the_zone_of_the_site():
    assert instant("2026-03-01 10:00:00", time_zone="Europe/Berlin") == utc(2026, 3, 1, 9)
    assert instant("2026-07-01", time_zone="Europe/Berlin") == utc(2026, 6, 30, 22)
    assert instant("2026-03-01 10:00:00Z", time_zone="Europe/Berlin") == utc(2026, 3, 1, 10)


@pytest.mark.parametrize("text", ["2026-02-30", "2026-13-01", "soon", "0000-01-01", "10:00", "2026-03-01T25:00:00Z"])
def test_a_text_that_is_no_time_is_a_bad_time(text):
    assert instant(text) is None


def test_a_time_that_the_clock_showed_twice_is_the_earlier_one():
    assert instant("2026-10-25 02:30:00", time_zone="Europe/Berlin") == utc(2026, 10, 25, 0, 30)


def test_a_time_that_the_clock_skipped_is_a_bad_time():
    assert instant("2026-03-29 02:30:00", time_zone="Europe/Berlin") is None


@pytest.mark.parametrize(
    ("unit", "text"),
    [
        ("%d/%m/%Y %H:%M", "01/03/2026 10:00"),
        ("%d/%m/%Y %H:%M %z", "01/03/2026 08:00 -0100"),
        ("%Y%m%d%H%M%S", "20260301100000"),
    ],
)
def test_a_format_of_ones_own_is_read_in_the_zone_of_the_site(unit, text):
    assert instant(text, unit, "Europe/Berlin") == utc(2026, 3, 1, 9)
    assert instant("x", unit, "Europe/Berlin") is None


@pytest.mark.parametrize(("kind", "hour"), [(pl.Datetime("ms", "Asia/Tokyo"), 10), (pl.Datetime("ns"), 9)])
def test_typed_times_need_no_unit(kind, hour):
    typed = pl.select(pl.lit("2026-03-01T10:00:00").str.to_datetime(time_zone="UTC")).to_series()
    typed = typed.dt.convert_time_zone("Asia/Tokyo") if kind.time_zone else typed.dt.replace_time_zone(None)
    assert instant(typed.cast(kind).item(), "ms", "Europe/Berlin") == utc(2026, 3, 1, hour)


def test_the_day_of_an_event_is_the_day_in_the_zone_of_the_site():
    for zone, day in (("UTC", 1), ("Europe/Berlin", 2), ("America/New_York", 1)):
        good, _ = run(make_site(zone), {"t": "2026-03-01T23:30:00Z"})
        assert good["event_date"].item() == date(2026, 3, day)


def test_no_rows_give_no_rows():
    records = run(make_site(), {})[0].drop("event_id").clear()
    empty = pl.DataFrame(
        schema=dict.fromkeys([f"raw:{name}" for name in GOOD], pl.String)
        | {
            "source_file": pl.String,
            "record": pl.Int64,
            "fault": pl.String,
            "fields": pl.String,
        }
    )
    good, bad = normalise(empty, make_site(), DAY)
    assert good.is_empty()
    assert bad.is_empty()
    assert good.schema == records.schema
