"""Speed and memory of the data steps, each a command in a process of its own, beside plain Polars and DuckDB.

    pip install -e '.[bench]'
    python benchmarks/data.py HOME [--days 10] [--rows 5000000]

Makes a log under HOME (see synthetic_log.py) unless it is there, ingests and sessionizes it day by day as a schedule
would, judges one day of 10 M rows, and in the same run cuts the same events into sessions with the bare bucketed
expression of Polars and with a window of DuckDB: these make a number per event, no lists, ids, tables or checks.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path

import polars as pl
from synthetic_log import FIRST_DAY

from pipeline.dates import ONE_DAY, days_between
from pipeline.publish import open_store
from pipeline.settings import PipelineSite
from pipeline.site_file import load_site
from pipeline.tables import DAYS

HEAD = """\
| process | rows | seconds | core-seconds | k rows/s | peak GB |
| --- | --: | --: | --: | --: | --: |"""
LARGE_DAY = 10_000_000
BARE_BUCKETS = 16
GAP_SECONDS = 30 * 60
MEMORY_UNIT = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True)
class Measured:
    """What a process did, and what it took."""

    what: str
    rows: int
    wall: float
    """Seconds."""
    busy: float
    """Seconds of all cores."""
    peak: float
    """Largest resident memory in GB."""

    def __str__(self) -> str:
        rate = self.rows / self.wall / 1000
        return f"| {self.what} | {self.rows:,} | {self.wall:.1f} | {self.busy:.1f} | {rate:,.0f} | {self.peak:.2f} |"


def main() -> None:
    """Measure, then print Markdown; or be one of the measured processes."""
    parser = argparse.ArgumentParser(description="Measure the data steps.")
    parser.add_argument("home", type=Path)
    parser.add_argument("--days", type=int, default=10)
    parser.add_argument("--rows", type=int, default=5_000_000, help="rows a day")
    parser.add_argument("--child", choices=list(CHILDREN), help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.child:
        CHILDREN[told.child](told.home / "bare")
        return
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, polars {version('polars')}\n\n{HEAD}")
    for measured in measure(told.home, told.days, told.rows):
        print(measured, flush=True)


def measure(home: Path, num_days: int, rows: int) -> Iterator[Measured]:
    """All processes, one after the other."""
    days = prepare(home, num_days, rows)
    for name in ("ingest", "sessionize"):
        yield step(home, name, days[:1])
        yield step(home, name, days[1:])
    child = [sys.executable, __file__, str(home), "--child"]
    run("", 0, [*child, "export"])
    num_events = pl.scan_parquet(home / "bare" / "events.parquet").select(pl.len()).collect().item()
    for name in ("Polars", "DuckDB"):
        yield run(f"{name}: a session number per event", num_events, [*child, name])
    large = home / "large"
    day = prepare(large, 1, LARGE_DAY)
    for name in ("ingest", "sessionize", "validate"):
        yield step(large, name, day)


def prepare(home: Path, num_days: int, rows: int) -> list[date]:
    """The raw log, made unless it is there, and an empty store."""
    shutil.rmtree(home / "store", ignore_errors=True)
    made = home / f"made-{num_days}-{rows}"
    if not made.exists():  # by another process: what this one holds would count as what its children hold
        script = Path(__file__).with_name("synthetic_log.py")
        subprocess.run([sys.executable, script, home, "--days", str(num_days), "--rows", str(rows)], check=True)
        made.touch()
    return days_between(FIRST_DAY, FIRST_DAY + (num_days - 1) * ONE_DAY)


def step(home: Path, name: str, days: list[date]) -> Measured:
    """A step of nightjar over some days, one after the other in one process, as its user runs it."""
    site = home / "site.yaml"
    command = [str(Path(sys.executable).with_name("nightjar")), name, "--site", str(site)]
    took = run("", 0, [*command, "--from", str(days[0]), "--to", str(days[-1])], home)
    facts = (
        open_store(load_site(site, PipelineSite, home)).scan(DAYS).filter(pl.col("event_date").is_in(days)).collect()
    )
    counted = ("num_events", "num_duplicates", "num_rejected") if name == "ingest" else ("num_events",)
    what = f"nightjar {name}, {len(days)} day{'s' if len(days) > 1 else ''}"
    return replace(took, what=what, rows=int(sum(facts[column].sum() for column in counted)))


def run(what: str, rows: int, command: list[str], home: Path | None = None) -> Measured:
    """A process of its own, from its start to its end."""
    env = os.environ | ({"NIGHTJAR_HOME": str(home)} if home else {})
    started = time.monotonic()
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed with status {status}")
    seconds = time.monotonic() - started
    return Measured(what, rows, seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * MEMORY_UNIT / 1e9)


def export_events(folder: Path) -> None:
    """The same events as one plain Parquet file, for those who know no Delta."""
    folder.mkdir(exist_ok=True)
    events = pl.scan_delta(str(folder.parent / "store" / "events")).select("visitor", "item_id", "occurred_at")
    events.sink_parquet(folder / "events.parquet")


def bare_polars(folder: Path) -> None:
    """Events into hash buckets, then the number of the session by windows, a bucket at a time."""
    buckets = folder / "buckets"
    shutil.rmtree(buckets, ignore_errors=True)
    events = pl.scan_parquet(folder / "events.parquet")
    hashed = events.with_columns(bucket=pl.col("visitor").hash(0) % BARE_BUCKETS)
    hashed.sink_parquet(pl.PartitionBy(buckets, key="bucket", include_key=False), mkdir=True)
    for bucket in range(BARE_BUCKETS):
        rows = pl.scan_parquet(buckets / f"bucket={bucket}" / "*.parquet")
        silence = pl.col("occurred_at") - pl.col("occurred_at").shift(1).over("visitor", order_by="occurred_at")
        is_new = (silence > pl.duration(seconds=GAP_SECONDS)).fill_null(True)
        number = pl.col("is_new").cast(pl.UInt32).cum_sum().over("visitor", order_by="occurred_at")
        rows.with_columns(is_new=is_new).with_columns(session=number).sink_parquet(
            folder / f"sessions-{bucket}.parquet"
        )


def bare_duckdb(folder: Path) -> None:
    """The same by SQL windows, in memory as large as our own budget."""
    import duckdb

    database = duckdb.connect(config={"threads": os.cpu_count(), "memory_limit": "2GB", "temp_directory": str(folder)})
    database.execute(f"""
        copy (
            select *, sum(is_new) over (partition by visitor order by occurred_at) as session
            from (
                select *, coalesce(occurred_at - lag(occurred_at) over (partition by visitor order by occurred_at)
                    > interval {GAP_SECONDS} seconds, true)::int as is_new
                from read_parquet('{folder / "events.parquet"}')
            )
        ) to '{folder / "sessions.parquet"}'
    """)


CHILDREN = {"export": export_events, "Polars": bare_polars, "DuckDB": bare_duckdb}

if __name__ == "__main__":
    main()
