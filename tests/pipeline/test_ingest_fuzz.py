"""Whatever is delivered: ingest tells what became of every row, or what to mend; never a traceback."""

import gzip
from datetime import date
from typing import Any

import pytest
from hypothesis import strategies as st

from pipeline.errors import NightjarError
from pipeline.privacy import anonymous
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
