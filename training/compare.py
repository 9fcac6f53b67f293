"""The models of a night beside each other: a row a recipe, its seeds taken together, against the best baseline.

Reads   the runs of the night and their outcomes, from MLflow
Writes  reports/compare-SITE-NIGHT.html, which opens offline; the same page and its pictures with the night's run
"""

import base64
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from mlflow.entities import Run

from pipeline import pages
from pipeline.errors import ConfigurationError
from pipeline.terminal import align, log
from training.difference import Difference, paired_difference
from training.outcomes import Outcomes
from training.pictures import Drawn, models_beside_each_other, recall_by_k, recall_by_slice
from training.settings import TrainingSite
from training.tracking import Tracking

PAGE = Path(__file__).parent / "compare.html"
PICTURES = "pictures"


@dataclass(frozen=True)
class Compared:
    """A recipe on the night's day: the mean over its seeds."""

    recipe: str
    is_baseline: bool
    seeds: tuple[str, ...]
    run_ids: tuple[str, ...]
    outcomes: Outcomes
    """Of the mean model: each visitor's sums, averaged over the seeds."""
    by_seed: Sequence[Mapping[str, float]]
    role: str = ""
    """champion, challenger, or nothing."""
    difference: Difference | None = None
    """From the best baseline, in the site's champion metric; None for that baseline and where there is none."""

    @cached_property
    def numbers(self) -> dict[str, float]:
        """Means and 95 % bounds by name."""
        return self.outcomes.numbers()

    @property
    def name(self) -> str:
        """The recipe; with the number of its seeds, if several."""
        return f"{self.recipe} ({len(self.seeds)} seeds)" if len(self.seeds) > 1 else self.recipe

    def spread(self, metric: str) -> float | None:
        """The standard deviation of a metric over the seeds; None for a single seed."""
        values = [numbers[metric] for numbers in self.by_seed if metric in numbers]
        return float(np.std(values, ddof=1)) if len(values) > 1 else None


def compare(site: TrainingSite, tracking: Tracking, night: date, purpose: str = "nightly") -> list[Compared]:
    """The night's recipes, the best first; ConfigurationError if none has been trained for this purpose."""
    runs = newest_runs(tracking, night, purpose)
    if not runs:
        raise ConfigurationError(
            f"{site.name}: no finished run for {night} with purpose {purpose}. Run `nightjar train` for that day first"
        )
    if len({run.data.tags.get("data_digest") for run in runs}) > 1:
        log.warning("the runs of %s did not all learn from the same data; train those again that are older", night)
    roles = find_roles(tracking, night)
    by_recipe: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_recipe[run.data.tags["recipe"]].append(run)
    metric = site.training.champion_metric
    rows = [one_row(tracking, group, roles) for group in by_recipe.values()]
    rows.sort(key=lambda row: -row.numbers.get(metric, 0.0))
    best = next((row for row in rows if row.is_baseline), None)
    return rows if best is None else [against(row, best, metric) for row in rows]


def newest_runs(tracking: Tracking, night: date, purpose: str) -> list[Run]:
    """The newest finished run of each recipe and seed, in order of both."""
    query = f"tags.night = '{night}' and tags.kind = 'train' and tags.purpose = '{purpose}'"
    query += " and attributes.status = 'FINISHED'"
    found: dict[tuple[str, int], Run] = {}
    for run in tracking.runs(query, ["attributes.start_time DESC"]):
        found.setdefault((run.data.tags["recipe"], int(run.data.tags["seed"])), run)
    return [found[key] for key in sorted(found)]


def find_roles(tracking: Tracking, night: date) -> dict[str, str]:
    """Run ids of the champion and of the night's challenger, with their role."""
    challenger = tracking.night_run(night).data.tags.get("gate.challenger_run", "")
    champion = tracking.champion()
    return {challenger: "challenger"} | ({champion.run_id: "champion"} if champion is not None else {})


def one_row(tracking: Tracking, runs: Sequence[Run], roles: Mapping[str, str]) -> Compared:
    """The runs of a recipe as one row."""
    run_ids = tuple(run.info.run_id for run in runs)
    return Compared(
        runs[0].data.tags["recipe"],
        runs[0].data.params.get("kind") != "sequence",
        tuple(run.data.tags["seed"] for run in runs),
        run_ids,
        mean_outcomes([tracking.read_outcomes(run) for run in runs]),
        [run.data.metrics for run in runs],
        next((roles[run_id] for run_id in run_ids if run_id in roles), ""),
    )


def mean_outcomes(seeds: Sequence[Outcomes]) -> Outcomes:
    """Outcomes of the mean over seeds; all of them were tested on the same targets."""
    rows = pl.concat([outcomes.rows for outcomes in seeds], how="diagonal_relaxed")
    counts = [pl.col(name).first() for name in ("num_targets", "num_cold")]
    sums = [pl.col(name).mean() for name in seeds[0].metrics if name in rows.columns]
    whole = {name: float(np.mean([o.whole[name] for o in seeds if name in o.whole])) for name in seeds[0].whole}
    mean = rows.group_by("visitor", "protocol").agg(*counts, *sums).sort("protocol", "visitor")
    return Outcomes(mean, seeds[0].metrics, whole)


