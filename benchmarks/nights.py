"""What Airflow costs a night: its own time (the night minus its commands) and the memory of the local stack.

    python benchmarks/nights.py [NIGHTS]

Starts the local stack over a home of its own, with a stand-in for the command line that takes 0.2 s a step and notes
when it ran; then runs nights one after the other. The first one is told apart: after a start Airflow is slower.
"""

import contextlib
import os
import stat
import sys
import tempfile
import time
from datetime import date, datetime, timedelta
from pathlib import Path
from statistics import mean
from typing import Any

import psutil

from dags.local_stack import Stack, airflow_stack

SITE = "name: shop\nschedule: {gpu_steps: []}\n"
STAND_IN = """#!{python} -SE
import json, os, sys, time
started = time.time()
time.sleep(0.2)
told = {{"step": sys.argv[1], "newest_passed": "1999-01-01", "has_window": True}}
print(json.dumps(told | {{"at": started, "until": time.time()}}))
"""
FIRST = date(2026, 11, 1)


def main() -> None:
    """Measure, then print Markdown."""
    num_nights = int(sys.argv[1]) if len(sys.argv) > 1 else 6
    with tempfile.TemporaryDirectory(prefix="nightjar-nights-") as folder:
        home, conf = Path(folder, "home"), Path(folder, "conf")
        conf.mkdir()
        (conf / "shop.yaml").write_text(SITE)
        os.environ["NIGHTJAR_COMMAND"] = str(stand_in(Path(folder)))
        started = time.monotonic()
        with airflow_stack(home, conf, with_mlflow=True) as stack:
            up = time.monotonic() - started
            nights = [own_seconds(stack, str(FIRST + timedelta(days=number))) for number in range(num_nights)]
            memory = gigabytes()
    print(report(up, nights, memory))


def stand_in(folder: Path) -> Path:
    """The stand-in for the command line."""
    file = folder / "nightjar"
    file.write_text(STAND_IN.format(python=sys.executable))
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return file


def own_seconds(stack: Stack, day: str) -> dict[str, float]:
    """A night's seconds, those of its commands, and how many tasks it had."""
    stack.wait_for_dag("shop__nightly", time.monotonic() + 60)
    run_id = stack.airflow.start_run("shop__nightly", day)
    reports: dict[str, Any] = stack.watch("shop__nightly", run_id, day, time.monotonic() + 300, lambda *_: None)
    run = stack.airflow.get(f"dags/shop__nightly/dagRuns/{run_id.replace('+', '%2B')}")
    commands = sum(report["until"] - report["at"] for report in reports.values() if report)
    return {"night": seconds_of(run), "commands": commands, "tasks": len(reports)}


def seconds_of(run: dict[str, Any]) -> float:
    """From the trigger to the end of the last task."""
    told = [datetime.fromisoformat(run[name]) for name in ("queued_at", "end_date")]
    return (told[1] - told[0]).total_seconds()


def gigabytes() -> dict[str, float]:
    """Memory of our descendants by kind, in GB; what processes share is counted once."""
    found: dict[str, float] = {}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # a zombie has none
            line, size = " ".join(process.cmdline()), process.memory_full_info().pss / 1e9
            found[kind_of(line)] = found.get(kind_of(line), 0.0) + size
    return found


def kind_of(line: str) -> str:
    """Which part of the stack a command line starts."""
    line = line.replace("_", "-")  # they rename themselves
    return next((name for name in ("api-server", "scheduler", "dag-processor", "mlflow") if name in line), "tasks")


def report(up: float, nights: list[dict[str, float]], memory: dict[str, float]) -> str:
    """Markdown."""
    own = [night["night"] - night["commands"] for night in nights]
    lines = [
        "| what | |",
        "| --- | --: |",
        f"| tasks of a night | {nights[0]['tasks']:.0f} |",
        f"| Airflow's own seconds, first night after a start | {own[0]:.1f} |",
        f"| the {len(own) - 1} nights after it: mean | {mean(own[1:]):.1f} |",
        f"| longest | {max(own[1:]):.1f} |",
        f"| seconds until the stack is up, with a new database | {up:.0f} |",
        f"| memory of the stack, GB | {sum(memory.values()):.2f} |",
        *(f"| of it {kind} | {size:.2f} |" for kind, size in sorted(memory.items())),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
