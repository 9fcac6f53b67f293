"""Prints where the tasks of a site would run, after Airflow has written its DAGs and read them again."""

import json
import sys

from airflow.serialization.serialized_objects import DagSerialization

import dags.nightly
import dags.retrain

site = sys.argv[1]
made = [getattr(dags.nightly, f"{site}__nightly"), getattr(dags.retrain, f"{site}__retrain")]
placed = {}
for dag in made:
    for task in DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag)).tasks:
        placed[task.task_id] = [task.queue, task.pool, task.executor, task.executor_config or {}]
print()
print(json.dumps({"placed": placed, "kubernetes": "kubernetes" in sys.modules}))
