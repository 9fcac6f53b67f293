"""Is there still new data? Asked from outside the nights, since a night that never starts cannot fail."""

from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from airflow.sdk import BaseOperator

from dags.alerts import Alert, Notifiers, link_to_task
from dags.step_command import step_command

ONE_HOUR, ONE_DAY = timedelta(hours=1), timedelta(days=1)


class FreshnessOperator(BaseOperator):
    """Tells somebody when the newest day that passed validation is too old: once, and then once a day.

    It runs every hour, and reckons from the time that its run stands for. It stays green.
    """

    def __init__(
        self, *, site_file: str, time_zone: str, fresh_within: timedelta, notifiers: Notifiers, **settings: Any
    ) -> None:
        super().__init__(**settings)
        self.site_file = site_file
        self.time_zone = time_zone
        self.fresh_within = fresh_within
        self.notifiers = notifiers

    def execute(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """Look, and tell."""
        now: datetime = context["dag_run"].run_after.astimezone(ZoneInfo(self.time_zone))
        command = step_command("due", self.site_file, str(now.date()))
        report = command.report(lambda line: self.log.info("%s", line))
        newest = report["newest_passed"]
        if newest is None:
            sentence, is_late, is_the_hour = "no day has passed validation yet.", True, now.hour == 0
        else:
            age = now.astimezone(UTC) - end_of(date.fromisoformat(newest), self.time_zone)
            late = age - self.fresh_within
            sentence = f"no new data since {newest}, which ended {age // ONE_HOUR} h ago."
            is_late, is_the_hour = late >= timedelta(), late % ONE_DAY < ONE_HOUR
        if is_late and is_the_hour:
            days = f"nightjar days --site {self.site_file}"
            self.notifiers.tell(Alert(f"{report['site']}: {sentence}", days, link_to_task(context)), context)
        return {"newest_passed": newest, "is_late": is_late}


def end_of(day: date, time_zone: str) -> datetime:
    """Midnight after a day, as an instant: between two times of one zone Python would count hours by the wall clock."""
    return datetime.combine(day + ONE_DAY, time(), ZoneInfo(time_zone)).astimezone(UTC)
