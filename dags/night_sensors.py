"""Tasks that wait for other nights of the site, or find out that there is nothing to do.

Both ask Airflow what runs, and free their slot between two looks.
"""

from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import Any, get_args

from airflow.sdk import BaseSensorOperator
from airflow.sdk.exceptions import AirflowSkipException
from airflow.sdk.execution_time.comms import GetDagRun

from dags.settings import Weekday
from dags.step_command import StepCommand, step_command
from dags.step_operator import THE_DAY, checked_day

LOOKS: dict[str, Any] = {
    "mode": "reschedule",
    "poke_interval": 4,
    "exponential_backoff": True,
    "max_wait": timedelta(minutes=1),
    "timeout": timedelta(days=2),
    "execution_timeout": timedelta(minutes=10),
}
"""Every few seconds at first, then once a minute."""
WEEKDAYS = get_args(Weekday)
UNDER_WAY = ["queued", "running"]
ENDED = {"success", "failed", "upstream_failed", "skipped", "removed"}


class EarlierNights(BaseSensorOperator):
    """Waits until no running night of an earlier day has data steps before it.

    In a backfill nights run side by side: without it the lists of the last day could be made before the day before is
    loaded. Nights that have not started are not waited for, so that a limit of runs blocks nobody.
    """

    template_fields: Sequence[str] = ("date",)

    def __init__(self, *, nightly: str, last_data_step: str, date: str = THE_DAY, **settings: Any) -> None:
        super().__init__(**(LOOKS | settings))
        self.nightly = nightly
        self.last_data_step = last_data_step
        self.date = date

    def poke(self, context: Mapping[str, Any]) -> bool:
        """Whether all earlier days that run now are through with their data."""
        day, own = checked_day(self.date), context["run_id"]
        states = context["ti"].get_task_states(self.nightly, task_ids=[self.last_data_step])
        busy = [run_id for run_id, state in states.items() if not set(state.values()) & ENDED and run_id != own]
        earlier = sorted(told for run_id in busy if (told := day_of_running(self.nightly, run_id)) and told < day)
        if earlier:
            self.log.info("the nights of %s are still loading", ", ".join(earlier))
        return not earlier


class NewestDay(BaseSensorOperator):
    """Waits until no night of the site is under way, then skips what follows unless its day is the newest.

    A run that was started by hand goes on at once; so does, after the wait, every day of a night that was started with
    the conf {"retrain": "every"}, where `every` is obeyed.
    """

    template_fields: Sequence[str] = ("date",)

    def __init__(
        self,
        *,
        nightly: str,
        site_file: str,
        weekdays: Sequence[str] = WEEKDAYS,
        obeys_every: bool = False,
        date: str = THE_DAY,
        **settings: Any,
    ) -> None:
        super().__init__(**(LOOKS | settings))
        self.nightly = nightly
        self.site_file = site_file
        self.weekdays = weekdays
        self.obeys_every = obeys_every
        self.date = date
        self._command: StepCommand | None = None

    def poke(self, context: Mapping[str, Any]) -> bool:
        """Whether to go on; raises AirflowSkipException where there is nothing to do for this day."""
        day = checked_day(self.date)
        if context["dag_run"].run_type == "manual":
            self.log.info("started by hand: goes on for %s", day)
            return True
        if num := context["ti"].get_dr_count(self.nightly, states=UNDER_WAY):
            self.log.info("%d nights of %s are under way", num, self.nightly)
            return False
        is_every = self.obeys_every and is_told_every(context)
        weekday = WEEKDAYS[date.fromisoformat(day).weekday()]
        if weekday not in self.weekdays and not is_every:
            raise AirflowSkipException(f"{day} is a {weekday}; this runs on {', '.join(self.weekdays)}")
        self._command = step_command("due", self.site_file, day)
        due = self._command.report(lambda line: self.log.info("%s", line))
        if day != due["newest_passed"] and not is_every:
            raise AirflowSkipException(f"{day} is not the newest day that passed validation: {due['newest_passed']} is")
        if self.obeys_every and not due["has_window"]:
            raise AirflowSkipException(f"there are too few validated days before {day} to train on (window.min_days)")
        return True

    def on_kill(self) -> None:
        """Stop the command."""
        if self._command is not None:
            self._command.stop()


def is_told_every(context: Mapping[str, Any]) -> bool:
    """Whether the night that woke this run was started with the conf {"retrain": "every"}."""
    events = [event for found in context["triggering_asset_events"].values() for event in found]
    return any((event.extra or {}).get("retrain") == "every" for event in events)


def day_of_running(dag_id: str, run_id: str) -> str | None:
    """The day of a run that is running; None for one that is not."""
    from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS  # there in a task only

    run = SUPERVISOR_COMMS.send(GetDagRun(dag_id=dag_id, run_id=run_id))
    if str(run.state) != "running":
        return None
    return run.partition_key or (run.conf or {}).get("date")
