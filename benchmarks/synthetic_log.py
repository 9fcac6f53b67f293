"""A large made-up log for benchmarks: many users, few clicks each, and every fault that ingest knows.

    python benchmarks/synthetic_log.py HOME --days 10 --rows 5000000    # writes raw logs and site.yaml under HOME

5 M users and 100 k items by default; sessions of about four events, popular items first (Zipf), visits over midnight.
Some rows come a day late, come twice, or are broken; a few visitors are bots. Rows are about 70 bytes:

    user_id,session_id,item_id,time,event,device
    u3190221,s0024a71f3,i000417,2026-03-01T00:00:00.345Z,view,phone

The same arguments give the same bytes: each day is drawn from a seed of its own.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import yaml

FIRST_DAY = date(2026, 3, 1)
MS_OF_DAY = 86_400_000
COLUMNS = ("user_id", "session_id", "item_id", "time", "event", "device")
EVENTS, DEVICES = ("view", "cart", "purchase"), ("phone", "desktop", "tablet")


@dataclass(frozen=True, kw_only=True)
class LogShape:
    """How large a log is and what it is made of; shares are of all rows of a day."""

    rows: int = 5_000_000
    """Rows a day."""
    users: int = 5_000_000
    items: int = 100_000
    events_per_session: float = 4.0
    files_per_day: int = 4
    seed: int = 1
    late: float = 0.002
    """Rows that come in the next day's files."""
    twice: float = 0.002
    """Rows that stand twice."""
    broken: float = 0.001
    """Rows without an item, with no time, or of an unknown type, by turns."""
    ragged: float = 0.0
    """Rows with a field too many."""
    bots: int = 3
    """Visitors with 2,000 clicks in a day, one every few seconds."""


