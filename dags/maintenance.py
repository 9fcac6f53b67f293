"""Fewer and bigger files, and none that nothing needs.

**Delivers** nothing that readers see: small files of a partition are put together, and what is older than the site file
wants to keep is removed: earlier versions of tables (`keep_versions_for`), and sequences, item indexes and MLflow runs
of old nights (`training.keep_runs_for`).

**By when**: after a release (asset `<site>_recommendations`), for the newest day only, once no night is under way; it
may be late, or be left out for days.

*Triage*

- **compact red after several tries**: a step replaced the same partition each time; the next night's run does it.
- **vacuum red**: its log ends with `Reproduce:` and a line to paste; `--dry-run` shows what it would remove.
"""

from pathlib import Path

from airflow.sdk import DAG, PartitionedAssetTimetable, chain

from dags.night_sensors import NewestDay
from dags.site_assets import recommendations
from dags.site_files import SiteHead
from dags.step_tasks import dag_settings, date_param, site_dags, step


def maintenance(path: Path, site: SiteHead) -> DAG:
    """Care for the store and for MLflow."""
    with DAG(
        dag_id=f"{site.name}__maintenance",
        description=f"Compact and clean the store of {site.name}",
        schedule=PartitionedAssetTimetable(assets=recommendations(site)),
        params=date_param(),
        **dag_settings(path, site, __doc__),
    ) as dag:
        chain(
            NewestDay(task_id="newest_day", nightly=f"{site.name}__nightly", site_file=str(path)),
            step(path, site, "compact", is_dated=False),
            step(path, site, "vacuum"),
        )
    return dag


globals().update(site_dags(maintenance))
