"""Runs a site's night in this process, by partition key and (if a second day is given) by param; prints JSON."""

import json
import sys
from unittest.mock import patch

from airflow.serialization.definitions.dag import SerializedDAG

import dags.nightly

dag = getattr(dags.nightly, sys.argv[1])
keyed_day, *param_days = sys.argv[2:]
real = SerializedDAG.create_dagrun


def create_with_key(self, **settings):
    """`DAG.test` has no partition key of its own."""
    date = self.timetable.resolve_partition_date(keyed_day)
    return real(self, **settings, partition_key=keyed_day, partition_date=date)


def outcome(run):
    tasks = sorted(run.get_task_instances(), key=lambda task: task.start_date)
    return {
        "state": str(run.state),
        "order": [task.task_id for task in tasks],
        "labels": [task.rendered_map_index for task in tasks if task.map_index >= 0],
        "export": run.get_task_instance("export").xcom_pull(task_ids="export", run_id=run.run_id),
    }


def events():
    from airflow.models.asset import AssetEvent
    from airflow.utils.session import create_session

    with create_session() as session:
        told = session.query(AssetEvent).filter_by(source_dag_id=dag.dag_id).order_by(AssetEvent.id)
        return [[event.partition_key, event.extra] for event in told]


with patch.object(SerializedDAG, "create_dagrun", create_with_key):
    keyed = outcome(dag.test(logical_date=None))
by_param = [outcome(dag.test(logical_date=None, run_conf={"date": day})) for day in param_days]
print()
print(json.dumps({"keyed": keyed, "by_param": by_param, "events": events()}))
