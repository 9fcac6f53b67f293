"""The deployment of compose.yaml as processes, with real Redis and PostgreSQL: a night of a small simulated shop."""

import json
import time
import urllib.error
import urllib.request

import psutil
import pytest

pytestmark = pytest.mark.services
ON_GPUS = {"train", "refit"}


def test_nobody_gets_in_without_the_password_of_first_start(running):
    deployment, _ = running
    address = f"http://127.0.0.1:{deployment.ports['api-server:8080']}"
    guess = json.dumps({"username": "admin", "password": "admin"}).encode()
    for request in (
        urllib.request.Request(f"{address}/auth/token", guess, {"Content-Type": "application/json"}),
        urllib.request.Request(f"{address}/api/v2/dags"),
    ):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(request)


def test_mlflow_answers_by_its_name_in_the_network_only(running):
    deployment, _ = running
    address = f"http://127.0.0.1:{deployment.ports['mlflow:5000']}/api/2.0/mlflow/experiments/search?max_results=1"
    with urllib.request.urlopen(urllib.request.Request(address, headers={"Host": "mlflow:5000"})) as answer:
        assert answer.status == 200
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(urllib.request.Request(address, headers={"Host": "elsewhere:5000"}))


def test_a_night_ends_in_a_release_and_a_champion(night, small_site):
    assert night["export"]["date"] == str(small_site.days[3])
    assert night["export"]["users"] > 100
    assert night["train"]["popularity"]["model_version"] == night["promote"]["model_version"]


def test_steps_on_gpus_run_under_the_gpu_worker_and_all_others_under_the_cpu_worker(night, running):
    deployment, _ = running
    seen = [json.loads(line) for line in (deployment.folder / "witness.jsonl").read_text().splitlines()]
    workers = {call["step"]: worker_of(call["under"]) for call in seen}
    assert set(workers) >= ON_GPUS | {"ingest", "export"}
    assert {step: "gpu-worker" if step in ON_GPUS else "cpu-worker" for step in workers} == workers


def worker_of(processes):
    """The Celery worker among a step's ancestors."""
    found = {name for name in ("cpu-worker", "gpu-worker") for title in processes if f"celery@{name}" in title}
    assert len(found) == 1, processes
    return found.pop()


def test_models_and_their_files_went_through_the_server_of_mlflow(night, running):
    deployment, _ = running
    assert list((deployment.folder / "artifacts").rglob("bundle"))
    assert not (deployment.folder / "home" / "mlflow.db").exists()


def test_a_training_whose_worker_is_killed_starts_again_in_the_next_one(
    night, running, small_site, stack_of, start_servers
):
    deployment, _ = running
    kill_gpu_worker()
    witness = deployment.folder / "witness.jsonl"
    witness.write_text("")
    stack, day = stack_of(*running), str(small_site.days[3])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(deployment.of_workers, "WITNESS_SECONDS_train", "600")
        with start_servers(deployment, ("gpu-worker",)):
            run = stack.airflow.start_run("small__retrain", day)
            wait_for(lambda: "train" in witness.read_text())
            kill_gpu_worker()
            killed = time.time()
    with start_servers(deployment, ("gpu-worker",)):
        deadline = time.monotonic() + 240
        assert stack.watch("small__retrain", run, day, deadline, None)["promote"]
    first, second = [call for call in map(json.loads, witness.read_text().splitlines()) if call["step"] == "train"]
    assert first["at"] < killed < second["at"] < killed + 90  # a minute to notice, and the start of a worker


def kill_gpu_worker():
    """SIGKILL for the worker and what it forked; its step is left to notice by itself."""
    tasks = [child for child in psutil.Process().children(recursive=True) if "celery@gpu-worker" in title(child)]
    assert tasks
    for process in tasks:
        process.kill()
    psutil.wait_procs(tasks, timeout=10)
    wait_for(lambda: not [child for child in psutil.Process().children(recursive=True) if "witness.py" in title(child)])


def title(process):
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.2)


def test_workers_know_no_database(running):
    deployment, _ = running
    for worker in ("cpu-worker", "gpu-worker"):
        assert not [value for value in deployment.environment(worker).values() if "postgresql" in value]