def write_log(home: Path, num_days: int, shape: LogShape | None = None) -> list[date]:
    """Write `raw/events-<day>-<part>.csv.gz`, `raw/items.csv` and `site.yaml` under `home`; return the days."""
    shape = shape or LogShape()
    (home / "raw").mkdir(parents=True, exist_ok=True)
    items = pl.DataFrame({"item": np.arange(shape.items)}).select(item_id=item_id(), category=pl.col("item") % 50)
    items.write_csv(home / "raw/items.csv")
    write_site(home)
    days = [FIRST_DAY + timedelta(days=n) for n in range(num_days)]
    for day, rows in zip(days, draw_days(num_days, shape), strict=True):
        size = -(-rows.height // shape.files_per_day)
        for part in range(shape.files_per_day):
            lines(rows.slice(part * size, size)).write_csv(
                home / f"raw/events-{day}-{part}.csv.gz",
                include_header=False,
                quote_style="never",
                compression="gzip",
                compression_level=4,
            )
    return days


def write_site(home: Path, **changes: object) -> Path:
    """A site file that reads the log with every rule on; `changes` replace its sections."""
    site: dict[str, object] = {
        "name": "synthetic",
        "store": "store",
        "buckets": 32,
        "source": {
            "events": "raw/events-{date}-*.csv.gz",
            "columns": {"user_id": "user_id", "item_id": "item_id", "occurred_at": "time"},
            "event_type": {"column": "event", "map": dict(zip(EVENTS, EVENTS, strict=True))},
            "context": ["device"],
            "lateness": "2d",
            "bots": {
                "events_per_day": 1000,
                "events_per_minute": 60,
                "distinct_items_share": 0.95,
                "distinct_items_from": 500,
                "user_agent": {"column": "device", "pattern": "(?i)bot|crawler|spider"},
            },
        },
        "items": {
            "path": "raw/items.csv",
            "columns": {"item_id": "item_id", "category": "category"},
            "unknown": "reject",
        },
    }
    path = home / "site.yaml"
    path.write_text(yaml.safe_dump(site | changes, sort_keys=False))
    return path


def draw_days(num_days: int, shape: LogShape) -> Iterator[pl.DataFrame]:
    """Per day the rows of its files, in order of time: user, session, item, ms (since 1970), event, device, fault."""
    over_midnight = late = draw_sessions(0, shape).clear()
    for number in range(num_days):
        rng = np.random.default_rng([shape.seed, number, 1])
        rows = pl.concat([over_midnight, draw_sessions(number, shape), draw_bots(number, shape)])
        end = day_start(number) + MS_OF_DAY
        over_midnight, rows = rows.filter(pl.col("ms") >= end), rows.filter(pl.col("ms") < end)
        is_late = pl.Series(rng.random(rows.height) < shape.late)
        again = rows.sample(int(shape.rows * shape.twice), seed=shape.seed + number)
        told = pl.concat([rows.filter(~is_late), again, late])
        late = rows.filter(is_late)
        yield told.sort("ms", "user", "item", "session").with_columns(fault=draw_faults(rng, told.height, shape))


def day_start(number: int) -> int:
    """The first millisecond of a day since 1970."""
    start = datetime.combine(FIRST_DAY, time(), UTC) + timedelta(days=number)
    return int(start.timestamp()) * 1000


def draw_sessions(number: int, shape: LogShape) -> pl.DataFrame:
    """The events of all visits that begin on a day; the last ones go on after midnight."""
    rng = np.random.default_rng([shape.seed, number, 0])
    num_sessions = int(shape.rows / shape.events_per_session)
    lengths = rng.geometric(1 / shape.events_per_session, num_sessions)
    num_rows = int(lengths.sum())
    starts = day_start(number) + rng.integers(0, MS_OF_DAY, num_sessions)
    pauses = rng.exponential(60_000, num_rows).astype(np.int64)
    firsts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    pauses[firsts] = 0
    waited = np.cumsum(pauses)
    return pl.DataFrame(
        {
            "user": np.repeat(rng.integers(0, shape.users, num_sessions), lengths),
            "session": np.repeat(np.arange(num_sessions) + number * num_sessions, lengths),
            "item": draw_items(rng, num_rows, shape),
            "ms": np.repeat(starts - waited[firsts], lengths) + waited,
            "event": rng.choice(3, num_rows, p=[0.9, 0.08, 0.02]).astype(np.int8),
            "device": np.repeat(rng.choice(3, num_sessions, p=[0.6, 0.3, 0.1]).astype(np.int8), lengths),
        }
    )


def draw_items(rng: np.random.Generator, number: int, shape: LogShape) -> np.ndarray:
    """Items, the popular ones first: the density of a rank r falls like 1 / r."""
    return (np.exp(rng.random(number) * np.log(shape.items + 1)) - 1).astype(np.int64).clip(0, shape.items - 1)


def draw_bots(number: int, shape: LogShape) -> pl.DataFrame:
    """Visitors that click every few seconds."""
    rng = np.random.default_rng([shape.seed, number, 2])
    num_each = 2_000
    num_rows = shape.bots * num_each
    return pl.DataFrame(
        {
            "user": np.repeat(shape.users + np.arange(shape.bots), num_each),
            "session": np.repeat(-1 - np.arange(shape.bots), num_each),
            "item": rng.integers(0, shape.items, num_rows),
            "ms": day_start(number)
            + np.tile(np.arange(num_each), shape.bots) * 3_000
            + rng.integers(0, 3_000, num_rows),
            "event": np.zeros(num_rows, np.int8),
            "device": np.ones(num_rows, np.int8),
        }
    )


def draw_faults(rng: np.random.Generator, number: int, shape: LogShape) -> pl.Series:
    """0 for a good row, 1 to 3 for a broken one, 4 for a ragged one."""
    drawn = rng.random(number)
    kind = np.where(drawn < shape.broken, 1 + np.arange(number) % 3, 0)
    return pl.Series(np.where(drawn > 1 - shape.ragged, 4, kind).astype(np.int8))


def item_id() -> pl.Expr:
    """An item as the log names it."""
    return pl.format("i{}", pl.col("item").cast(pl.String).str.zfill(6)).alias("item_id")


def lines(rows: pl.DataFrame) -> pl.DataFrame:
    """One text column: the header, then a line for each row."""
    fault = pl.col("fault")
    fields = [
        pl.format("u{}", pl.col("user").cast(pl.String).str.zfill(7)),
        pl.format("s{}", pl.col("session").cast(pl.String).str.zfill(9)),
        pl.when(fault != 1).then(item_id()).otherwise(pl.lit("")),
        pl.when(fault != 2)
        .then(pl.from_epoch("ms", time_unit="ms").dt.strftime("%Y-%m-%dT%H:%M:%S%.3fZ"))
        .otherwise(pl.lit("soon")),
        pl.when(fault != 3).then(word("event", EVENTS)).otherwise(pl.lit("hover")),
        word("device", DEVICES),
    ]
    line = pl.concat_str(fields, separator=",")
    told = rows.select(line=pl.when(fault == 4).then(line + ",more").otherwise(line))
    return pl.concat([pl.DataFrame({"line": [",".join(COLUMNS)]}), told])


def word(column: str, words: tuple[str, ...]) -> pl.Expr:
    """A small number as one of some words."""
    return pl.col(column).replace_strict(dict(enumerate(words)), return_dtype=pl.String)


def main() -> None:
    """Write a log where the arguments say."""
    parser = argparse.ArgumentParser(description="Write a large made-up log for benchmarks.")
    parser.add_argument("home", type=Path)
    parser.add_argument("--days", type=int, default=10)
    parser.add_argument("--rows", type=int, default=LogShape.rows, help="rows a day")
    parser.add_argument("--users", type=int, default=LogShape.users)
    parser.add_argument("--files", type=int, default=LogShape.files_per_day, help="files a day")
    parser.add_argument("--ragged", type=float, default=LogShape.ragged, help="share of rows with a field too many")
    told = parser.parse_args()
    shape = LogShape(rows=told.rows, users=told.users, files_per_day=told.files, ragged=told.ragged)
    days = write_log(told.home, told.days, shape)
    print(f"{told.days} days of {told.rows} rows from {days[0]} to {days[-1]} under {told.home}")


if __name__ == "__main__":
    main()
