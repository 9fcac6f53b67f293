"""Candidates beside each other as aligned text; light, so that the demo and benchmarks can use it."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.terminal import align

Row = Mapping[str, Any]
"""A candidate: model, version, metrics {name: mean}, intervals {name: [low, high]}."""


def comparison_text(rows: Sequence[Row], headings: Mapping[str, str]) -> str:
    """A line a candidate, a column a metric (name -> heading): mean and half the width of its 95 % interval."""
    lines = [["model", *headings.values()]]
    for row in rows:
        version = f" v{row['version']}" if "version" in row else ""
        lines.append([f"{row['model']}{version}", *(with_interval(row, name) for name in headings)])
    return align(lines)


def main_headings(k: int) -> dict[str, str]:
    """The metrics that a night is judged by, at one length of list."""
    next_item = [f"{protocol}/next_{name}_at_{k}" for protocol in ("all", "warm") for name in ("recall", "mrr", "ndcg")]
    return {name: name.replace("next_", "").replace("any_", "") for name in [*next_item, f"list/any_recall_at_{k}"]}


def with_interval(row: Row, metric: str) -> str:
    """`0.6129 ±0.0095`; the mean alone where there is no interval, nothing where it was not measured."""
    if metric not in row["metrics"]:
        return ""
    mean = f"{row['metrics'][metric]:.4f}"
    if metric not in row["intervals"]:
        return mean + " " * len(" ±0.0000")
    low, high = row["intervals"][metric]
    return f"{mean} ±{(high - low) / 2:.4f}"
