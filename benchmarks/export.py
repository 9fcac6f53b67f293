"""Seconds and memory of the export, beside the bare work that no export can do without.

    python benchmarks/export.py HOME [--users 1000000] [--items 100000] [--dims 128] [--top 100] [--buckets 32]

Makes a store in HOME, unless one is there: users who wander through a few of many topics for a week, and a GRU that
has learnt from some of them. Then it measures, each in a process of its own:

    export        `nightjar export`, as a user would
    kernels       the same encoding, the same exact search (the same users together, as deep), the same rows written
                  with sink_parquet, and nothing else
    approximate   the search part with the index that `--index` names, and its recall
    read          one user's list, warm

Prints a line of JSON for each and a table at the end.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

DAYS = [date(2026, 3, 1) + timedelta(days=n) for n in range(7)]
LAST = DAYS[-1]
ITEMS_A_TOPIC = 100
EVENTS_A_USER = 12
CHUNK_USERS = 250_000
TRAINING_SESSIONS = 200_000
READS = 200


def main() -> None:
    """Make the store, measure, print."""
    told = arguments()
    if told.part:
        print(json.dumps({"part": told.part} | PARTS[told.part](told)))
        return
    if not (told.home / "mlflow.db").exists():
        run_part("store")  # in a process of its own, too: the peak of a child is never below that of its parent
    results = []
    for part in told.only or list(PARTS)[1:]:
        results.append(run_part(part))
        print(json.dumps(results[-1]), flush=True)
    print(table(results))


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description="Measure the export.")
    parser.add_argument("home", type=Path)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--dims", type=int, default=128)
    parser.add_argument("--top", type=int, default=100)
    parser.add_argument("--buckets", type=int, default=32)
    parser.add_argument("--index", help="the approximate index; default: that of `export.index: auto` for many items")
    parser.add_argument("--only", action="append", choices=list(PARTS), help="measure this part only; repeat it")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    return parser.parse_args()


def run_part(part: str) -> dict[str, Any]:
    """A part in a process of its own: what it says, its seconds and its peak memory (GB)."""
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, *sys.argv, "--part", part], stdout=subprocess.PIPE, text=True)
    out = process.stdout.read() if process.stdout else ""
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{part} failed")
    peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    seconds = round(time.monotonic() - started, 1)
    return json.loads(out.splitlines()[-1]) | {"process_seconds": seconds, "peak_gb": round(peak / 1e9, 2)}


def open_site(told: argparse.Namespace) -> Any:
    """The site and its store."""
    import nightjar
    from pipeline.publish import open_store

    site = nightjar.load_site(told.home / "site.yaml", nightjar.Site, told.home)
    return site, open_store(site)


def make_store(told: argparse.Namespace) -> dict[str, Any]:
    """Events, sessions, items and a promoted model."""
    from pipeline.days import present_content, read_days, update_days
    from pipeline.sessionize import sessionize_stale

    source = {
        "events": "raw/events-{date}.csv",
        "columns": {"user_id": "user", "item_id": "item", "occurred_at": "time"},
        "event_type": {"column": "event", "map": {"view": "view", "purchase": "purchase"}},
    }
    facts = {
        "name": "large",
        "store": "store",
        "buckets": told.buckets,
        "source": source,
        "export": {"top_n": told.top, "related": None, "index": "exact", "checks": {"fallback_share": 1}},
    }
    told.home.mkdir(parents=True, exist_ok=True)
    (told.home / "site.yaml").write_text(yaml.safe_dump(facts))
    site, store = open_site(told)
    make_events(told, site, store)
    sessionize_stale(site, store, LAST)
    days = read_days(store)
    update_days(store, days.select("event_date", validated_content=present_content(), verdict=pl.lit("passed")))
    make_model(told, site, store)
    return {"users": told.users, "items": told.items}


def make_events(told: argparse.Namespace, site: Any, store: Any) -> None:
    """Users' events of a week, their days and their items."""
    from pipeline.days import update_days
    from pipeline.ids import content_digest
    from pipeline.tables import ITEMS, events_table

    table = events_table([])
    staged: list[Any] = []
    digests = []
    for start in range(0, told.users, CHUNK_USERS):
        events = draw_events(start, min(CHUNK_USERS, told.users - start), told)
        staged += store.stage(table, events)
        digests.append(events.select("event_date", "event_id"))
    store.commit(table, staged, {"event_date": DAYS})
    contents = (
        pl.concat(digests)
        .group_by("event_date")
        .agg(events_content=content_digest(pl.col("event_id")), num_events=pl.len().cast(pl.Int64))
    )
    update_days(store, contents.with_columns(num_duplicates=pl.lit(0, pl.Int64), num_rejected=pl.lit(0, pl.Int64)))
    items = pl.DataFrame({"item": np.arange(told.items)}).select(
        snapshot_date=pl.lit(DAYS[0]), item_id=pl.format("item-{}", "item"), first_seen=pl.lit(DAYS[0])
    )
    store.replace(ITEMS, pl.concat([ITEMS.empty(), items], how="diagonal_relaxed"), {"snapshot_date": [DAYS[0]]})


