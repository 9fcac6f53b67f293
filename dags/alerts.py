"""Who is told, and what: one sentence, the command to run, the link to click.

An alert goes out through every notifier of the site file's `schedule.alerts`: any class of Airflow's notifiers, whose
templates see `alert` beside Airflow's own context, as in `{{ alert.text }}`. Where one cannot be told, the others still
are, and the task's log says so.
"""

import asyncio
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from airflow.sdk import BaseNotifier
from airflow.sdk.configuration import conf
from airflow.sdk.module_loading import import_string

from pipeline.addresses import redacted

log = logging.getLogger(__name__)
KEPT = "Readers keep the lists that they have."
NO_WORD = "it ended without a word: its worker was killed or its time was up"


@dataclass(frozen=True)
class Alert:
    """What people are told."""

    sentence: str
    command: str
    """What to paste into a shell."""
    link: str

    @property
    def text(self) -> str:
        """All of it, a line each."""
        return "\n".join(line for line in (self.sentence, self.command, self.link) if line)

    def as_context(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """What a notifier's templates see."""
        return {**context, "alert": asdict(self) | {"text": self.text}}


@dataclass(frozen=True)
class Notifiers:
    """The notifiers of a site; callable as Airflow's `on_failure_callback`."""

    wanted: Sequence[Mapping[str, Any]]
    """`notifier` (the class) and its `arguments`."""

    def __call__(self, context: Mapping[str, Any]) -> None:
        """Tell of a task that failed for good."""
        self.tell(failure_of(context), context)

    def tell(self, alert: Alert, context: Mapping[str, Any]) -> None:
        """Tell everyone; who cannot be told is logged."""
        for wanted in self.wanted:
            try:
                make(wanted)(alert.as_context(context))
            except Exception as error:
                log_failure(wanted, alert, error)

    async def tell_soon(self, alert: Alert, context: Mapping[str, Any]) -> None:
        """As `tell`, in the triggerer."""
        for wanted in self.wanted:
            try:
                await tell_one(make(wanted), alert.as_context(context))
            except Exception as error:
                log_failure(wanted, alert, error)


def log_failure(wanted: Mapping[str, Any], alert: Alert, error: Exception) -> None:
    """Log that a notifier failed, and why, without a password that its arguments or the error hold."""
    reason = redacted(f"{type(error).__name__}: {error}", *map(str, wanted["arguments"].values()))
    log.error("%s could not tell: %s (%s)", wanted["notifier"], alert.sentence, reason)


class FileNotifier(BaseNotifier):
    """Adds each alert to a file as a line of JSON: for trying alerts out, and for whoever reads logs by machine."""

    template_fields = ("text",)

    def __init__(self, path: str, text: str = "{{ alert.text }}") -> None:
        super().__init__()
        self.path = path
        self.text = text

    def notify(self, context: Any) -> None:
        """Add a line."""
        file = Path(os.environ.get("NIGHTJAR_HOME", "."), self.path)
        file.parent.mkdir(parents=True, exist_ok=True)
        told = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "text": self.text}
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(told) + "\n")

    async def async_notify(self, context: Any) -> None:
        """Add a line."""
        self.notify(context)


async def tell_one(notifier: BaseNotifier, context: dict[str, Any]) -> None:
    """Tell through a notifier that may know only one of both ways."""
    if type(notifier).async_notify is BaseNotifier.async_notify:
        await asyncio.to_thread(notifier, context)
        return
    notifier.context = context
    await notifier


def make(wanted: Mapping[str, Any]) -> Any:
    """The notifier of a site file."""
    return import_string(wanted["notifier"])(**wanted["arguments"])


def failure_of(context: Mapping[str, Any]) -> Alert:
    """What is told of a task that failed."""
    exception, task = context.get("exception"), context["ti"]
    reason = getattr(exception, "sentence", "") or next(iter(str(exception or "").splitlines()), "") or NO_WORD
    day = day_of(context)
    name = task.task_id if task.map_index < 0 else f"{task.task_id} {task.map_index}"
    sentence = f"{task.dag_id} of {day} failed at {name}: {reason.rstrip('.')}. {KEPT}"
    return Alert(sentence, getattr(exception, "command", ""), link_to_task(context))


def finding_of(context: Mapping[str, Any], sentence: str, command: str) -> Alert:
    """What is told of a step that ended well and found something worth a look."""
    return Alert(f"{context['ti'].dag_id} of {day_of(context)}: {sentence}", command, link_to_task(context))


async def tables_are_late(
    notifiers: Sequence[Mapping[str, Any]], site_file: str, tables_by: str, context: Mapping[str, Any] | None = None
) -> None:
    """Tell that a night has not ended in time; Airflow calls it in its triggerer."""
    told = context or {}
    run = told.get("dag_run", {})
    day = run.get("partition_key") or (run.get("conf") or {}).get("date")
    sentence = f"{run.get('dag_id')} of {day} has not ended by {tables_by}. {KEPT}"
    alert = Alert(
        sentence, f"nightjar history --site {site_file}", link_to_run(run.get("dag_id", ""), run.get("dag_run_id", ""))
    )
    await Notifiers(notifiers).tell_soon(alert, told)


def day_of(context: Mapping[str, Any]) -> str:
    """The day of a run, by its key or its param."""
    return str(context.get("partition_key") or (context.get("params") or {}).get("date"))


def link_to_task(context: Mapping[str, Any]) -> str:
    """The page of a task's log."""
    return str(getattr(context["ti"], "log_url", "")) or link_to_run(context["ti"].dag_id, context["run_id"])


def link_to_run(dag_id: str, run_id: str) -> str:
    """The page of a run."""
    base = conf.get("api", "base_url", fallback="http://localhost:8080").rstrip("/")
    return f"{base}/dags/{dag_id}/runs/{quote(run_id, safe='')}"
