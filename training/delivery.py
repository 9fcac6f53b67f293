"""Metrics on their way to MLflow: written down first, so that a training goes on while the server is away.

NIGHTJAR_HOME/undelivered/RUN.jsonl    a line a call: address (no password), step, time, metrics; gone once arrived
"""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.entities import Metric, RunTag
from mlflow.exceptions import MlflowException
from pydantic import BaseModel, ValidationError

from pipeline.addresses import redacted, shown
from pipeline.errors import RetryableError
from pipeline.terminal import log

FOLDER = "undelivered"
LATE = "delivered_late"
"""The tag of a run whose metrics came later than they were made: how many calls of them."""
ONE_TRY = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
AWAY = ("failed with exception", "failed with timeout", "failed with error code 5")
"""How MLflow says that nobody answers, or nobody who could."""


class Line(BaseModel):
    """One call's metrics."""

    uri: str
    run_id: str
    step: int
    time: int
    """Milliseconds since 1970."""
    metrics: dict[str, float]


def post(home: Path, uri: str, run_id: str, metrics: Mapping[str, float], step: int) -> None:
    """Write metrics down and deliver them, with whatever of the run is still waiting; never raises for a server."""
    file = home / FOLDER / f"{run_id}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    told = {
        "uri": shown(uri),
        "run_id": run_id,
        "step": step,
        "time": int(time.time() * 1000),
        "metrics": dict(metrics),
    }
    with FileLock(file.with_suffix(".lock")):
        with file.open("a", encoding="utf-8") as kept:
            kept.write(f"\n{json.dumps(told)}\n")  # what a crash has cut short before it stays a line of its own
        deliver(file, uri)


def deliver_all(home: Path, uri: str) -> None:
    """Deliver what earlier commands had to leave for the server at an address."""
    for file in sorted((home / FOLDER).glob("*.jsonl")):
        try:
            with FileLock(file.with_suffix(".lock"), timeout=0):
                lines = read(file) if file.exists() else []
                if lines and shown(lines[0].uri) == shown(uri):
                    deliver(file, uri)
        except Timeout:
            continue  # its training is at work


def deliver(file: Path, uri: str) -> None:
    """Send the lines of a file to the server at an address and remove it; keep it if the server is away."""
    lines = read(file)
    client, run_id = MlflowClient(uri), lines[0].run_id
    found = [Metric(name, value, line.time, line.step) for line in lines for name, value in line.metrics.items()]
    tags = [RunTag(LATE, str(len(lines)))] if len(lines) > 1 else []
    try:
        with without_patience():
            client.log_batch(run_id, metrics=found, tags=tags)
    except MlflowException as error:
        if not is_away(error):
            file.rename(file.with_suffix(".refused"))
            raise
        log.warning("MLflow at %s does not answer; the metrics of run %s wait in %s", shown(uri), run_id, file)
        return
    file.unlink()
    if tags:
        log.info("delivered %d calls of metrics of run %s that had waited in %s", len(lines), run_id, file)


def read(file: Path) -> list[Line]:
    """The lines of a file; those that were cut short by a crash, or damaged, are left out."""
    found = []
    *lines, _ = file.read_text(encoding="utf-8", errors="replace").split("\n")
    for line in filter(None, lines):
        try:
            found.append(Line.model_validate_json(line))
        except ValidationError:
            log.warning("%s: a line is damaged, its metrics are lost: %.80s", file, line)
    return found


@contextmanager
def without_patience() -> Iterator[None]:
    """One short try instead of minutes of them."""
    told = {name: os.environ.get(name) for name in ONE_TRY}
    os.environ.update(ONE_TRY)
    try:
        yield
    finally:
        for name, value in told.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@contextmanager
def answered(uri: str) -> Iterator[None]:
    """Raise RetryableError where the server does not answer, after MLflow's own tries."""
    try:
        yield
    except MlflowException as error:
        if not is_away(error):
            raise
        raise RetryableError(
            f"MLflow at {shown(uri)} does not answer: {redacted(str(error), uri)}. Once it does, run the same command "
            "again: a training goes on from its last checkpoint, and metrics that were kept are delivered"
        ) from error


def is_away(error: MlflowException) -> bool:
    """Whether the server could not be reached, or has a fault of its own."""
    return any(words in str(error) for words in AWAY)
