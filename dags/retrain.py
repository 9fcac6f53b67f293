"""Models of a site are trained, and the best becomes champion if it beats the one that stands.

**Delivers** versions in MLflow, one for each recipe and seed, and the alias `champion`. Lists do not change: the next
night refits the champion and exports its lists.

**By when**: runs for each day whose data has passed validation (asset `<site>_sessions`, with the day as key), after
the site's nights under way; before the next midnight, or that night goes on with the champion that stands.

**Which days**: the newest one, on the weekdays of `schedule.retrain_on`; so a backfill of thirty days trains once.
Every day of a backfill: `--dag-run-conf '{"retrain": "every"}'`. A run that is started by hand (*Trigger*, with a
partition key like `2026-11-20`) always trains.

*Triage*

- Every failed task ends its log with `Reproduce:` and a line to paste.
- **newest_day skipped**: no training for that day; its log says why.
- **train red**: mend what its log names and clear it: it goes on from its last checkpoint into the same MLflow run.
- **train stays `scheduled`**: the pool does not exist (`airflow pools set gpu 1 "steps on the GPU"`) or is full. It
  stays `queued`: no worker listens to the queue.
- **promote green, champion not moved**: no error; its report says why.
"""

from pathlib import Path
from typing import Any

from airflow.sdk import DAG, PartitionedAssetTimetable, chain

from dags.night_sensors import NewestDay
from dags.site_assets import sessions
from dags.site_files import SiteHead
from dags.step_operator import StepOperator
from dags.step_tasks import ONE_NIGHT_AFTER_THE_OTHER, dag_settings, date_param, site_dags, step, step_settings


def retrain(path: Path, site: SiteHead) -> DAG:
    """From sessions to the champion."""
    with DAG(
        dag_id=f"{site.name}__retrain",
        description=f"Train the models of {site.name}; the best becomes champion",
        schedule=PartitionedAssetTimetable(assets=sessions(site)),
        params=date_param(),
        **dag_settings(path, site, __doc__),
    ) as dag:
        chain(
            newest_day(path, site),
            step(path, site, "features"),
            train(path, site),
            step(path, site, "promote", **ONE_NIGHT_AFTER_THE_OTHER),
        )
    return dag


def newest_day(path: Path, site: SiteHead) -> NewestDay:
    """A first task that lets only days through that are to be trained for."""
    return NewestDay(
        task_id="newest_day",
        nightly=f"{site.name}__nightly",
        site_file=str(path),
        weekdays=site.schedule.retrain_on,
        obeys_every=True,
    )


def train(path: Path, site: SiteHead) -> Any:
    """One task a recipe and seed; how many run at once is the pool's business."""
    return StepOperator.partial(
        task_id="train",
        map_index_template="{{ task.options.recipe }}{{ ' seed ' ~ task.options.seed if 'seed' in task.options }}",
        **step_settings(path, site, "train"),
    ).expand(options=site.trainings)


globals().update(site_dags(retrain))
