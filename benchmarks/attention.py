"""Attention models and the session retriever beside GRU4Rec, with and without what kind of act each event was.

    python benchmarks/attention.py HOME [--log entree_chicago] [--seeds 1 2 3] [--models LABEL …]

HOME is one in which the log's days are validated, as `benchmarks/models.py` leaves it. Printed are means over targets
and the paired difference with `gru4rec` (95 % interval and p over visitors, seeds pooled). What is measured is kept in
HOME/attention and not measured again.
"""

from collections.abc import Iterator
from typing import Any

from histories import METRIC, Measured, Model, measure_all, pool
from models import DRAWN

from training.difference import paired_difference

LONGER: dict[str, Any] = {"epochs": 10}
READ: dict[str, Any] = {"context": ["event_type", "gap"]}
CHOSEN: dict[str, Any] = {"learning_rate": 0.001, "batch_size": 32}
"""Of sasrec, on Entree's December 1998."""
MODELS: dict[str, Model] = {
    "gru4rec": ("gru4rec", {}),
    "session_retriever": ("session_retriever", LONGER),
    "sasrec, all items": ("sasrec", LONGER),
    "sasrec, drawn items": ("sasrec", DRAWN | LONGER),
    "narm": ("narm", LONGER),
    "gru4rec with context": ("gru4rec", READ | {"order": "chronological"}),
    "sasrec, drawn items, with context": ("sasrec", DRAWN | LONGER | READ | CHOSEN),
}


def main() -> None:
    """Measure what is not measured yet, then print Markdown."""
    measured, _ = measure_all("Measure attention models beside GRU4Rec.", MODELS, "attention")
    print("\n".join(report(measured)))


def report(measured: dict[str, list[Measured]]) -> Iterator[str]:
    """A table."""
    pooled = {label: pool(runs) for label, runs in measured.items()}
    yield "| recipe | seeds | recall@20 | mrr@20 | training core-s | mrr@20 beside gru4rec | p |"
    yield "| --- |" + " --: |" * 6
    for label, outcomes in pooled.items():
        means, runs, cells = outcomes.means(), measured[label], "| "
        if label != "gru4rec" and "gru4rec" in pooled:
            value, low, high, p = paired_difference(outcomes, pooled["gru4rec"], f"all/{METRIC}")
            cells = f"{value:+.4f} [{low:+.4f}, {high:+.4f}] | {p:.4f}"
        seconds = sum(facts["core_seconds"] for _, facts in runs) / len(runs)
        figures = f"{means['all/next_recall_at_20']:.4f} | {means[f'all/{METRIC}']:.4f} | {seconds:.0f}"
        yield f"| {label} | {len(runs)} | {figures} | {cells} |"


if __name__ == "__main__":
    main()
