"""Whatever is delivered: ingest tells what became of every row, or what to mend; never a traceback."""

import gzip
import json
from datetime import date
from typing import Any

import pytest
from hypothesis import strategies as st

from pipeline.errors import NightjarError
from pipeline.privacy import anonymous
from pipeline.quarantine import as_json_lines, raw_rows, rejected_rows
from pipeline.tables import FILES, events_table

DAY = date(2026, 3, 1)
HEADER = "user,session,item,time,type"
USERS, ITEMS, TIMES = ["ann", "bob", "", " é", '"q"'], ["x", "y,z", "", "\0"], ["2026-03-01T10:00:00Z", "no", "", "1e9"]

ROW = st.tuples(*map(st.sampled_from, (USERS, ["", "s1"], ITEMS, TIMES, ["view", "?", ""])))
ODD = st.sampled_from(
    ['"stray', "bad", "", ",,,,,,,", "a,b,c,d,e,f", '"a\nb",,x,2026-03-01T10:00:00Z,view', "\r", "\ufeff", "é"]
)
CONTENT = st.one_of(
    st.lists(ROW | ODD, max_size=6),
    st.binary(max_size=40),
)
FILE = st.tuples(
    CONTENT, st.sampled_from(["utf-8", "utf-16", "latin-1"]), st.sampled_from(["", ".gz"]), st.floats(0, 1)
)


def quote(field: str) -> str:
    return '"' + field.replace('"', '""') + '"' if set(field) & set(',"\n') else field


def file_bytes(content: Any, encoding: str, ending: str, cut: float) -> bytes:
    if isinstance(content, bytes):
        return content
    lines = [line if isinstance(line, str) else ",".join(map(quote, line)) for line in content]
    told = "".join(f"{line}\n" for line in (HEADER, *lines)).encode(encoding, "replace")
    packed = gzip.compress(told, mtime=0) if ending else told
    return packed[: int(len(packed) * min(1, cut * 2))] if ending else packed


@pytest.mark.parametrize(
    "num_examples", [pytest.param(25, id="quick"), pytest.param(300, id="deep", marks=pytest.mark.slow)]
)
def test_every_row_is_told_and_every_event_was_delivered(make_small_in, tmp_path_factory, num_examples, explore):
    def law(files: list[tuple[Any, str, str, float]], has_folder: bool) -> None:
        small = make_small_in(tmp_path_factory.mktemp("fuzz"), source={"events": "raw/events-{date}*"})
        for n, (content, encoding, ending, cut) in enumerate(files):
            path = small.home / f"raw/events-2026-03-01-{n}.csv{ending}"
            path.write_bytes(file_bytes(content, encoding, ending, cut))
        if has_folder:
            (small.home / "raw/events-2026-03-01-folder.csv").mkdir()
        told = ""
        try:
            counts = small.ingest(DAY)
        except NightjarError as error:
            told = str(error)
        else:
            found = small.table(FILES)
            assert found["rows_read"].sum() == counts["rows_read"]
            assert counts["rows_read"] == small.events.height + found["duplicates"].sum() + small.rejected.height
        assert not has_folder or "events-2026-03-01-folder.csv" in told
        assert not told or "events-2026-03-01" in told
        events = small.store.scan(events_table([])).collect()
        assert set(events["visitor"]) <= {*(user.strip() for user in USERS), anonymous("s1"), anonymous("a\nb")}
        assert set(events["item_id"]) <= {item.strip() for item in ITEMS}

    has_folder = st.integers(0, 9).map(lambda n: n == 9)
    explore(num_examples, law, files=st.lists(FILE, min_size=1, max_size=3), has_folder=has_folder)


JSON_SOURCE = {
    "events": "raw/events-{date}*",
    "columns": {"user_id": "user", "session_id": "session", "item_id": "item", "occurred_at": "time"},
    "event_type": {"constant": "view"},
}
GOOD = '{"user": %s, "item": "x", "time": "2026-03-01T10:00:00Z"}'
NO_EVENTS = [
    "[" * 1000,
    "[" * 1_000_000,
    GOOD % ("[" * 1000 + "]" * 1000),
    GOOD % ('{"a":' * 100_000 + "1" + "}" * 100_000),
    GOOD % ("9" * 10_000),
    GOOD % "NaN",
    GOOD % "-Infinity",
    GOOD % '"\\ud800"',
    GOOD % '"\udced\udca0\udc80"',  # the bytes of a lone surrogate
    GOOD % "true",
    GOOD % '["1"]',
    GOOD % '{"id": 1}',
    GOOD % "1.5",
    GOOD % "1e300",
    "\x00",
    '{"user"',
]


def test_lines_that_no_parser_likes_are_rejected_rows_and_the_delivery_goes_on(make_small):
    small = make_small(source=JSON_SOURCE)
    lines = [*NO_EVENTS, GOOD % "1", GOOD % "1.0", GOOD % '"1"', GOOD % '"\\ud83d\\ude00", "user": "twice"']
    path = small.home / "raw/events-2026-03-01.jsonl"
    path.write_bytes("\n".join(lines).encode(errors="surrogateescape"))
    counts = small.ingest(DAY)
    assert counts["rejected"] == {"unparsable_row": len(NO_EVENTS)}
    assert (counts["events"], counts["duplicates"]) == (2, 2)
    assert sorted(small.events["user_id"]) == ["1", "twice"]
    rows, num_lost = raw_rows(small.site, small.store, rejected_rows(small.store, DAY, None))
    assert (len(rows), num_lost) == (len(NO_EVENTS), 0)
    assert len(list(as_json_lines(rows))) == len(NO_EVENTS)


JSON_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inside: st.lists(inside, max_size=2) | st.dictionaries(st.sampled_from(["user", "item", "x"]), inside),
    max_leaves=4,
)
JSON_LINE = st.one_of(
    st.fixed_dictionaries(
        {}, optional={"user": JSON_VALUE, "session": JSON_VALUE, "item": JSON_VALUE, "time": st.sampled_from(TIMES)}
    ).map(json.dumps),
    JSON_VALUE.map(json.dumps),
    st.sampled_from(NO_EVENTS).filter(lambda line: len(line) < 20_000),
    st.text(max_size=10),
)


@pytest.mark.parametrize(
    "num_examples", [pytest.param(15, id="quick"), pytest.param(300, id="deep", marks=pytest.mark.slow)]
)
def test_of_any_json_lines_every_row_is_told(make_small_in, tmp_path_factory, num_examples, explore):
    def law(lines: list[str], ending: str) -> None:
        small = make_small_in(tmp_path_factory.mktemp("fuzz"), source=JSON_SOURCE)
        text = "\n".join(lines).encode(errors="surrogateescape")
        path = small.home / f"raw/events-2026-03-01.jsonl{ending}"
        path.write_bytes(gzip.compress(text, mtime=0) if ending else text)
        try:
            counts = small.ingest(DAY)  # it checks that every row is counted
        except NightjarError as error:
            pytest.fail(str(error))
        rows, num_lost = raw_rows(small.site, small.store, rejected_rows(small.store, DAY, None))
        assert (len(rows), num_lost) == (sum(counts["rejected"].values()), 0)

    explore(num_examples, law, lines=st.lists(JSON_LINE, max_size=8), ending=st.sampled_from(["", ".gz"]))