def against(row: Compared, best: Compared, metric: str) -> Compared:
    """The row with its difference from the best baseline."""
    if row is best:
        return row
    told = {field: getattr(row, field) for field in row.__dataclass_fields__}
    return Compared(**told | {"difference": paired_difference(row.outcomes, best.outcomes, metric)})


def shown_metrics(site: TrainingSite) -> list[str]:
    """The metrics that the table shows, the deciding one first."""
    k = max(site.training.metric_ks)
    others = [f"all/next_recall_at_{k}", f"warm/next_recall_at_{k}", f"warm/next_mrr_at_{k}", f"list/any_recall_at_{k}"]
    return list(dict.fromkeys([site.training.champion_metric, *others]))


def cells(rows: Sequence[Compared], site: TrainingSite) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the table; intervals are 95 %, `sd` is over seeds."""
    metrics = shown_metrics(site)
    short = [metric.replace("next_", "").replace("any_", "") for metric in metrics]
    headings = ["model", "role", short[0], "minus best baseline", "p", *short[1:]]
    lines = []
    for row in rows:
        deciding, *others = (cell(row, metric) for metric in metrics)
        lines.append([row.name, row.role, deciding, *difference_cells(row), *others])
    return headings, lines


def cell(row: Compared, metric: str) -> str:
    """`0.3021 ±0.0040 sd 0.0011`."""
    if metric not in row.numbers:
        return ""
    text = f"{row.numbers[metric]:.4f}"
    if f"{metric}_low" in row.numbers:
        text += f" ±{(row.numbers[f'{metric}_high'] - row.numbers[f'{metric}_low']) / 2:.4f}"
    spread = row.spread(metric)
    return text if spread is None else f"{text} sd {spread:.4f}"


def difference_cells(row: Compared) -> tuple[str, str]:
    """`+0.0210 (+0.0180 to +0.0240)` and the p-value."""
    if row.difference is None:
        return ("best baseline" if row.is_baseline else "", "")
    told = row.difference
    return f"{told.value:+.4f} ({told.low:+.4f} to {told.high:+.4f})", f"{told.p_value:.4f}"


def as_text(rows: Sequence[Compared], site: TrainingSite) -> str:
    """The table for a terminal."""
    headings, lines = cells(rows, site)
    return align([headings, *lines], left=2)


def as_facts(rows: Sequence[Compared]) -> list[dict[str, Any]]:
    """The table for programs: every number."""
    return [
        {
            "recipe": row.recipe,
            "role": row.role,
            "is_baseline": row.is_baseline,
            "seeds": row.seeds,
            "run_ids": row.run_ids,
            "metrics": row.numbers,
            "spread": {name: row.spread(name) for name in row.outcomes.means()} if len(row.seeds) > 1 else {},
            "difference": row.difference._asdict() if row.difference else None,
        }
        for row in rows
    ]


def draw(rows: Sequence[Compared], site: TrainingSite) -> dict[str, bytes]:
    """The pictures of a comparison by file name."""
    models = [Drawn(row.name, row.is_baseline, row.numbers) for row in rows]
    return {"models.png": models_beside_each_other(models, site.training.champion_metric), **recalls(models, site)}


def recalls(models: Sequence[Drawn], site: TrainingSite) -> dict[str, bytes]:
    """Recall by length of the list, of the session, and by popularity of the item."""
    ks = sorted(site.training.metric_ks)
    return {
        "recall_by_k.png": recall_by_k(models, ks),
        "recall_by_session_length.png": recall_by_slice(models, "all_by_length", ks[-1]),
        "recall_by_popularity.png": recall_by_slice(models, "all_by_popularity", ks[-1]),
    }


def render(rows: Sequence[Compared], pictures: Mapping[str, bytes], site: TrainingSite, title: str, gate: str) -> str:
    """The page."""
    headings, lines = cells(rows, site)
    embedded = {name: base64.b64encode(content).decode() for name, content in pictures.items()}
    metric = site.training.champion_metric
    return pages.render(PAGE, title=title, gate=gate, headings=headings, rows=lines, pictures=embedded, metric=metric)


def keep(site: TrainingSite, tracking: Tracking, night: date, rows: Sequence[Compared], purpose: str) -> Path:
    """Write the page, keep it and its pictures with the night's run; return where it lies."""
    suffix = "" if purpose == "nightly" else f"-{purpose}"
    run, pictures = tracking.night_run(night), draw(rows, site)
    title = f"{site.name}: models of the night {night}{suffix and f', purpose {purpose}'}"
    page = render(rows, pictures, site, title, run.data.tags.get("gate.reason", ""))
    file = pages.write_page(site.home / "reports" / f"compare-{site.name}-{night}{suffix}.html", page)
    tracking.client.log_text(run.info.run_id, page, f"compare{suffix}.html")
    tracking.keep_pictures(run.info.run_id, pictures, PICTURES + suffix)
    return file
