"""Where GPU steps run: by queue, pool, executor and pod, and that a worker of their queue runs them."""

import contextlib
import json
import os
import sys
import time
from pathlib import Path

import pytest

from dags.airflow_api import AirflowApi, wait_until_healthy
from dags.local_stack import (
    NightFailedError,
    Stack,
    airflow_home,
    airflow_servers,
    airflow_settings,
    migrate,
    quiet_settings,
)
from dags.ports import free_port
from dags.processes import kept

WITNESS = Path(__file__).parent.parent / "docker" / "witness.py"
DAY = "2026-11-20"


def test_the_site_file_says_which_executor_and_pod_gpu_steps_get(in_airflow, write_sites):
    place = "{gpu_executor: KubernetesExecutor, gpu_pod_template: /opt/airflow/pods/gpu-pod.yaml, gpu_steps: [train]}"
    conf = write_sites(shop=f"name: shop\nschedule: {place}\n")
    executors = {"AIRFLOW__CORE__EXECUTOR": "LocalExecutor,KubernetesExecutor"}
    found = in_airflow("place_gpu_steps.py", "shop", NIGHTJAR_CONF=str(conf), **executors)
    template = {"pod_template_file": "/opt/airflow/pods/gpu-pod.yaml"}
    assert found["placed"].pop("train") == ["gpu", "gpu", "KubernetesExecutor", template]
    assert {tuple(map(str, place)) for place in found["placed"].values()} == {("default", "default_pool", "None", "{}")}
    assert not found["kubernetes"]  # its client takes seconds to import, in every DAG file


@contextlib.contextmanager
def stack_with_gpu_worker(home, conf, settings):
    """The local stack with a Celery executor beside its own, and one worker that listens to the queue of GPUs."""
    port = free_port(20_000 + os.getpid() % 10_000)  # other stacks on this machine look from 8080 on
    celery = {
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor,CeleryExecutor",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__CELERY__BROKER_URL": f"sqla+sqlite:///{home}/broker.db",
        "AIRFLOW__CELERY__RESULT_BACKEND": f"db+sqlite:///{home}/results.db",
        "AIRFLOW__CELERY__WORKER_ENABLE_REMOTE_CONTROL": "False",
    }
    environment = os.environ | airflow_settings(home, conf, port) | quiet_settings() | celery | settings
    worker = [sys.executable, "-m", "airflow", "celery", "worker", "--queues", "gpu", "--concurrency", "2"]
    quiet = ["--without-gossip", "--without-mingle", "--skip-serve-logs", "--celery-hostname", "celery@gpu-worker"]
    logs = airflow_home(home) / "logs" / "servers"
    migrate(home, environment, logs)
    with kept(airflow_servers(port) | {"gpu-worker": [*worker, *quiet]}, environment, logs) as check:
        api = AirflowApi(f"http://127.0.0.1:{port}")
        wait_until_healthy(api, check, 180)
        api.make_pool("gpu", 1, "one GPU")
        yield Stack(home, api, None, check, environment)


@pytest.fixture(scope="module")
def nights(tmp_path_factory, night_command):
    """Two sites retrain at once and share one GPU, each for longer than Airflow lets a task be queued."""
    home, conf = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("conf")
    for name in ("one", "two"):
        schedule = "{gpu_executor: CeleryExecutor, retries: 0}"
        (conf / f"{name}.yaml").write_text(f"name: {name}\nschedule: {schedule}\ntraining: {{recipes: {{gru: }}}}\n")
    settings = {
        "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "20",
        "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "1",
        "AIRFLOW__SCHEDULER__NUM_STUCK_IN_QUEUED_RETRIES": "0",
        "NIGHTJAR_COMMAND": f"{sys.executable} {WITNESS}",
        "WITNESS_COMMAND": str(night_command.command),
        "WITNESS_FILE": str(home / "witness.jsonl"),
        "WITNESS_SECONDS_train": "25",
    }
    with stack_with_gpu_worker(home, conf, night_command.environment | settings) as stack:
        deadline = time.monotonic() + 240
        dags = [f"{site}__retrain" for site in ("one", "two")]
        for dag in dags:
            stack.wait_for_dag(dag, deadline)
        runs = {dag: stack.airflow.start_run(dag, DAY) for dag in dags}
        for dag, run in runs.items():
            with contextlib.suppress(NightFailedError):  # the tests look at the states of its tasks
                stack.watch(dag, run, DAY, deadline, None)
        tasks = [task for dag, run in runs.items() for task in stack.airflow.task_instances(dag, run)]
    return tasks, [json.loads(line) for line in (home / "witness.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_train_runs_under_the_gpu_worker_and_nothing_else_does(nights):
    _, seen = nights
    under = {call["step"]: any("celery@gpu-worker" in title for title in call["under"]) for call in seen}
    assert under == {"features": False, "train": True, "promote": False}


@pytest.mark.slow
def test_a_gpu_step_that_waits_long_is_held_by_the_pool_and_not_given_up(nights):
    tasks, seen = nights
    first, second = sorted(call["at"] for call in seen if call["step"] == "train")
    assert second - first > 25  # the pool let one go at a time, though the worker had room for two
    assert {task["state"] for task in tasks} == {"success"}
    trained = [(task["executor"], task["try_number"]) for task in tasks if task["task_id"] == "train"]
    assert trained == [("CeleryExecutor", 1), ("CeleryExecutor", 1)]
