"""Runs DAGs of a site in this process: by partition key, `DAG=KEY`, or by conf, `DAG={"date": …}`; prints JSON."""

import json
import sys
from pathlib import Path
from unittest.mock import patch

from airflow.dag_processing.dagbag import DagBag
from airflow.serialization.definitions.dag import SerializedDAG

import dags

bag = DagBag(str(Path(dags.__file__).parent))
real = SerializedDAG.create_dagrun


def run(dag, told):
    if told.startswith("{"):
        return dag.test(logical_date=None, run_conf=json.loads(told))

    def create_with_key(self, **settings):
        """`DAG.test` has no partition key of its own."""
        return real(self, **settings, partition_key=told, partition_date=self.timetable.resolve_partition_date(told))

    with patch.object(SerializedDAG, "create_dagrun", create_with_key):
        return dag.test(logical_date=None)


def told_by(run, task):
    return task.xcom_pull(task_ids=task.task_id, run_id=run.run_id)


def outcome(run):
    tasks = sorted(run.get_task_instances(), key=lambda task: (task.start_date is None, task.start_date))
    return {
        "state": str(run.state),
        "order": [task.task_id for task in tasks],
        "states": {task.task_id: str(task.state) for task in tasks},
        "labels": [task.rendered_map_index for task in tasks if task.map_index >= 0],
        "reports": {task.task_id: told_by(run, task) for task in tasks if task.map_index < 0},
    }


def events():
    from airflow.models.asset import AssetEvent
    from airflow.utils.session import create_session

    with create_session() as session:
        told = session.query(AssetEvent).order_by(AssetEvent.id)
        return [[event.asset.name, event.partition_key, event.extra] for event in told]


outcomes = []
for argument in sys.argv[1:]:
    dag_id, _, told = argument.partition("=")
    outcomes.append(outcome(run(bag.dags[dag_id], told)))
print()
print(json.dumps({"runs": outcomes, "events": events()}))
