"""What each ingredient brings on news: GRU4Rec at its authors' settings, and what conf/globo.yaml makes of it.

    python benchmarks/news.py HOME [--day 2017-10-10] [--seeds 1 2 3] [--models LABEL …]

HOME is one in which Globo's days are validated, as `benchmarks/models.py` leaves it. Each row adds one thing to the row
before; the last is what the site file says. The surge is no part of training, so its row is the same training as the
one before it. Printed are means over seeds ± their standard deviation. What is measured is kept in HOME/news and not
measured again.
"""

import argparse
import json
import statistics
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from histories import Model
from models import ROOT

from features.sequences import encode_sessions
from features.vocabulary import learn_vocabulary
from features.window import sessions_until, window_days
from nightjar import Site, load_site
from pipeline.dates import ONE_DAY
from pipeline.publish import open_store
from training.bundle import Bundle
from training.measure import HeldOutDay, measure_bundle, read_held_out_day
from training.models.surge import WithSurge
from training.recipes import RECIPES, find_recipe, override, reads_properties
from training.train import define_properties, make, microseconds_at_end
from training.units import training_units

Figures = dict[str, float]
METRICS = {
    "warm/next_recall_at_20": "recall@20",
    "warm/next_mrr_at_20": "mrr@20",
    "list/any_recall_at_20": "list recall@20",
}
NEITHER: dict[str, Any] = {"context": [], "surge_half_life": None}
RECENT, AUTHORS, OWN, CONTEXT, SURGE = (
    "recent_popularity",
    "gru4rec, its authors' settings",
    "every item a negative, sessions whole",
    "+ context",
    "+ surge",
)
ENSEMBLE = "ensemble"
MODELS: dict[str, Model | None] = {
    RECENT: (RECENT, {}),
    AUTHORS: ("gru4rec", {}),
    OWN: ("gru4rec", NEITHER),
    CONTEXT: None,
    SURGE: ("gru4rec", {}),
    ENSEMBLE: (ENSEMBLE, {}),
}
"""Label -> a recipe of the site, and what is changed of it; None: measured with the row after it."""


def main() -> None:
    """Measure what is not measured yet, then print Markdown."""
    parser = argparse.ArgumentParser(description="Measure what each ingredient brings on news.")
    parser.add_argument("home", type=Path)
    parser.add_argument("--day", type=date.fromisoformat, default=date(2017, 10, 10))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--models", nargs="+", default=[label for label, model in MODELS.items() if model])
    told = parser.parse_args()
    site = load_site(ROOT / "conf" / "globo.yaml", Site, told.home.resolve())
    folder = told.home / "news" / str(told.day)
    folder.mkdir(parents=True, exist_ok=True)
    held_out = read_held_out_day(site, open_store(site), told.day)
    for label in told.models:
        for seed in [1] if label == RECENT else told.seeds:
            if not (folder / f"{label} {seed}.json").exists():
                for name, figures in train_and_test(site, held_out, label, seed).items():
                    sys.stderr.write(f"{name}, seed {seed}: {figures}\n")
                    (folder / f"{name} {seed}.json").write_text(json.dumps(figures))
    print("| recipe | seeds | " + " | ".join(METRICS.values()) + " | training core-s |\n| --- |" + " --: |" * 5)
    for label in MODELS:
        runs = [json.loads(file.read_text()) for file in sorted(folder.glob(f"{label} ?.json"))]
        if runs:
            cells = [told_of([run[name] for run in runs]) for name in METRICS]
            seconds = statistics.fmean(run["core_seconds"] for run in runs)
            print(f"| {label} | {len(runs)} | {' | '.join(cells)} | {seconds:.0f} |")


def train_and_test(site: Site, held_out: HeldOutDay, label: str, seed: int) -> dict[str, Figures]:
    """Label -> metrics and core seconds of one training; two labels where the surge can be left out afterwards."""
    model = MODELS[label]
    assert model is not None
    name, fields = model
    recipes = site.training.recipes | {"sasrec": site.training.recipes["gru4rec"] | {"learning_rate": 0.05}}
    recipes |= {ENSEMBLE: {"members": {"gru4rec": 0.7, "sasrec": 0.3}}}
    training = site.training.model_copy(update={"recipes": recipes})
    recipe = RECIPES[name]() if label == AUTHORS else find_recipe(name, training)
    recipe = override(name, recipe, fields | {"seed": seed})
    store, last = open_store(site), held_out.day - ONE_DAY
    sessions = sessions_until(site, store, window_days(site, store, last), last)
    vocabulary = learn_vocabulary(sessions, site.window.min_item_count)
    if reads_properties(recipe):
        vocabulary = define_properties(site, store, vocabulary, sessions, last)
    sequences = training_units(recipe, encode_sessions(sessions, vocabulary).known_only())
    as_of, worked = microseconds_at_end(site, last), time.process_time()
    torch.manual_seed(seed)
    fitted, _ = make(recipe, vocabulary, sequences, as_of)
    core_seconds = time.process_time() - worked
    tested = {label: fitted} | ({CONTEXT: fitted.model} if label == SURGE and isinstance(fitted, WithSurge) else {})
    found = {}
    for each, recommender in tested.items():
        outcomes = measure_bundle(
            Bundle(recommender, vocabulary, name, recipe, last, as_of), held_out, site.training.metric_ks
        )
        means = outcomes.means()
        found[each] = {metric: means[metric] for metric in METRICS} | {"core_seconds": core_seconds}
    return found


def told_of(values: list[float]) -> str:
    """`0.3012 ±0.0007`: mean and standard deviation of the seeds."""
    mean = f"{statistics.fmean(values):.4f}"
    return f"{mean} ±{statistics.stdev(values):.4f}" if len(values) > 1 else mean


if __name__ == "__main__":
    main()
