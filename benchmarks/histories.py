"""What a user's earlier sessions are worth: HRNN beside session models and beside itself with shuffled users.

    python benchmarks/histories.py HOME [--log demo] [--seeds 1 2 3]

HOME is one in which the log's days are validated, as `benchmarks/models.py` leaves it. Every model learns the window
and is tested on the day; the recipes are those of `training/recipes.py` with the fields below. With shuffled users
every session of the window goes to the visitor of another one, in training and as history in the test: everyone has as
many sessions as before, but someone else's. Printed are means by number of earlier sessions and, for three or more, the
paired difference with `gru4rec` and with shuffled users (95 % interval and p over visitors, seeds pooled), and for the
simulated shop what a history is worth to a reader who knows everything but the visitor's mind. What is measured is kept
in HOME/histories and not measured again.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
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
from training.intent_quality import intent_quality
from training.models.base import SessionModel
from training.outcomes import Outcomes, load_outcomes, merge
from training.recipes import MOST_SESSIONS, RECIPES, SequenceRecipe, override, reads_properties
from training.train import define_properties, make, microseconds_at_end
from training.units import training_units

ENTREE = Log("entree_chicago", "Entree Chicago, sessions of January 1999", "1998-07-01", "1999-01-01")
LOGS_HERE = {log.site: log for log in (*LOGS, ENTREE)}
TEST_DAYS = {"entree_chicago": 31}
"""Days that are tested on, where one holds too few sessions; models learn up to the first of them."""
BANDS = ("0", "1", "2", "3_or_more")
METRIC = "next_mrr_at_20"
KEY = b"histories"  # no secret: what it names visitors for stays on this machine
SHUFFLED = "hrnn init, shuffled users"
Model = tuple[str, dict[str, Any]]
"""A recipe, and what is changed of it."""
Measured = tuple[Outcomes, dict[str, float]]
"""What a model's targets ended as; its size, its speed and how good its intents are."""
MODELS: dict[str, Model] = {
    "gru4rec": ("gru4rec", {}),
    "gru": ("gru", {}),
    "hrnn init": ("hrnn", {}),
    "hrnn all": ("hrnn", {"propagate": "all"}),
    "hrnn init, as published": ("hrnn", {"user_to_output": False, "backprop_sessions": 1}),
    SHUFFLED: ("hrnn", {}),
    "stan": ("stan", {}),
    "popularity": ("popularity", {}),
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
    measured, _ = measure_all("Measure what a user's earlier sessions are worth.", MODELS, "histories")
    print("\n".join(report(measured)))


def measure_all(purpose: str, models: dict[str, Model], folder_name: str) -> tuple[dict[str, list[Measured]], Day]:
    """What the command line asks for: each model with each seed, on the day of a log."""
    parser = argparse.ArgumentParser(description=purpose)
    parser.add_argument("home", type=Path)
    parser.add_argument("--log", default="demo", choices=LOGS_HERE)
    parser.add_argument("--day", help="another day to test on, such as one to choose settings on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--models", nargs="+", default=list(models), choices=models)
    told = parser.parse_args()
    torch.set_num_threads(1)
    log = LOGS_HERE[told.log]
    log = replace(log, day=told.day or log.day)
    day = read_day(told.home.resolve(), log)
    folder = told.home / folder_name / f"{log.site} {log.day}"
    folder.mkdir(parents=True, exist_ok=True)
    return {
        label: [measure(day, label, models[label], seed, folder) for seed in told.seeds] for label in told.models
    }, day


def read_day(home: Path, log: Log) -> Day:
    """Sessions of the window, of the test days, and of their visitors before."""
    site = load_site(ROOT / "conf" / f"{log.site}.yaml", Site, home)
    store, day = open_store(site), date.fromisoformat(log.day)
    sessions = sessions_until(site, store, window_days(site, store, day - ONE_DAY), day - ONE_DAY)
    days = [day + n * ONE_DAY for n in range(TEST_DAYS.get(log.site, 1))]
    test = pl.concat([held_out_sessions(site, store, each) for each in days])
    return Day(site, sessions, test, earlier_sessions(site, store, test, day, MOST_SESSIONS), log)


def measure(day: Day, label: str, model: Model, seed: int, folder: Path) -> Measured:
    """A model with a seed, trained and tested unless that was done."""
    outcomes, facts = folder / f"{label} {seed}.parquet", folder / f"{label} {seed}.json"
    if not facts.exists():
        found, told = train_and_test(day, model, seed, is_shuffled=label == SHUFFLED)
        sys.stderr.write(f"{label}, seed {seed}: {found.means()[f'all/{METRIC}']:.4f}, {told['core_seconds']:.0f} s\n")
        found.save(outcomes, KEY)
        facts.write_text(json.dumps(told))
    return load_outcomes(outcomes, KEY), json.loads(facts.read_text())


def train_and_test(day: Day, model: Model, seed: int, is_shuffled: bool) -> Measured:
    """One training and its test; speed counts the wall and the processor, as others may use the machine."""
    name, fields = model
    recipe = override(name, RECIPES[name](), day.log.settings.get(name, {}) | fields | {"seed": seed})
    sessions, earlier, last = day.sessions, day.earlier, date.fromisoformat(day.log.day) - ONE_DAY
    if is_shuffled:
        sessions, earlier = (shuffle_visitors(rows, seed) for rows in (sessions, earlier))
    vocabulary = learn_vocabulary(sessions, day.site.window.min_item_count)
    if reads_properties(recipe):
        vocabulary = define_properties(day.site, open_store(day.site), vocabulary, sessions, last)
    sequences = training_units(recipe, encode_sessions(sessions, vocabulary).known_only())
    as_of = microseconds_at_end(day.site, last)
    started, worked = time.monotonic(), time.process_time()
    fitted, _ = make(recipe, vocabulary, sequences, as_of)
    seconds, core_seconds = time.monotonic() - started, time.process_time() - worked
    bundle = Bundle(fitted, vocabulary, name, recipe, last, as_of)
    outcomes = evaluate_next(bundle, day.test, day.site.training.metric_ks, earlier)
    epochs = recipe.epochs if isinstance(recipe, SequenceRecipe) else 1
    facts = {"targets": epochs * int(sequences.num_targets.sum()), "seconds": seconds, "core_seconds": core_seconds}
    if isinstance(fitted, SessionModel):
        facts["parameters"] = sum(weights.numel() for weights in fitted.parameters())
    return outcomes, facts | intent_quality(bundle, day.test, earlier, max(day.site.training.metric_ks))


def shuffle_visitors(sessions: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Each session with the visitor of another one."""
    return sessions.with_columns(pl.col("visitor").shuffle(seed))


def pool(runs: list[Measured]) -> Outcomes:
    """The outcomes of all seeds as one, summed by visitor."""
    together = merge(outcomes for outcomes, _ in runs)
    sums = pl.exclude("visitor", "protocol").sum()
    return Outcomes(together.rows.group_by("visitor", "protocol", maintain_order=True).agg(sums), together.metrics)


def report(measured: dict[str, list[Measured]]) -> Iterator[str]:
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
