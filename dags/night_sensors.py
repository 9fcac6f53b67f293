"""Tasks that wait for other nights of the site, or find out that there is nothing to do.

Both ask Airflow what runs, and free their slot between two looks.
"""

from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import Any, get_args

from airflow.sdk import BaseSensorOperator
from airflow.sdk.exceptions import AirflowSkipException

from dags.settings import Weekday
from dags.step_command import StepCommand, step_command
from dags.step_operator import THE_DAY, checked_day

LOOKS: dict[str, Any] = {
    "mode": "reschedule",
    "poke_interval": 4,
    "exponential_backoff": True,
    "max_wait": timedelta(seconds=20),
    "timeout": timedelta(days=2),
    "execution_timeout": timedelta(minutes=10),
}
"""Every few seconds at first, then three times a minute."""
WEEKDAYS = get_args(Weekday)
UNDER_WAY = ["queued", "running"]
ENDED = {"success", "failed", "upstream_failed", "skipped", "removed"}


class OtherNights(BaseSensorOperator):
    """Waits until no other running night of the site has data steps before it.

    In a backfill nights run side by side. Without it the lists of the last day could be made before the day before is
    loaded; and late rows of one day's delivery touch the days before it, which then have to be judged again. Nights
    that have not started, or that wait for their time, are not waited for, so that no two wait for each other.
    """

    def __init__(self, *, nightly: str, **settings: Any) -> None:
        super().__init__(**(LOOKS | settings))
        self.nightly = nightly

    def poke(self, context: Mapping[str, Any]) -> bool:
        """Whether all other nights that run now are through with their data."""
        states = context["ti"].get_task_states(self.nightly, task_ids=["wait_for_start", "validate"])
        loading = [run_id for run_id, told in states.items() if is_loading(told) and run_id != context["run_id"]]
        num = context["ti"].get_dr_count(self.nightly, run_ids=loading, states=["running"]) if loading else 0
        if num:
            self.log.info("%d other nights of %s are still loading", num, self.nightly)
        return not num


def is_loading(states: Mapping[str, str | None]) -> bool:
    """Whether a night has data steps before it, and has not to wait for its time first."""
    return states.get("validate") not in ENDED and states.get("wait_for_start") != "up_for_reschedule"


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
