"""What a model did on a day, by visitor: enough for every metric, its interval, and a paired comparison.

Sums and numbers of targets are kept for each visitor, because visitors are what a day draws at random: the events of
one visitor hang together, those of two do not. Intervals: Poisson bootstrap over visitors (Hanley & MacGibbon 2006).
"""

import hmac
import json
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.errors import ConfigurationError, OvertakenError
from pipeline.ids import hmac_sha256, stable_id
from pipeline.publish import Store
from pipeline.tables import OUTCOME_KEY

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

    def save(self, path: Path, key: bytes) -> None:
        """Write a Parquet file that `load_outcomes` reads; visitors, who may be user ids, become keyed hashes."""
        told = {"metrics": json.dumps(self.metrics), "whole": json.dumps(dict(self.whole)), "key": digest_of(key)}
        named = self.rows.with_columns(visitor=keyed(stable_id(pl.col("visitor")), key))
        named.write_parquet(path, metadata=told)


def load_outcomes(path: Path, key: bytes | None = None) -> Outcomes:
    """Read what `Outcomes.save` wrote; visitors are hashes, the same ones in every file of one store.

    Files of before stores had a key hold plain hashes; with the `key` of their store these are keyed as they are read,
    so that they pair with newer ones. Raises ConfigurationError for a file of another key.
    """
    told, rows = pl.read_parquet_metadata(path), pl.read_parquet(path)
    if key is not None and "key" not in told:
        rows = rows.with_columns(visitor=keyed(pl.col("visitor"), key))
    elif key is not None and told["key"] != digest_of(key):
        raise ConfigurationError(
            f"{path} was written by another store: it names visitors under another key, so it cannot be compared here"
        )
    return Outcomes(rows, tuple(json.loads(told["metrics"])), json.loads(told["whole"]))


def outcome_key(store: Store) -> bytes:
    """The secret under which outcomes of a store name visitors, made at first use; of two makers the first one's holds.

    It is read from the store and kept nowhere else: who has the outcomes alone cannot try ids.
    """
    known = known_key(store)
    if known is None:
        with suppress(OvertakenError):
            store.replace(OUTCOME_KEY, pl.DataFrame({"key": [secrets.token_hex(32)]}), {}, base=0)
        return outcome_key(store)
    return known


def known_key(store: Store) -> bytes | None:
    """The secret of `outcome_key` where it was made; else None, also where there is no such store."""
    found = store.scan(OUTCOME_KEY).collect().to_series()
    return None if found.is_empty() else bytes.fromhex(found.item())


def keyed(hashes: pl.Expr, key: bytes) -> pl.Expr:
    """The first 128 bits of HMAC-SHA256 of a column of plain hashes."""
    return hmac_sha256(hashes, key).str.slice(0, 32)


def digest_of(key: bytes) -> str:
    """What a file says of its key: enough to tell it from another one."""
    return hmac.digest(key, b"nightjar outcomes", "sha256").hex()[:16]


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
