"""What intents are worth: IntentRec's variants, the enlarged V0, and how well each intent is told.

    python benchmarks/intents.py HOME [--log demo] [--seeds 1 2 3]

HOME is one in which the log's days are validated, as `benchmarks/models.py` leaves it. Printed are means over targets,
seeds pooled; the paired difference of each variant with V0 and with V0 enlarged to V2's number of parameters (95 %
interval and p over visitors); how much of the way from popularity to the oracle each goes, where the log has an oracle;
and each intent's quality beside "same as last" and "most common". What is measured is kept in HOME/intents and not
measured again.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from histories import METRIC, Day, Measured, Model, measure_all, pool

from training.difference import paired_difference

SETTINGS: dict[str, Any] = {"hidden_size": 64, "learning_rate": 0.004, "batch_size": 128, "epochs": 10, "dropout": 0.25}
QUALITIES = {
    "accuracy": "accuracy",
    "same_as_last_accuracy": "same as last",
    "most_common_accuracy": "most common",
    "macro_f1": "macro F1",
    "same_as_last_macro_f1": "same as last",
    "calibration_error": "calibration error",
    "next_mrr_at_20_right": "mrr@20 if right",
    "next_mrr_at_20_wrong": "if wrong",
}
V0, ENLARGED, V1 = "V0 next item", "V0 of three layers", "V1 multi-task"


def variant(name: str, **fields: Any) -> Model:
    """IntentRec as a variant, and what else is changed."""
    return "intentrec", SETTINGS | {"variant": name} | fields


MODELS: dict[str, Model] = {
    "popularity": ("popularity", {}),
    "gru4rec": ("gru4rec", {}),
    V0: variant("next_item"),
    ENLARGED: variant("next_item", num_layers=3),
    V1: variant("multitask"),
    "V2 hierarchical": variant("hierarchical"),
    "V3 with short term": variant("short_term"),
}


def main() -> None:
    """Measure what is not measured yet, then print Markdown."""
    measured, day = measure_all("Measure what intents are worth.", MODELS, "intents")
    print("\n".join([*report(measured, day), "", *differences(measured), "", *qualities(measured)]))


def oracle(day: Day) -> float | None:
    """The best mean that anyone can expect on the day; None for a real log."""
    told = Path(day.site.resolve(day.site.source.events)).parent / "simulation.json"
    if not told.exists():
        return None
    days = {each["date"]: each["oracle"][METRIC] for each in json.loads(told.read_text())["days"]}
    return float(days[day.log.day])


def report(measured: dict[str, list[Measured]], day: Day) -> Iterator[str]:
    """Each model's size, quality and speed."""
    means = {label: pool(runs).means() for label, runs in measured.items()}
    best, worst = oracle(day), means.get("popularity", {}).get(f"all/{METRIC}", 0.0)
    yield "| model | parameters | recall@20 | mrr@20 | seeds' sd | of popularity to oracle | k targets / core-s |"
    yield "| --- |" + " --: |" * 6
    for label, runs in measured.items():
        sd = np.std([outcomes.means()[f"all/{METRIC}"] for outcomes, _ in runs], ddof=min(1, len(runs) - 1))
        targets, seconds = (sum(facts[name] for _, facts in runs) for name in ("targets", "core_seconds"))
        mrr = means[label][f"all/{METRIC}"]
        share = "" if best is None else f"{(mrr - worst) / (best - worst):.1%}"
        size, speed = runs[0][1].get("parameters", 0), targets / seconds / 1000
        recall = means[label]["all/next_recall_at_20"]
        yield f"| {label} | {size:,} | {recall:.4f} | {mrr:.4f} | {sd:.4f} | {share} | {speed:.1f} |"
    if best is not None:
        yield f"| the oracle | | | {best:.4f} | | 100.0% | |"


def differences(measured: dict[str, list[Measured]]) -> Iterator[str]:
    """Each variant beside V0, beside V0 enlarged, and what hierarchy adds to V1."""
    yield "| difference in mrr@20 | value | 95 % interval | relative | p |"
    yield "| --- | --: | --: | --: | --: |"
    pooled = {label: pool(runs) for label, runs in measured.items()}
    variants = [label for label in pooled if label[0] == "V"]
    for other in (V0, ENLARGED, V1):
        for label in variants[variants.index(other) + 1 :] if other in variants else []:
            outcomes = pooled[label]
            value, low, high, p = paired_difference(outcomes, pooled[other], f"all/{METRIC}")
            share = value / pooled[other].means()[f"all/{METRIC}"]
            yield f"| {label} - {other} | {value:+.4f} | {low:+.4f} to {high:+.4f} | {share:+.1%} | {p:.4f} |"


def qualities(measured: dict[str, list[Measured]]) -> Iterator[str]:
    """Each intent of each model, the mean of its seeds."""
    yield f"| intent | model | {' | '.join(QUALITIES.values())} |"
    yield "| --- | --- |" + " --: |" * len(QUALITIES)
    found = {label: [facts for _, facts in runs] for label, runs in measured.items()}
    every = (name for runs in found.values() for name in runs[0] if name.startswith("intent/"))
    for intent in dict.fromkeys(name.split("/", 2)[1] for name in every):
        for label, runs in found.items():
            if f"intent/{intent}/accuracy" in runs[0]:
                cells = [
                    np.mean([facts.get(f"intent/{intent}/{name}", np.nan) for facts in runs]) for name in QUALITIES
                ]
                yield f"| {intent} | {label} | {' | '.join(f'{cell:.3f}' for cell in cells)} |"


if __name__ == "__main__":
    main()
