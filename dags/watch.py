"""Somebody is told when a site has had no new day of good data for too long.

A night that never starts, or that finds no file, has no task that could fail late: this looks from outside, every hour.

**Delivers** an alert, as soon as the newest day that passed validation ended longer ago than `schedule.fresh_within`,
and again once a day until there is a newer one. The DAG is there only where that key is set.

**By when**: every hour.

*Triage*

- An alert came: look at `<site>__nightly` of the day after the one that it names. No run: the DAG is paused, or no
  scheduler is up. A red one: see its own triage.
- **freshness red**: its log ends with `Reproduce:` and a line to paste.
"""

import os
from pathlib import Path

from airflow.sdk import DAG, CronTriggerTimetable

from dags.freshness import FreshnessOperator
from dags.site_files import SiteHead
from dags.step_tasks import dag_settings, notifiers, site_dags


def watch(path: Path, site: SiteHead) -> DAG | None:
    """One look at the newest day; None where nobody wants it."""
    if site.schedule.fresh_within is None:
        return None
    is_off = os.environ.get("NIGHTJAR_SCHEDULE") == "off"
    with DAG(
        dag_id=f"{site.name}__watch",
        description=f"Tell somebody when {site.name} has no new data",
        schedule=None if is_off else CronTriggerTimetable("0 * * * *", timezone="UTC"),
        **dag_settings(path, site, __doc__),
    ) as dag:
        FreshnessOperator(
            task_id="freshness",
            site_file=str(path),
            time_zone=site.time_zone,
            fresh_within=site.schedule.fresh_within,
            notifiers=notifiers(site),
        )
    return dag


globals().update(site_dags(watch))
