"""Raw logs of a day in, recommendation tables out, once a night.

**Delivers** for each site the tables `recommendations`, `related_items` and `popular_items` of the day, as one release,
and tells it by the asset `<site>_recommendations` (partition key: the day).

**Starts** after midnight of the site's zone (plus `schedule.start_after`). By hand: *Trigger*, with a partition key
like `2026-11-20`. Again: clear the run, or a task and what follows it; running twice gives the same tables.

*Triage*

- Every failed task ends its log with `Reproduce:` and a line to paste.
- **validate red**: the data of the day broke its contract (exit code 3). Nothing was published; readers still have the
  last release. Look at the Data Docs that the log names, repair the delivery, clear `ingest` and what follows.
- **exit code 2**: the site file is wrong, or there is no input for that day. No retry helps.
- **red after several tries**: exit code 1 each time, look at the disk, the store and the MLflow server.
- **train or refit stays `scheduled`**: the pool does not exist (`airflow pools set gpu 1 "steps on the GPU"`). It stays
  `queued`: no worker listens to the queue.
- **promote green, champion not moved**: no error; its report says why.
- A site is missing here: look at the import errors.
"""

import os
from datetime import date, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pendulum
from airflow.providers.standard.sensors.date_time import DateTimeSensor
from airflow.sdk import DAG, Asset, CronPartitionTimetable, Param, PartitionedAtRuntime, chain

from dags.site_files import SiteHead, conf_folder, read_site_files
from dags.step_operator import StepOperator

YEARS_LOOKED_AT = 4


def nightly(path: Path, site: SiteHead) -> DAG:
    """All steps of a site's night, one after the other."""
    with DAG(
        dag_id=f"{site.name}__nightly",
        description=f"Raw logs of a day in, recommendation tables of {site.name} out",
        doc_md=f"{__doc__}\nSite file: `{path.name}`, days of {site.time_zone}.\n",
        schedule=each_day(site.time_zone),
        catchup=False,
        max_active_runs=1,
        params={"date": Param(None, type=["null", "string"], format="date", description="for a run without a key")},
        default_args=task_defaults(site),
        tags=["nightjar", site.name],
    ) as dag:
        chain(*wait_for_start(site), *data_steps(path, site), *model_steps(path, site), export_step(path, site))
    return dag


def data_steps(path: Path, site: SiteHead) -> list[StepOperator]:
    """From raw files to sessions that passed validation."""
    return [step(path, site, name) for name in ("ingest", "sessionize", "validate")]


def model_steps(path: Path, site: SiteHead) -> list[Any]:
    """From sessions to the model that serves."""
    train = StepOperator.partial(
        task_id="train",
        step="train",
        site_file=str(path),
        max_active_tis_per_dagrun=1,
        map_index_template="{{ task.options.recipe }}",
        **placement(site, "train"),
    ).expand(options=[{"recipe": recipe} for recipe in site.recipes])
    return [step(path, site, "features"), train, step(path, site, "promote"), step(path, site, "refit")]


def export_step(path: Path, site: SiteHead) -> StepOperator:
    """The release, and who is told of it."""
    return step(path, site, "export", outlets=[recommendations(site)])


def step(path: Path, site: SiteHead, name: str, **settings: Any) -> StepOperator:
    """One step as a task of the same name."""
    return StepOperator(task_id=name, step=name, site_file=str(path), **placement(site, name), **settings)


def recommendations(site: SiteHead) -> Asset:
    """What jobs downstream wait for; the event's partition key is the day."""
    return Asset(name=f"{site.name}_recommendations", uri=f"x-nightjar://{site.name}/recommendations")


def task_defaults(site: SiteHead) -> dict[str, Any]:
    """Owner, retries with back-off and the time limit of each task."""
    schedule = site.schedule
    return {
        "owner": schedule.owner,
        "retries": schedule.retries,
        "retry_delay": schedule.retry_delay,
        "retry_exponential_backoff": 2,
        "max_retry_delay": schedule.max_retry_delay,
        "execution_timeout": schedule.step_timeout,
    }


def placement(site: SiteHead, name: str) -> dict[str, Any]:
    """Queue and pool of a step."""
    if name not in site.schedule.gpu_steps:
        return {}
    return {"queue": site.schedule.gpu_queue, "pool": site.schedule.gpu_pool}


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


def each_day(time_zone: str) -> CronPartitionTimetable | PartitionedAtRuntime:
    """One run a day, for the day that has just ended, keyed YYYY-MM-DD.

    With NIGHTJAR_SCHEDULE=off nothing starts by itself, and runs by hand still take a key (a schedule that can fire
    starts a run for yesterday as soon as somebody starts the first run by hand).
    """
    if os.environ.get("NIGHTJAR_SCHEDULE") == "off":
        return PartitionedAtRuntime()
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


for site_path, site_head in read_site_files(conf_folder()).sites.items():
    globals()[f"{site_head.name}__nightly"] = nightly(site_path, site_head)
