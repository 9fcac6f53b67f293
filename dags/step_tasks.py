"""What all DAGs of a site have in common: how a step becomes a task, where it runs, how often it is tried."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Param

from dags.alerts import Notifiers
from dags.site_files import SiteHead, conf_folder, read_site_files
from dags.step_operator import StepOperator

ONE_NIGHT_AFTER_THE_OTHER: Mapping[str, Any] = {"max_active_tis_per_dag": 1}
"""For steps that change what the next night starts from; a backfill runs many nights at once."""


def site_dags(build: Callable[[Path, SiteHead], DAG | None]) -> dict[str, DAG]:
    """DAG id -> DAG, of every good site file; a site for which `build` gives None has none of this kind."""
    made = [build(path, site) for path, site in read_site_files(conf_folder()).sites.items()]
    return {dag.dag_id: dag for dag in made if dag is not None}


def dag_settings(path: Path, site: SiteHead, doc_md: str | None) -> dict[str, Any]:
    """What every DAG of a site is told."""
    return {
        "doc_md": f"{doc_md}\nSite file: `{path.name}`, days of {site.time_zone}.\n",
        "catchup": False,
        "max_active_runs": 1,
        "default_args": task_defaults(site),
        "tags": ["nightjar", site.name],
    }


def date_param() -> dict[str, Param]:
    """The day of a run that has no partition key."""
    return {"date": Param(None, type=["null", "string"], format="date", description="for a run without a key")}


def step(path: Path, site: SiteHead, name: str, **settings: Any) -> StepOperator:
    """One step as a task of the same name."""
    return StepOperator(task_id=name, **step_settings(path, site, name), **settings)


def step_settings(path: Path, site: SiteHead, name: str) -> dict[str, Any]:
    """What a step's task needs, mapped or not."""
    return {"step": name, "site_file": str(path), "notifiers": notifiers(site), **placement(site, name)}


def notifiers(site: SiteHead) -> Notifiers:
    """Who is told."""
    return Notifiers([notifier.model_dump() for notifier in site.schedule.alerts])


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
        "on_failure_callback": notifiers(site),
    }


def placement(site: SiteHead, name: str) -> dict[str, Any]:
    """Where a step runs: queue, pool, and what the site file says of executor and pod."""
    schedule = site.schedule
    if name not in schedule.gpu_steps:
        return {}
    placed: dict[str, Any] = {"queue": schedule.gpu_queue, "pool": schedule.gpu_pool}
    if schedule.gpu_executor:
        placed["executor"] = schedule.gpu_executor
    if schedule.gpu_pod_template:  # a dictionary, not a V1Pod: that would import Kubernetes into every DAG file
        placed["executor_config"] = {"pod_template_file": schedule.gpu_pod_template}
    return placed
