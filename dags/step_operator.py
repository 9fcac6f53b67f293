"""Run one step of a night as a command: the very line that a person can paste.

In   the DAG run's day (its partition key, else its param `date`), a site file, a step
Out  the step's JSON line as XCom; its log lines in the task log; its exit code as the task's fate
"""

import datetime
import re
from collections.abc import Mapping, Sequence
from typing import Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from dags.alerts import Notifiers, finding_of
from dags.step_command import StepCommand, step_command
from pipeline.parent import end_with_parent

DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
NOBODY = Notifiers([])
THE_DAY = "{{ partition_key or params.date }}"
"""The day of a run: its partition key, else the param of a run without one."""


class StepOperator(BaseOperator):
    """One `nightjar` command, without a shell.

    Exit code 0 is success; 1 fails the try; 2 and 3 fail the task at once, since no retry can cure them. A report that
    says `"published": false` skips the task, so that nobody downstream hears of a release that there is not. Sentences
    under `"alerts"` are told to the site's notifiers; the task stays green.
    """

    template_fields: Sequence[str] = ("date",)
    ui_color = "#e8f0e4"

    def __init__(
        self,
        *,
        step: str,
        site_file: str,
        date: str = THE_DAY,
        options: Mapping[str, str | None] | None = None,
        is_dated: bool = True,
        announced_params: Sequence[str] = (),
        notifiers: Notifiers = NOBODY,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.step = step
        self.site_file = site_file
        self.date = date
        self.options = options
        self.is_dated = is_dated
        self.announced_params = announced_params
        self.notifiers = notifiers
        self._command: StepCommand | None = None

    def execute(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """Run the command to its end and give what it reports."""
        day = checked_day(self.date)
        end_with_parent()  # a killed worker leaves its task process behind, whose command would meet that of the retry
        self._command = step_command(self.step, self.site_file, day if self.is_dated else None, self.options)
        self.log.info("$ %s", self._command.line)
        report = self._command.report(lambda line: self.log.info("%s", line))
        for sentence in report.get("alerts") or []:
            self.log.warning("%s", sentence)
            self.notifiers.tell(finding_of(context, sentence, self._command.line), context)
        if report.get("published") is False:
            context["ti"].xcom_push("return_value", report)
            raise AirflowSkipException(f"`nightjar {self.step}` published nothing for {day}: the log says why")
        self.announce(context, day, report)
        return report

    def announce(self, context: Mapping[str, Any], day: str, report: Mapping[str, Any]) -> None:
        """Give the outlets' events the day as key, and the report's counts and versions."""
        for asset in self.outlets:
            event = context["outlet_events"][asset]
            told = {key: value for key, value in report.items() if isinstance(value, int | float | str)}
            event.extra = told | {name: context["params"][name] for name in self.announced_params}
            if context.get("partition_key") is None:
                event.add_partitions(day)

    def on_kill(self) -> None:
        """Stop the command and all that it started."""
        if self._command is not None:
            self.log.info("stopping `%s`", self.step)
            self._command.stop()


def checked_day(text: object) -> str:
    """The day if it is one, written as YYYY-MM-DD; a run without a key says `None`."""
    try:
        if not isinstance(text, str) or not DAY.fullmatch(text):
            raise ValueError
        datetime.date.fromisoformat(text)
    except ValueError:
        raise AirflowFailException(
            f"this run's day is {text!r}, which is no date. Start it with a partition key like 2026-11-20, "
            'or with the conf {"date": "2026-11-20"}'
        ) from None
    return text
