"""Reads the DAG files as Airflow's DAG processor does and prints what it found as JSON; run in a fresh process."""

import contextlib
import importlib
import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

before = time.process_time()
import airflow.sdk  # noqa: E402, F401 (its time is not ours)

seconds_of_airflow = time.process_time() - before
from airflow.dag_processing.dagbag import DagBag  # noqa: E402
from airflow.dag_processing.importers import get_importer_registry  # noqa: E402
from airflow.serialization.serialized_objects import DagSerialization  # noqa: E402

HEAVY = ["polars", "pandas", "numpy", "pyarrow", "deltalake", "torch", "faiss", "mlflow", "great_expectations", "typer"]

folder = os.environ["AIRFLOW__CORE__DAGS_FOLDER"]
already = set(sys.modules)
files = [Path(path).name for path in get_importer_registry().list_dag_files(folder, True)]
started = time.process_time()
for file in files:
    with contextlib.suppress(ValueError):  # of broken_sites.py
        importlib.import_module(f"dags.{Path(file).stem}")
seconds = time.process_time() - started
bag = DagBag(folder)


def keys(dag, earliest, latest):
    """The keys that a backfill of these days has, and those that nights started by the clock have."""
    timetable = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag)).timetable
    if not timetable.partitioned or wakers(dag):
        return None
    window = [datetime.fromisoformat(day).replace(tzinfo=UTC) for day in (earliest, latest)]
    backfill = [
        info.partition_key for info in timetable.iter_partition_dagrun_infos(earliest=window[0], latest=window[1])
    ]
    return {"backfill": backfill, "clock": clock_keys(dag, timetable, *window)}


def clock_keys(dag, timetable, earliest, latest):
    """Key and start of each night that the clock starts in a window."""
    import pendulum
    from airflow.timetables.base import TimeRestriction

    until = min(latest, dag.end_date or latest)
    restriction = TimeRestriction(pendulum.instance(earliest), pendulum.instance(until), catchup=True)
    found, last = [], None
    while info := timetable.next_dagrun_info_v2(last_dagrun_info=last, restriction=restriction):
        found.append([info.partition_key, info.run_after.isoformat()])
        last = info
    return found


def wakers(dag):
    """The assets whose events start a DAG."""
    condition = getattr(dag.timetable, "asset_condition", None)
    if condition is None:
        return []
    return [condition] if hasattr(condition, "name") else [asset for _, asset in condition.iter_assets()]


def describe(dag):
    return {
        "owner": dag.owner,
        "tags": sorted(dag.tags),
        "doc_md": dag.doc_md,
        "catchup": dag.catchup,
        "max_active_runs": dag.max_active_runs,
        "order": [task.task_id for task in dag.topological_sort()],
        "params": {name: dag.params.get_param(name).schema for name in dag.params},
        "waits_for": [asset.name for asset in wakers(dag)],
        "deadlines": [
            [each.reference.reference_name, each.interval.total_seconds(), each.callback.path, each.callback.kwargs]
            for each in dag.deadline or []
        ],
        "told_of_failures": {
            task.task_id: len(callback.wanted) for task in dag.tasks for callback in task.on_failure_callback
        },
        "alone": [task.task_id for task in dag.tasks if task.max_active_tis_per_dag == 1],
        "upstream": {task.task_id: sorted(task.upstream_task_ids) for task in dag.tasks},
        "tasks": {task.task_id: [task.queue, task.pool, task.retries] for task in dag.tasks},
        "outlets": {task.task_id: [asset.name for asset in task.outlets] for task in dag.tasks if task.outlets},
        "keys_in_spring": keys(dag, "2026-03-27", "2026-04-01"),
        "keys_in_autumn": keys(dag, "2026-10-23", "2026-10-28"),
        "keys_in_cairo": keys(dag, "2026-04-21", "2026-04-27"),
    }


print()
print(
    json.dumps(
        {
            "files": files,
            "import_errors": {Path(path).name: error for path, error in bag.import_errors.items()},
            "heavy": [name for name in HEAVY if name in set(sys.modules) - already],
            "seconds": seconds,
            "seconds_of_airflow": seconds_of_airflow,
            "dags": {dag_id: describe(dag) for dag_id, dag in bag.dags.items()},
        }
    )
)
