"""What a model did on a day, by visitor: enough for every metric, its interval, and a paired comparison.

Sums and numbers of targets are kept for each visitor, because visitors are what a day draws at random: the events of
one visitor hang together, those of two do not. Intervals: Poisson bootstrap over visitors (Hanley & MacGibbon 2006).
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.ids import stable_id

NUM_RESAMPLES = 500
VISITORS_AT_ONCE = 8192  # whose weights are held for all resamples: 33 MB
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Outcomes:
    """Sums of each metric over each visitor's targets, and their number: all that metrics and intervals need."""

    rows: pl.DataFrame
    """visitor, protocol, num_targets, num_cold, and a sum per metric (null where the protocol does not have it).

    A slice is a protocol of its own, `all_by_length/3_to_4` for example."""
    metrics: tuple[str, ...]
    whole: Mapping[str, float] = field(default_factory=dict)
    """Figures of all lists together that are no sum over visitors, by full name: coverage and the like."""

    def of_visitors(self, visitors: pl.Series) -> "Outcomes":
        """The outcomes of some visitors; figures of the whole fall away."""
        return Outcomes(self.rows.filter(pl.col("visitor").is_in(visitors.implode())), self.metrics)

    def means(self) -> dict[str, float]:
        """Every metric by its full name, `protocol/metric`; with the number of targets and the share of cold ones."""
        found: dict[str, float] = {}
        for (protocol,), rows in self.rows.group_by("protocol", maintain_order=True):
            num_targets = int(rows["num_targets"].sum())
            found |= {f"{protocol}/{m}": float(rows[m].sum()) / max(num_targets, 1) for m in self.measured(rows)}
            found[f"{protocol}/num_targets"] = float(num_targets)
            if protocol == "all":
                found["all/cold_share"] = int(rows["num_cold"].sum()) / max(num_targets, 1)
        return found | dict(self.whole)

    def intervals(self, seed: int = 1) -> dict[str, tuple[float, float]]:
        """95 % intervals of every metric that is a mean over targets."""
        sums_VM, names = self.by_visitor()
        if not names:
            return {}
        totals = resample(sums_VM, seed)
        found: dict[str, tuple[float, float]] = {}
        for name, column in names.items():
            protocol, _ = name.rsplit("/", 1)
            counts = totals[:, names[f"{protocol}/num_targets"]]
            low, high = np.quantile(totals[:, column] / np.maximum(counts, 1), [0.025, 0.975])
            found[name] = (float(low), float(high))
        return {name: bounds for name, bounds in found.items() if not name.endswith("/num_targets")}

    def numbers(self, seed: int = 1) -> dict[str, float]:
        """All there is to tell, as numbers by name: means, counts, and `…_low` and `…_high` for the 95 % bounds."""
        bounds = self.intervals(seed)
        low = {f"{name}_low": low for name, (low, _) in bounds.items()}
        high = {f"{name}_high": high for name, (_, high) in bounds.items()}
        return self.means() | low | high

    def by_visitor(self) -> tuple[Floats, dict[str, int]]:
        """(visitors, metrics) sums in order of the visitors' names, and the column of each full metric name."""
        visitors = self.rows.select(pl.col("visitor").unique().sort()).with_row_index("place")
        placed = self.rows.join(visitors, on="visitor", maintain_order="left")
        columns: list[tuple[NDArray[np.uint32], Floats]] = []
        names: dict[str, int] = {}
        for (protocol,), rows in placed.group_by("protocol", maintain_order=True):
            for metric in [*self.measured(rows), "num_targets"]:
                names[f"{protocol}/{metric}"] = len(columns)
                columns.append((rows["place"].to_numpy(), rows[metric].to_numpy()))
        sums_VM = np.zeros((visitors.height, len(columns)))
        for number, (places, values) in enumerate(columns):
            sums_VM[places, number] = values
        return sums_VM, names

    def measured(self, rows: pl.DataFrame) -> list[str]:
        """The metrics that the rows of a protocol have."""
        return [m for m in self.metrics if m in rows.columns and rows[m].null_count() < rows.height]

    def save(self, path: Path) -> None:
        """Write a Parquet file that `load_outcomes` reads; visitors, who may be user ids, are written as hashes."""
        told = {"metrics": json.dumps(self.metrics), "whole": json.dumps(dict(self.whole))}
        self.rows.with_columns(visitor=stable_id(pl.col("visitor"))).write_parquet(path, metadata=told)


def load_outcomes(path: Path) -> Outcomes:
    """Read what `Outcomes.save` wrote; visitors are hashes, the same ones in every file."""
    told = pl.read_parquet_metadata(path)
    return Outcomes(pl.read_parquet(path), tuple(json.loads(told["metrics"])), json.loads(told["whole"]))


def merge(outcomes: Iterable[Outcomes]) -> Outcomes:
    """Several protocols' outcomes of one model as one."""
    parts = list(outcomes)
    rows = pl.concat([part.rows for part in parts], how="diagonal_relaxed")
    metrics = dict.fromkeys(name for part in parts for name in part.metrics)
    whole = {name: value for part in parts for name, value in part.whole.items()}
    return Outcomes(rows, tuple(metrics), whole)


def resample(sums_VM: Floats, seed: int) -> Floats:
    """(NUM_RESAMPLES, M) totals of the columns under Poisson weights of the visitors, the same for all columns."""
    random = np.random.default_rng(seed)
    totals = np.zeros((NUM_RESAMPLES, sums_VM.shape[1]))
    for start in range(0, len(sums_VM), VISITORS_AT_ONCE):
        part_VM = sums_VM[start : start + VISITORS_AT_ONCE]
        totals += random.poisson(1.0, (NUM_RESAMPLES, len(part_VM))) @ part_VM
    return totals