def draw_events(start: int, number: int, told: argparse.Namespace) -> pl.DataFrame:
    """Rows for `events`: each user has two topics, and in each the first items are had most."""
    from pipeline.ids import stable_id, user_bucket

    rng = np.random.default_rng([1, start])
    num_topics = max(2, told.items // ITEMS_A_TOPIC)
    counts = 1 + rng.geometric(1 / (EVENTS_A_USER - 1), number)
    user = np.repeat(np.arange(number), counts)
    topics = rng.integers(0, num_topics, (number, 2))
    topic = topics[user, (rng.random(len(user)) < 0.3).astype(int)]
    in_topic = (np.exp(rng.random(len(user)) * np.log(ITEMS_A_TOPIC)) - 1).astype(np.int64)
    day = rng.integers(0, len(DAYS), number)[user]
    second = rng.integers(0, 70_000, number)[user] + np.cumsum(rng.integers(5, 60, len(user))) % 7000
    drawn = pl.DataFrame(
        {"user": user + start, "item": (topic * ITEMS_A_TOPIC + in_topic) % told.items, "day": day, "s": second}
    )
    events = drawn.select(
        event_date=pl.lit(DAYS[0]) + pl.duration(days="day"),
        visitor=pl.format("user-{}", "user"),
        user_id=pl.format("user-{}", "user"),
        item_id=pl.format("item-{}", "item"),
        event_type=pl.lit("view"),
        occurred_at=pl.lit(DAYS[0]).cast(pl.Datetime("us", "UTC")) + pl.duration(days="day", seconds="s"),
        given_session_id=pl.lit(None, pl.String),
        source_file=pl.lit("events.csv"),
        ingested_run=pl.lit("benchmark"),
    )
    return events.with_columns(
        event_id=stable_id(pl.int_range(pl.len()) + start * 1000, pl.col("visitor"), pl.col("item_id")),
        user_bucket=user_bucket(pl.col("visitor"), told.buckets),
    )


def make_model(told: argparse.Namespace, site: Any, store: Any) -> None:
    """A GRU after one pass through some sessions, registered as if it had been promoted."""
    from features.sequences import encode_sessions
    from features.vocabulary import Vocabulary
    from pipeline.dates import day_end
    from pipeline.tables import sessions_table
    from training.bundle import Bundle, build
    from training.fit import fit
    from training.recipes import SequenceRecipe
    from training.tracking import Tracking

    ids = [f"item-{n}" for n in range(told.items)]
    vocabulary = Vocabulary(pl.DataFrame({"item_code": np.arange(1, told.items + 1), "item_id": ids, "num_events": 1}))
    sessions = store.scan(sessions_table([])).head(TRAINING_SESSIONS).collect()
    recipe = SequenceRecipe(
        encoder="gru", hidden_size=told.dims, num_negatives=512, in_batch_negatives=True, batch_size=1024
    )
    model: Any = build(recipe, vocabulary.num_codes)
    with tempfile.TemporaryDirectory() as folder:
        fit(model, encode_sessions(sessions, vocabulary), recipe, 1, Path(folder))
    as_of = int(day_end(LAST, "UTC").timestamp() * 1e6)
    bundle = Bundle(model.eval(), vocabulary, "gru", recipe, LAST, as_of)
    tracking = Tracking(site)
    tags = {"night": str(LAST), "kind": "refit", "promoted": "true"}
    with tracking.run(LAST, "benchmark", {"recipe": "gru", "kind": "refit", "seed": "1"}) as run_id:
        tracking.register(bundle, run_id, tags)


def measure_export(told: argparse.Namespace) -> dict[str, Any]:
    """The whole step, without the start of the process."""
    site, store = open_site(told)
    from serving_export.export import export

    started, worked = time.monotonic(), time.process_time()
    counts = export(site, store, LAST)
    return {
        "seconds": round(time.monotonic() - started, 1),
        "core_seconds": round(time.process_time() - worked, 1),
        "users": counts["users"],
        "rows": counts["rows"],
    }


class Prepared:
    """What the kernels work on: every bucket's sequences and how deep each user is searched."""

    def __init__(self, told: argparse.Namespace) -> None:
        from pipeline.catalogue import latest_items
        from serving_export.assortment import make_assortment
        from serving_export.export import served_model
        from serving_export.scoring import item_vectors

        self.site, self.store = open_site(told)
        served = served_model(self.site, LAST)
        if served is None:
            raise SystemExit("there is no model")
        self.bundle, self.channel = served.bundle, self.site.export.all_channels()["home"]
        catalogue = latest_items(self.store, LAST)
        self.assortment = make_assortment(self.bundle.vocabulary, catalogue)
        self.vectors_ID = item_vectors(self.bundle)

    def slabs(self, bucket: int) -> Any:
        """Sequences and depths of a bucket, as many users at a time as the export takes."""
        from serving_export.bucket_users import read_bucket
        from serving_export.list_maker import USERS_IN_SLAB

        seen = self.channel.seen
        users = read_bucket(self.site, self.store, LAST, bucket, self.assortment, [seen])
        depth = users.seen[seen].counts + self.channel.top_n
        for start in range(0, users.size, USERS_IN_SLAB):
            stop = min(users.size, start + USERS_IN_SLAB)
            yield users.sequences(start, stop, self.assortment.num_known, by_user=False), depth[start:stop]


def measure_kernels(told: argparse.Namespace) -> dict[str, Any]:
    """Seconds of encoding, of searching and of writing."""
    import faiss
    import torch

    from serving_export.filling import alike
    from serving_export.list_maker import SEARCHED_AT_ONCE
    from training.batch import gather

    prepared = Prepared(told)
    index = faiss.IndexFlatIP(prepared.vectors_ID.shape[1])
    index.add(prepared.vectors_ID[1:])
    encode = search = write = worked = 0.0
    for bucket in range(told.buckets):
        for sequences, depth in prepared.slabs(bucket):
            started, before = time.monotonic(), time.process_time()
            with torch.inference_mode():
                parts = [
                    prepared.bundle.recommender.session_vectors(gather(sequences, chunk)).numpy()
                    for chunk in np.array_split(np.arange(len(depth)), -(-len(depth) // 1024))
                ]
            encode += time.monotonic() - started
            vectors_UD = np.concatenate(parts)
            started = time.monotonic()
            for part in alike(depth, SEARCHED_AT_ONCE):
                index.search(vectors_UD[part], int(depth[part[-1]]))
            search += time.monotonic() - started
            worked += time.process_time() - before
    with tempfile.TemporaryDirectory(dir=told.home) as folder:
        for n, file in enumerate(release_files(prepared.store)):
            rows = pl.read_parquet(file, hive_partitioning=False)
            started, before = time.monotonic(), time.process_time()
            rows.lazy().sink_parquet(f"{folder}/{n}.parquet", compression="zstd", compression_level=1)
            write += time.monotonic() - started
            worked += time.process_time() - before
            Path(f"{folder}/{n}.parquet").unlink()
    told_parts = {
        "encode": encode,
        "search": search,
        "write": write,
        "seconds": encode + search + write,
        "core_seconds": worked,
    }
    return {name: round(seconds, 1) for name, seconds in told_parts.items()}


def release_files(store: Any) -> list[str]:
    """The files of the lists."""
    from serving_export.tables import RECOMMENDATIONS

    opened = store.open(RECOMMENDATIONS)
    return [] if opened is None else list(opened.file_uris())


def measure_approximate(told: argparse.Namespace) -> dict[str, Any]:
    """The search of some users with the approximate index beside the exact one."""
    from serving_export.item_index import approximate, choose_index, exact_index
    from serving_export.scoring import session_vectors

    prepared = Prepared(told)
    vectors_UD = np.concatenate(
        [
            session_vectors(prepared.bundle, sequences, prepared.vectors_ID.shape[1])
            for sequences, _ in prepared.slabs(0)
        ]
    )
    codes = np.arange(1, told.items + 1)
    started = time.monotonic()
    factory = told.index or approximate(told.items, vectors_UD.shape[1])
    index = choose_index(prepared.vectors_ID, codes, factory, 0.99, vectors_UD[:1000], told.top)
    built = time.monotonic() - started
    seconds = []
    for searched in (exact_index(prepared.vectors_ID, codes), index):
        started = time.monotonic()
        for start in range(0, len(vectors_UD), 4096):
            searched.search(vectors_UD[start : start + 4096], told.top)
        seconds.append(time.monotonic() - started)
    return {
        "index": index.factory,
        "effort": index.effort,
        "recall": round(index.recall, 4),
        "build": round(built, 1),
        "users": len(vectors_UD),
        "exact": round(seconds[0], 2),
        "seconds": round(seconds[1], 2),
        "times_faster": round(seconds[0] / seconds[1], 2),
    }


def measure_read(told: argparse.Namespace) -> dict[str, Any]:
    """One user's list: the median and the worst of a hundred after some to warm up (ms)."""
    from serving_export.reader import Recommendations

    _, store = open_site(told)
    lists = Recommendations(store.root)
    rng = np.random.default_rng(2)
    took = []
    for user in rng.integers(0, told.users, READS):
        started = time.monotonic()
        lists.user(f"user-{user}")
        took.append((time.monotonic() - started) * 1000)
    warm = sorted(took[READS // 2 :])
    return {"median_ms": round(warm[len(warm) // 2], 1), "p95_ms": round(warm[int(len(warm) * 0.95)], 1)}


def table(results: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    by_part = {result["part"]: result for result in results}
    lines = ["| part | seconds | peak GB | |", "| --- | --: | --: | --- |"]
    for part, result in by_part.items():
        rest = {k: v for k, v in result.items() if k not in ("part", "seconds", "peak_gb", "process_seconds")}
        what = ", ".join(f"{name} {value}" for name, value in rest.items())
        lines.append(f"| {part} | {result.get('seconds', '')} | {result['peak_gb']} | {what} |")
    if {"export", "kernels"} <= set(by_part):
        ratio, of_cores = (by_part["export"][n] / by_part["kernels"][n] for n in ("seconds", "core_seconds"))
        lines.append(
            f"\nThe export takes {ratio:.2f} times the seconds of its kernels, {of_cores:.2f} times the core-seconds."
        )
    return "\n".join(lines)


PARTS = {
    "store": make_store,
    "export": measure_export,
    "kernels": measure_kernels,
    "approximate": measure_approximate,
    "read": measure_read,
}

if __name__ == "__main__":
    main()
