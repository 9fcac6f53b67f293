"""The whole way on a real log: time, memory and quality on the Globo.com news log, beside references.

    NIGHTJAR_DATA=…  python benchmarks/globo.py > benchmarks/globo.md

Runs `nightjar run --site conf/globo.yaml --from 2017-10-05 --to 2017-10-10` in a fresh NIGHTJAR_HOME as a user would,
and reads its JSON lines. In the same run, from the same raw files and without nightjar's code, it recomputes the
protocol of the references (targets, items, popularity with a half-life), so that a difference in counting would show.
"""

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from training.report import with_interval

ROOT = Path(__file__).parent.parent
FIRST, LAST = "2017-10-05", "2017-10-10"
START, CUT, END = (datetime(2017, 10, day, tzinfo=UTC) for day in (5, 10, 11))
HALF_LIFE = timedelta(hours=3)
PUBLISHED = {
    "GRU4Rec, its authors' code: 128 units, cross-entropy, logq, 2048 negatives, 5 epochs, 138 s": (0.3025, 0.1099),
    "STAN": (0.287, 0.117),
    "popularity, half-life 3 h": (0.223, 0.103),
}


def main() -> None:
    """Measure, then print Markdown."""
    with tempfile.TemporaryDirectory(prefix="nightjar-benchmark-") as home:
        seconds, gigabytes, lines = run_nightjar(Path(home))
    reference = recompute_protocol(Path(os.environ["NIGHTJAR_DATA"]) / "globo_news" / "clicks")
    print(report(seconds, gigabytes, lines, reference))


def run_nightjar(home: Path) -> tuple[float, float, list[dict[str, Any]]]:
    """Wall seconds, peak resident memory in GB, and the JSON lines of the run."""
    command = [str(Path(sys.executable).with_name("nightjar")), "run", "--site", str(ROOT / "conf" / "globo.yaml")]
    started = time.monotonic()
    ended = subprocess.run(
        [*command, "--from", FIRST, "--to", LAST],
        env=os.environ | {"NIGHTJAR_HOME": str(home)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return time.monotonic() - started, peak / 1e9, [json.loads(line) for line in ended.stdout.splitlines()]


def recompute_protocol(folder: Path) -> dict[str, float]:
    """The references' protocol in plain Polars.

    Training sessions are trimmed at the cut; items with fewer than 5 clicks and sessions of one click are dropped until
    nothing changes; test sessions begin on the day and lose unknown items; every click after the first is a target.
    """
    clicks = (
        pl.scan_csv(folder / "*.csv.gz", infer_schema=False)
        .select(
            session="session_id",
            item="click_article_id",
            at=pl.from_epoch(pl.col("click_timestamp").cast(pl.Int64), time_unit="ms").dt.replace_time_zone("UTC"),
        )
        .with_columns(start=pl.col("at").min().over("session"))
        .sort("session", "at")
        .collect()
    )
    train = clicks.filter(pl.col("start").is_between(START, CUT, closed="left") & (pl.col("at") < CUT))
    while True:
        kept = train.filter(pl.len().over("item") >= 5).filter(pl.len().over("session") >= 2)
        if kept.height == train.height:
            break
        train = kept
    items = train.select("item").unique()
    test = clicks.filter(pl.col("start").is_between(CUT, END, closed="left")).join(items, on="item", how="semi")
    targets = test.filter(pl.int_range(pl.len()).over("session") > 0)
    weight = 0.5 ** ((pl.lit(CUT) - pl.col("at")).dt.total_microseconds() / (HALF_LIFE / timedelta(microseconds=1)))
    ranked = (
        train.group_by("item").agg(score=weight.sum()).select("item", rank=pl.col("score").rank("max", descending=True))
    )
    rank = targets.join(ranked, on="item")["rank"]
    hits = rank.filter(rank <= 20)
    return {
        "items": items.height,
        "targets": targets.height,
        "recall": len(hits) / len(rank),
        "mrr": (1 / hits).sum() / len(rank),
    }


def report(seconds: float, gigabytes: float, lines: list[dict[str, Any]], reference: dict[str, float]) -> str:
    """All that was measured, as Markdown."""
    by_step: dict[str, float] = {}
    for line in lines:
        name = f"{line['step']} {line['recipe']}" if line["step"] == "train" else line["step"]
        by_step[name] = by_step.get(name, 0.0) + line["seconds"]
    promote = next(line for line in lines if line["step"] == "promote")
    counts = promote["metrics"]
    exported = next(line for line in lines if line["step"] == "export")
    ingested = [line for line in lines if line["step"] == "ingest"]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [
        "# Globo.com news log, measured",
        f"`nightjar run --site conf/globo.yaml --from {FIRST} --to {LAST}` in a fresh home; made by "
        f"`python benchmarks/globo.py` on {cores} cores ({platform.machine()}, {platform.system()}), no GPU.",
        "| what | measured | asked |\n| --- | --- | --- |\n"
        f"| wall time | {seconds / 60:.1f} min | under 12 min |\n"
        f"| peak resident memory | {gigabytes:.2f} GB | under 4 GB |\n"
        f"| raw rows, files | {sum(i['rows_read'] for i in ingested):,}, {sum(i['files'] for i in ingested)} | |\n"
        f"| users with a list, rows | {exported['users']:,}, {exported['rows']:,} | every active user |",
        "| step | seconds |\n| --- | --- |\n" + "\n".join(f"| {n} | {s:.1f} |" for n, s in by_step.items()),
        "## Quality: next item, warm protocol, test sessions of 2017-10-10",
        "| model | recall@20 | mrr@20 |\n| --- | --- | --- |\n"
        + "\n".join(quality_row(row) for row in promote["comparison"])
        + "\n| *recomputed here without nightjar:* popularity, half-life 3 h "
        + f"| {reference['recall']:.4f} | {reference['mrr']:.4f} |\n"
        + "\n".join(f"| *reference figures:* {name} | {r:.4f} | {m:.4f} |" for name, (r, m) in PUBLISHED.items()),
        f"Targets: nightjar {counts['warm/num_targets']:,.0f}, recomputed {reference['targets']:,} over "
        f"{reference['items']:,} items. nightjar counts an item's clicks once, the references drop rare items and "
        "short sessions until nothing changes; and nightjar ends a test session with its day. Targets without a known "
        f"item: {counts['all/cold_share']:.1%} of {counts['all/num_targets']:,.0f} in the protocol `all`.",
    ]
    return "\n\n".join(parts)


def quality_row(row: dict[str, Any]) -> str:
    """A model's recall and mrr with half of their 95 % intervals."""
    cells = [with_interval(row, name) for name in ("warm/next_recall_at_20", "warm/next_mrr_at_20")]
    return f"| {row['model']} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
