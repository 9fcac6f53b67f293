"""All models and baselines beside each other: three logs, three seeds, one protocol, and why the best one wins.

    python benchmarks/models.py HOME

Globo.com's news and Online Retail's gift shop are read from NIGHTJAR_DATA, the simulated shop is made in HOME. Every
recipe is trained with `purpose=report` as the site files fix it; nothing is chosen by what comes out. What was measured
is kept in HOME/measured.jsonl, so that a run that was stopped goes on, and written between the marks of
docs/benchmarks.md. GRU4Rec at its authors' settings is the reference for time and quality in the same run.

Two trainings go side by side, each a process on one core. The variants of gru are one lane, for they share a lock.
"""

import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- models: written by benchmarks/models.py -->", "<!-- end of models -->"
SEEDS = (1, 2, 3)
MODELS = ("gru4rec", "gru", "lstm", "rnn", "narm", "sasrec", "session_retriever")
BASELINES = (
    "popularity",
    "recent_popularity",
    "session_popularity",
    "markov",
    "sequential_rules",
    "item_knn",
    "vs_knn",
    "stan",
)
METRICS = {"warm/next_recall_at_20": "recall@20", "warm/next_mrr_at_20": "mrr@20", "all/next_mrr_at_20": "all mrr@20"}
LIST = "list/any_recall_at_20"
SPEED = ("train_seconds", "train_events_per_second")


@dataclass(frozen=True)
class Log:
    """A log, the day that its models are tested on, and what is told of it."""

    site: str
    title: str
    first: str
    day: str
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Recipe -> its fields, where the site file does not name the recipe."""
    ablation: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    """Label -> a recipe, and what is changed of it."""


NEWS = {"prior_half_life": "6h", "epochs": 3}
RETAIL = {"order": "shuffled", "epochs": 10, "batch_size": 32, "learning_rate": 0.005, "hidden_size": 64}
FULL = {"num_negatives": 0, "negative_alpha": 0, "in_batch_negatives": False}
DRAWN = {"num_negatives": 2048, "negative_alpha": 0.5, "in_batch_negatives": True}
AUTHORS = DRAWN | {"order": "session_parallel", "batch_size": 128, "epochs": 5, "context": [], "surge_half_life": None}
"""Of gru4rec, where the site file says otherwise; benchmarks/news.py measures what the site file says."""
WHY_GRU4REC: dict[str, tuple[str, dict[str, Any]]] = {
    "whole sessions in order of time": ("gru4rec", {"order": "chronological"}),
    "whole sessions shuffled": ("gru4rec", {"order": "shuffled"}),
    "against all items": ("gru4rec", FULL),
    "negatives drawn evenly": ("gru4rec", {"negative_alpha": 0}),
    "no logQ": ("gru4rec", {"logq": 0}),
    "BPR-max": ("gru4rec", {"loss": "bpr_max"}),
    "Adam": ("gru4rec", {"optimiser": "adam", "learning_rate": 0.002}),
    "prior of 6 h": ("gru4rec", {"prior_half_life": "6h"}),
    "no prior": ("gru", {"prior_half_life": None}),
}
WHY_SHOP = {label: change for label, change in WHY_GRU4REC.items() if label != "no prior"}
LOGS = (
    Log(
        *("globo", "Globo.com, sessions of 2017-10-10", "2017-10-05", "2017-10-10"),
        settings={
            "gru4rec": AUTHORS,
            "gru": NEWS,
            "lstm": NEWS,
            "rnn": NEWS,
            "vs_knn": {"remind": False},
            "stan": {"remind": False},
            "intentrec": DRAWN,
        },
        ablation=WHY_GRU4REC,
    ),
    Log(
        *("online_retail", "Online Retail, baskets of 2011-11-22", "2011-09-23", "2011-11-22"),
        settings=dict.fromkeys(("lstm", "rnn", "narm", "session_retriever"), RETAIL) | {"sasrec": RETAIL | DRAWN},
    ),
    Log("demo", "The simulated shop, its seventh day", "2026-03-01", "2026-03-07", ablation=WHY_SHOP),
)


def main() -> None:
    """Measure what is not measured yet, then write the page."""
    if len(sys.argv) != 2:
        sys.exit("python benchmarks/models.py HOME")
    home = Path(sys.argv[1]).resolve()
    home.mkdir(parents=True, exist_ok=True)
    measured = Measured(home / "measured.jsonl")
    for log in LOGS:
        load(home, log)
        lanes = [[run for run in runs(log) if (run.recipe == "gru") is of_gru] for of_gru in (True, False)]
        with ThreadPoolExecutor(len(lanes)) as pool:
            list(pool.map(partial(train_missing, home, log, measured), lanes))
        write_page(measured.rows)


def train_missing(home: Path, log: Log, measured: "Measured", lane: list["Run"]) -> None:
    """One training after the other, those that are not measured yet."""
    for run in lane:
        key = {"log": log.site, "label": run.label, "seed": run.seed}
        if not measured.has(key):
            measured.add(key | train(home, log, run))


class Run(NamedTuple):
    """A training of the table."""

    label: str
    recipe: str
    seed: int
    fields: dict[str, Any]
    """What is changed of the recipe that the site file fixes."""


class Measured:
    """Lines of a file, one a training."""

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, Lock()
        self.rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def has(self, key: dict[str, Any]) -> bool:
        """Whether a training is there."""
        return any(key.items() <= row.items() for row in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        """Keep one."""
        with self.lock, self.path.open("a") as file:
            self.rows.append(row)
            file.write(json.dumps(row) + "\n")


def runs(log: Log) -> Iterator[Run]:
    """All trainings on a log."""
    for name in BASELINES:
        yield Run(name, name, 1, log.settings.get(name, {}))
    for name in MODELS:
        for seed in SEEDS:
            yield Run(name, name, seed, log.settings.get(name, {}))
    for label, (name, fields) in log.ablation.items():
        yield Run(f"{name}, {label}", name, 1, log.settings.get(name, {}) | fields)


def load(home: Path, log: Log) -> None:
    """Raw logs to validated days and training sequences; what is there already stays."""
    if log.site == "demo" and not (home / "raw").exists():
        nightjar(home, log, "simulate", "--from", log.first, "--to", log.day)
    nightjar(home, log, "run", "--data-only", "--from", log.first, "--to", log.day)
    nightjar(home, log, "features", "--date", log.day)


def train(home: Path, log: Log, run: Run) -> dict[str, Any]:
    """One training, in a process of its own, on one core."""
    site = changed_site(home, log, run)
    options = ("--recipe", run.recipe, "--seed", str(run.seed), "--purpose", "report", "--date", log.day)
    line = nightjar(home, log, "train", *options, site=site)[-1]
    return {
        "seconds": line["seconds"],
        "metrics": line["metrics"] | {name: line[name] for name in SPEED if name in line},
    }


def changed_site(home: Path, log: Log, run: Run) -> Path:
    """The log's site file with one recipe that the site may not name, or with some of its fields changed."""
    told = yaml.safe_load((ROOT / "conf" / f"{log.site}.yaml").read_text())
    recipes = told.setdefault("training", {}).setdefault("recipes", {})
    recipes[run.recipe] = (recipes.get(run.recipe) or {}) | run.fields
    path = home / "sites" / f"{log.site}-{run.recipe}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(told))
    return path


