"""What a user's earlier sessions are worth: HRNN beside session models and beside itself with shuffled users.

    python benchmarks/histories.py HOME [--log demo] [--seeds 1 2 3]

HOME is one in which the log's days are validated, as `benchmarks/models.py` leaves it. Every model learns the window
and is tested on the day; the recipes are those of `training/recipes.py` with the fields below. With shuffled users
every session of the window goes to the visitor of another one, in training and as history in the test: everyone has as
many sessions as before, but someone else's. Printed are means by number of earlier sessions and, for three or more, the
paired difference with `gru4rec` and with shuffled users (95 % interval and p over visitors, seeds pooled). What is
measured is kept in HOME/histories and not measured again.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import torch
from models import LOGS, ROOT, Log

from features.sequences import encode_sessions
from features.vocabulary import learn_vocabulary
from features.window import earlier_sessions, held_out_sessions, sessions_until, window_days
from nightjar import Site, load_site
from pipeline.dates import ONE_DAY
from pipeline.publish import open_store
from training.bundle import Bundle
from training.difference import paired_difference
from training.evaluation import evaluate_next
from training.outcomes import Outcomes, load_outcomes, merge
from training.recipes import MOST_SESSIONS, RECIPES, SequenceRecipe, override
from training.train import make, microseconds_at_end
from training.units import training_units

BANDS = ("0", "1", "2", "3_or_more")
METRIC = "next_mrr_at_20"
SHUFFLED = "hrnn init, shuffled users"
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gru4rec": ("gru4rec", {}),
    "gru": ("gru", {}),
    "hrnn init": ("hrnn", {}),
    "hrnn all": ("hrnn", {"propagate": "all"}),
    "hrnn all, gradient through 4 sessions": ("hrnn", {"propagate": "all", "backprop_sessions": 4}),
    "hrnn init, no user dropout": ("hrnn", {"user_dropout": 0}),
    SHUFFLED: ("hrnn", {}),
}


class Day(NamedTuple):
    """What models learn from and are tested on."""

    site: Site
    sessions: pl.DataFrame
    test: pl.DataFrame
    earlier: pl.DataFrame
    log: Log


def main() -> None:
    """Measure what is not measured yet, then print Markdown."""
    parser = argparse.ArgumentParser(description="Measure what a user's earlier sessions are worth.")
    parser.add_argument("home", type=Path)
    parser.add_argument("--log", default="demo", choices=[log.site for log in LOGS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    told = parser.parse_args()
    torch.set_num_threads(1)
    log = next(log for log in LOGS if log.site == told.log)
    day = read_day(told.home.resolve(), log)
    folder = told.home / "histories" / told.log
    folder.mkdir(parents=True, exist_ok=True)
    measured = {label: [measure(day, label, seed, folder) for seed in told.seeds] for label in told.models}
    print("\n".join(report(measured)))


def read_day(home: Path, log: Log) -> Day:
    """Sessions of the window, of the test day, and of its visitors before it."""
    site = load_site(ROOT / "conf" / f"{log.site}.yaml", Site, home)
    store, day = open_store(site), date.fromisoformat(log.day)
    sessions = sessions_until(site, store, window_days(site, store, day - ONE_DAY), day - ONE_DAY)
    test = held_out_sessions(site, store, day)
    return Day(site, sessions, test, earlier_sessions(site, store, test, day, MOST_SESSIONS), log)


def measure(day: Day, label: str, seed: int, folder: Path) -> tuple[Outcomes, dict[str, float]]:
    """Outcomes of a model with a seed, and how fast it learnt."""
    outcomes, speed = folder / f"{label} {seed}.parquet", folder / f"{label} {seed}.json"
    if not speed.exists():
        found, told = train_and_test(day, label, seed)
        found.save(outcomes)
        speed.write_text(json.dumps(told))
    return load_outcomes(outcomes), json.loads(speed.read_text())


def train_and_test(day: Day, label: str, seed: int) -> tuple[Outcomes, dict[str, float]]:
    """One training and its test; speed counts the wall and the processor, as others may use the machine."""
    name, fields = MODELS[label]
    recipe = override(name, RECIPES[name](), day.log.settings.get(name, {}) | fields | {"seed": seed})
    assert isinstance(recipe, SequenceRecipe)
    sessions, earlier = day.sessions, day.earlier
    if label == SHUFFLED:
        sessions, earlier = (shuffle_visitors(rows, seed) for rows in (sessions, earlier))
    vocabulary = learn_vocabulary(sessions, day.site.window.min_item_count)
    sequences = training_units(recipe, encode_sessions(sessions, vocabulary).known_only())
    last = date.fromisoformat(day.log.day) - ONE_DAY
    as_of = microseconds_at_end(day.site, last)
    started, worked = time.monotonic(), time.process_time()
    model, _ = make(recipe, vocabulary, sequences, as_of)
    seconds, core_seconds = time.monotonic() - started, time.process_time() - worked
    bundle = Bundle(model, vocabulary, name, recipe, last, as_of)
    outcomes = evaluate_next(bundle, day.test, day.site.training.metric_ks, earlier)
    means = outcomes.means()
    sys.stderr.write(f"{label}, seed {seed}: {means[f'all/{METRIC}']:.4f}, {core_seconds:.0f} core-seconds\n")
    events = recipe.epochs * int(sequences.num_targets.sum())
    return outcomes, {"targets": events, "seconds": seconds, "core_seconds": core_seconds}


def shuffle_visitors(sessions: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Each session with the visitor of another one."""
    return sessions.with_columns(pl.col("visitor").shuffle(seed))


def pool(runs: list[tuple[Outcomes, dict[str, float]]]) -> Outcomes:
    """The outcomes of all seeds as one, summed by visitor."""
    together = merge(outcomes for outcomes, _ in runs)
    sums = pl.exclude("visitor", "protocol").sum()
    return Outcomes(together.rows.group_by("visitor", "protocol", maintain_order=True).agg(sums), together.metrics)


def report(measured: dict[str, list[tuple[Outcomes, dict[str, float]]]]) -> Iterator[str]:
    """Two tables."""
    pooled = {label: pool(runs) for label, runs in measured.items()}
    yield f"| mrr@20 by earlier sessions | all | {' | '.join(BANDS)} | k targets / core-s |"
    yield "| --- |" + " --: |" * (len(BANDS) + 2)
    for label, outcomes in pooled.items():
        means = outcomes.means()
        cells = [f"{means[f'all/{METRIC}']:.4f}", *(f"{means[f'all_by_history/{b}/{METRIC}']:.4f}" for b in BANDS)]
        targets, seconds = (sum(told[name] for _, told in measured[label]) for name in ("targets", "core_seconds"))
        yield f"| {label} | {' | '.join(cells)} | {targets / seconds / 1000:.1f} |"
    yield ""
    yield "| 3 or more earlier sessions | difference in mrr@20 | 95 % interval | relative | p |"
    yield "| --- | --: | --: | --: | --: |"
    name = f"all_by_history/3_or_more/{METRIC}"
    for label, outcomes in pooled.items():
        for other in ("gru4rec", SHUFFLED):
            if label == other or other not in pooled or "hrnn" not in label:
                continue
            value, low, high, p = paired_difference(outcomes, pooled[other], name)
            share = value / pooled[other].means()[name]
            yield f"| {label} - {other} | {value:+.4f} | {low:+.4f} to {high:+.4f} | {share:+.1%} | {p:.4f} |"


if __name__ == "__main__":
    main()
