"""Raw logs of a day in, recommendation tables out, once a night.

**Delivers** the tables `recommendations`, `related_items` and `popular_items` of the day, as one release, and tells it
by the asset `<site>_recommendations`. Before that, `<site>_sessions` tells that the data of the day has passed
validation. Both events have the day as partition key. The lists are those of the champion that stands; where there is
none yet, they hold popular items. `<site>__retrain` trains, afterwards.

**By when**: starts after midnight of the site's zone (plus `schedule.start_after`); readers have the lists of the day
before until the last step has ended. `schedule.tables_by` alerts when that is too late.

**By hand**: *Trigger*, with a partition key like `2026-11-20`. Again: clear the run, or a task and what follows it
(`airflow dags clear <site>__nightly --partition-key 2026-11-20`); running twice gives the same tables. Many days:
`airflow backfill create`. See docs/nights.md.

*Triage*

- Every failed task ends its log with `Reproduce:` and a line to paste.
- **validate red**: the data of the day broke its contract (exit code 3). Nothing was published; readers still have the
  last release. Look at the Data Docs that the log names, repair the delivery, clear `ingest` and what follows.
- **exit code 2**: the site file is wrong, or there is no input for that day. No retry helps.
- **red after several tries**: exit code 1 each time, look at the disk, the store and the MLflow server.
- **other_nights waits**: nights of other days are still loading, as in a backfill. Nothing to do.
- **refit stays `scheduled`**: the pool does not exist (`airflow pools set gpu 1 "steps on the GPU"`). It stays
  `queued`: no worker listens to the queue.
- **drift green with an alert**: the day or its lists differ from those before; `nightjar report` shows how.
- **export skipped**: readers see lists of a later day, which stay. That is how a past day is loaded again.
- A site is missing here: look at the import errors.
"""

import os
from datetime import UTC, date, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pendulum
from airflow.providers.standard.sensors.date_time import DateTimeSensor
from airflow.sdk import DAG, CronPartitionTimetable, Param, chain
from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference

from dags.alerts import tables_are_late
from dags.night_sensors import OtherNights
from dags.site_assets import recommendations, sessions
from dags.site_files import SiteHead
from dags.step_tasks import ONE_NIGHT_AFTER_THE_OTHER, dag_settings, date_param, notifiers, site_dags, step

YEARS_LOOKED_AT = 4
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
"""The end of a schedule that starts nothing (NIGHTJAR_SCHEDULE=off); runs by hand and backfills do not ask for it."""


def nightly(path: Path, site: SiteHead) -> DAG:
    """From raw files to published lists, one step after the other."""
    with DAG(
        dag_id=f"{site.name}__nightly",
        description=f"Raw logs of a day in, recommendation tables of {site.name} out",
        schedule=each_day(site.time_zone),
        end_date=LONG_AGO if os.environ.get("NIGHTJAR_SCHEDULE") == "off" else None,
        params=date_param() | {"retrain": retrain_param()},
        deadline=deadlines(path, site),
        **dag_settings(path, site, __doc__),
    ) as dag:
        chain(*wait_for_start(site), *data_steps(path, site), other_nights(dag), *model_steps(path, site))
    return dag


def data_steps(path: Path, site: SiteHead) -> list[Any]:
    """From raw files to sessions that passed validation."""
    validate = step(path, site, "validate", outlets=[sessions(site)], announced_params=["retrain"])
    return [step(path, site, "ingest"), step(path, site, "sessionize"), validate]


def other_nights(dag: DAG) -> OtherNights:
    """Model steps see the days before as they will stay."""
    return OtherNights(task_id="other_nights", nightly=dag.dag_id)


def model_steps(path: Path, site: SiteHead) -> list[Any]:
    """From the champion that stands to the release, and how it differs from those before."""
    refit = step(path, site, "refit", options={"nightly": None}, **ONE_NIGHT_AFTER_THE_OTHER)
    export = step(path, site, "export", outlets=[recommendations(site)], **ONE_NIGHT_AFTER_THE_OTHER)
    return [refit, export, step(path, site, "drift", trigger_rule="none_failed")]


def retrain_param() -> Param:
    """What a backfill is asked for by --dag-run-conf '{"retrain": "every"}'."""
    told = "train for the newest day only, or for every day of a backfill"
    return Param("newest", type="string", enum=["newest", "every"], description=told)


def deadlines(path: Path, site: SiteHead) -> list[DeadlineAlert]:
    """Somebody is told if the night has not ended at `tables_by`; by the triggerer, beside all tasks.

    It counts from when the run was queued, which is midnight for a run of the schedule: no run of days has the logical
    date that Airflow's other references need.
    """
    by = site.schedule.tables_by
    if by is None:
        return []
    told = {"notifiers": notifiers(site).wanted, "site_file": str(path), "tables_by": by}
    after = timedelta(hours=int(by[:2]), minutes=int(by[3:]))
    callback = AsyncCallback(tables_are_late, kwargs=told)
    return [DeadlineAlert(DeadlineReference.DAGRUN_QUEUED_AT, after, callback, name=f"tables by {by}")]


def wait_for_start(site: SiteHead) -> list[DateTimeSensor]:
    """A first task that waits until `start_after`; none where nights start at midnight. Past days pass at once."""
    seconds = int(site.schedule.start_after.total_seconds())
    if not seconds:
        return []
    start = f"partition_date.in_timezone({site.time_zone!r}).add(days=1, seconds={seconds})"
    return [
        DateTimeSensor(
            task_id="wait_for_start",
            target_time=f"{{{{ {start} if partition_date else macros.datetime(2000, 1, 1) }}}}",
            mode="reschedule",
            timeout=timedelta(hours=25).total_seconds(),
            execution_timeout=None,
        )
    ]


def each_day(time_zone: str) -> CronPartitionTimetable:
    """One run a day, for the day that has just ended, keyed YYYY-MM-DD."""
    return CronPartitionTimetable("0 0 * * *", timezone=midnights(time_zone), run_offset=-1, key_format="%Y-%m-%d")


@cache
def midnights(time_zone: str) -> Any:
    """The zone whose midnights start the nights: the site's own, or, where its clock skips one, its standard time.

    Cron loses a day where midnight does not exist (Cairo, Beirut), and gives the day after twice.
    """
    zone = ZoneInfo(time_zone)
    first = date(2025, 1, 1)
    starts = [
        datetime.combine(first + timedelta(days=n), datetime.min.time(), zone) for n in range(365 * YEARS_LOOKED_AT)
    ]
    if all(datetime.fromtimestamp(start.timestamp(), zone).hour == 0 for start in starts):
        return time_zone
    offset = min(start.utcoffset() or timedelta(0) for start in starts)
    return pendulum.FixedTimezone(int(offset.total_seconds()))


globals().update(site_dags(nightly))