def nightjar(home: Path, log: Log, step: str, *options: str, site: Path | None = None) -> list[dict[str, Any]]:
    """Run a command as a user would; its JSON lines."""
    command = [str(Path(sys.executable).with_name("nightjar")), step, "--site", str(site or conf(log)), *options]
    sys.stderr.write(f"nightjar {' '.join(command[1:])}\n")
    env = os.environ | {"NIGHTJAR_HOME": str(home), "OMP_NUM_THREADS": "1"}
    told = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in told.stdout.splitlines()]


def conf(log: Log) -> Path:
    """The site file of a log."""
    return ROOT / "conf" / f"{log.site}.yaml"


def write_page(rows: list[dict[str, Any]]) -> None:
    """Put the tables between the marks of the page."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    parts = [table(log, [row for row in rows if row["log"] == log.site]) for log in LOGS]
    PAGE.write_text(f"{before}{BEGIN}\n\n" + "\n\n".join(filter(None, parts)) + f"\n\n{END}{rest.partition(END)[2]}")


def table(log: Log, rows: list[dict[str, Any]]) -> str:
    """A log's table: mean of the seeds, and how far they lie apart."""
    if not rows:
        return ""
    labels = list(dict.fromkeys(row["label"] for row in rows))
    groups = {label: [row for row in rows if row["label"] == label] for label in labels}
    targets = rows[0]["metrics"]
    lines = [
        f"### {log.title}",
        "",
        f"{targets['warm/num_targets']:,.0f} targets in the protocol `warm`; {targets['all/num_targets']:,.0f} in "
        f"`all`, {targets['all/cold_share']:.1%} of them items that no model knows.",
        "",
        "| recipe | seeds | " + " | ".join([*METRICS.values(), "list recall@20", "training s", "k events/s"]) + " |",
        "| --- | --: |" + " --: |" * (len(METRICS) + 3),
    ]
    best = max(groups, key=lambda label: mean(groups[label], "warm/next_mrr_at_20"))
    for label, group in groups.items():
        cells = [told(group, name) for name in (*METRICS, LIST)]
        seconds, rate = (mean(group, name) for name in SPEED)
        speed = [f"{seconds:.0f}", f"{rate / 1000:.1f}"] if seconds >= 1 else ["", ""]  # baselines only count
        name = f"**{label}**" if label == best else label
        lines.append(f"| {name} | {len(group)} | " + " | ".join([*cells, *speed]) + " |")
    return "\n".join(lines)


def mean(rows: list[dict[str, Any]], name: str) -> float:
    """Of a metric over the seeds that have it; no number where none has."""
    values = [row["metrics"][name] for row in rows if name in row["metrics"]]
    return statistics.fmean(values) if values else math.nan


def told(rows: list[dict[str, Any]], name: str) -> str:
    """`0.3012 ±0.0007`: mean and standard deviation of the seeds; of one run, half of its 95 % interval in brackets."""
    if len(rows) > 1:
        return f"{mean(rows, name):.4f} ±{statistics.stdev(row['metrics'][name] for row in rows):.4f}"
    metrics = rows[0]["metrics"]
    if f"{name}_low" not in metrics:
        return f"{metrics[name]:.4f}" if name in metrics else ""
    return f"{metrics[name]:.4f} (±{(metrics[f'{name}_high'] - metrics[f'{name}_low']) / 2:.4f})"


if __name__ == "__main__":
    main()
