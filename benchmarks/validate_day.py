"""Seconds and memory to hold one large day to its contract.

    python benchmarks/validate_day.py [--rows 10000000] [--buckets 16] [--home HOME]

Makes a day of events (about four a session, popular items first) straight as Delta tables, sessionizes it, and runs
`nightjar validate` on it as a user would, in a process of its own. Importing Great Expectations is part of the time.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import yaml

from pipeline.days import present_content, read_days, update_days
from pipeline.ids import content_digest, stable_id, user_bucket
from pipeline.publish import Store, open_store
from pipeline.sessionize import sessionize_stale
from pipeline.settings import PipelineSite
from pipeline.site_file import load_site
from pipeline.tables import ITEMS, events_table

DAY = date(2026, 3, 5)
EVENTS_PER_SESSION = 4
NUM_ITEMS = 100_000
CHUNK = 1_000_000


def main() -> None:
    """Make the day, unless HOME holds one; validate it; print a line of JSON."""
    parser = argparse.ArgumentParser(description="Measure the validation of one large day.")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--buckets", type=int, default=16)
    parser.add_argument("--home", type=Path, help="keep the made day here, and use it when it is there")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nightjar-benchmark-") as folder:
        home = told.home or Path(folder)
        if not (home / "store").exists():
            make_day(home, told.rows, told.buckets)
        print(json.dumps({"rows": told.rows, "buckets": told.buckets} | measure(home)))


def make_day(home: Path, num_rows: int, buckets: int) -> None:
    """A site file, and a store with the events and sessions of one day, and the counts of three days before."""
    home.mkdir(parents=True, exist_ok=True)
    source = {
        "events": "raw/events-{date}.csv",
        "columns": {"user_id": "user", "item_id": "item", "occurred_at": "time"},
        "event_type": {"column": "event", "map": {"view": "view", "cart": "cart", "purchase": "purchase"}},
        "context": ["device"],
    }
    path = home / "site.yaml"
    path.write_text(yaml.safe_dump({"name": "large", "store": "store", "buckets": buckets, "source": source}))
    site = load_site(path, PipelineSite, home)
    store = open_store(site)
    table = events_table(site.source.context)
    staged, digests = [], []
    for start in range(0, num_rows, CHUNK):
        events = draw_events(start, min(CHUNK, num_rows - start), buckets)
        staged += store.stage(table, events)
        digests.append(events.select("event_id"))
    store.commit(table, staged, {"event_date": [DAY]})
    items = pl.DataFrame({"item": np.arange(NUM_ITEMS)}).select(
        snapshot_date=pl.lit(DAY), item_id=pl.format("i{}", "item"), first_seen=pl.lit(DAY)
    )
    store.replace(ITEMS, pl.concat([ITEMS.empty(), items], how="diagonal_relaxed"), {"snapshot_date": [DAY]})
    book_day(store, pl.concat(digests).select(content_digest(pl.col("event_id"))).item(), num_rows)
    sessionize_stale(site, store, DAY)
    pass_days_before(store)


def draw_events(start: int, number: int, buckets: int) -> pl.DataFrame:
    """Rows for `events`: sessions of one to seven events, each of a visitor of its own."""
    rng = np.random.default_rng([1, start])
    lengths = rng.integers(1, 2 * EVENTS_PER_SESSION, number)
    session = np.repeat(np.arange(start, start + number), lengths)[:number]
    opened = rng.integers(0, 20 * 3_600_000, number)[session - start]
    waited = np.cumsum(rng.exponential(60_000, number).astype(np.int64))
    first = np.searchsorted(session, session)
    item = (np.exp(rng.random(number) * np.log(NUM_ITEMS)) - 1).astype(np.int64)
    drawn = pl.DataFrame(
        {"session": session, "item": item, "ms": opened + waited - waited[first], "type": rng.integers(0, 3, number)}
    )
    words = {0: "view", 1: "cart", 2: "purchase"}
    events = drawn.select(
        event_date=pl.lit(DAY),
        visitor=pl.format("u{}", "session"),
        user_id=pl.format("u{}", "session"),
        item_id=pl.format("i{}", "item"),
        event_type=pl.col("type").replace_strict(words, return_dtype=pl.String),
        occurred_at=pl.lit(DAY).cast(pl.Datetime("us", "UTC")) + pl.duration(milliseconds="ms"),
        given_session_id=pl.lit(None, pl.String),
        device=pl.lit("phone"),
        source_file=pl.lit("events.csv"),
        ingested_run=pl.lit("benchmark"),
    )
    return events.with_columns(
        event_id=stable_id(pl.int_range(pl.len()) + start, pl.col("visitor"), pl.col("item_id"), pl.col("occurred_at")),
        user_bucket=user_bucket(pl.col("visitor"), buckets),
    )


def book_day(store: Store, content: str, num_rows: int) -> None:
    """What `days` says after an ingest of the day, with three days of the same size before it."""
    counts = {"num_events": num_rows, "num_duplicates": 0, "num_rejected": 0}
    days = [DAY - timedelta(days=n) for n in (3, 2, 1)]
    facts = [{"event_date": day, "events_content": "0", **counts} for day in days]
    update_days(store, pl.DataFrame([*facts, {"event_date": DAY, "events_content": content, **counts}]))


def pass_days_before(store: Store) -> None:
    """The three days before have passed, so that volume is judged too."""
    before = read_days(store).filter(pl.col("event_date") < DAY)
    passed = before.select("event_date", validated_content=present_content(), verdict=pl.lit("passed"))
    update_days(store, passed)


def measure(home: Path) -> dict[str, float]:
    """Seconds, processor seconds and peak resident memory (GB) of the command."""
    command = [str(Path(sys.executable).with_name("nightjar")), "validate", "--site", str(home / "site.yaml")]
    started = time.monotonic()
    ended = subprocess.run(
        [*command, "--date", DAY.isoformat()],
        env=os.environ | {"NIGHTJAR_HOME": str(home)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    seconds = time.monotonic() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    step = json.loads(ended.stdout.splitlines()[-1])["seconds"]
    return {
        "seconds": round(seconds, 1),
        "step_seconds": step,
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_gb": round(peak / 1e9, 2),
    }


if __name__ == "__main__":
    main()
