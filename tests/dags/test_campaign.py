"""The faults of a night under a real scheduler: one command of a step is ever at work, and the night ends."""

import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager, suppress

import psutil
import pytest

import dags.local_stack as local_stack
import dags.ports as ports
from dags.airflow_api import AirflowApiError

pytestmark = pytest.mark.slow  # a scheduler takes its time to notice that something has died

DAY = "2026-11-20"
STEPS = ["ingest", "sessionize", "validate", "refit", "export", "drift"]
SITE = "name: shop\nschedule: {retries: 3, retry_delay: 1s, max_retry_delay: 5s}\ntraining: {recipes: {gru: }}\n"
MINUTE = 60.0


@pytest.fixture
def hold(tmp_path, fake_nightjar, monkeypatch):
    """A folder: a step whose name lies in it does not end."""
    folder = tmp_path / "hold"
    folder.mkdir()
    monkeypatch.setenv("FAKE_HOLD", str(folder))
    return folder


@contextmanager
def shop_stack(tmp_path, write_sites, site=SITE):
    conf = write_sites(shop=site)
    with local_stack.airflow_stack(tmp_path / "home", conf) as stack:
        stack.wait_for_dag("shop__nightly", time.monotonic() + 60)
        yield stack


def calls_of(fake_nightjar, step, day=DAY):
    return [call for call in fake_nightjar.calls if call["argv"][0] == step and call["argv"][4] == day]


def wait_for(condition, seconds, what="it"):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not come about"
        time.sleep(0.1)
    return found


def wait_until_ended(stack, run_id, dag_id="shop__nightly"):
    return wait_for(
        lambda: (state := stack.airflow.run_state(dag_id, run_id)) in ("success", "failed") and state, 300, "the end"
    )


@pytest.mark.parametrize("victim", ["task", "worker"])
def test_a_night_ends_well_whatever_is_killed_in_each_of_its_tasks(tmp_path, write_sites, fake_nightjar, hold, victim):
    for step in STEPS:
        (hold / step).touch()
    with shop_stack(tmp_path, write_sites) as stack:
        run_id = stack.airflow.start_run("shop__nightly", DAY)
        seconds = {}
        for step in STEPS:
            [call] = wait_for(lambda step=step: calls_of(fake_nightjar, step), MINUTE, step)
            task = psutil.Process(call["parent"])
            (task if victim == "task" else task.parent()).kill()
            killed = time.monotonic()
            wait_for(lambda step=step: len(calls_of(fake_nightjar, step)) > 1, 2 * MINUTE, f"the second {step}")
            seconds[step] = time.monotonic() - killed
            (hold / step).unlink()
        assert wait_until_ended(stack, run_id) == "success"
    assert [call["beside"] for call in fake_nightjar.calls if call["beside"]] == []
    assert max(seconds.values()) < MINUTE, seconds


def test_a_scheduler_that_is_killed_goes_on_once_it_is_back(tmp_path, write_sites, fake_nightjar, hold, monkeypatch):
    real = local_stack.airflow_servers

    def restarting(port):
        servers = real(port)
        again = 'while true; do "$@"; sleep 3; done'
        return servers | {"scheduler": ["sh", "-c", again, "scheduler", *servers["scheduler"]]}

    monkeypatch.setattr(local_stack, "airflow_servers", restarting)
    (hold / "sessionize").touch()
    with shop_stack(tmp_path, write_sites) as stack:
        run_id = stack.airflow.start_run("shop__nightly", DAY)
        [call] = wait_for(lambda: calls_of(fake_nightjar, "sessionize"), MINUTE)
        scheduler_of(call).kill()
        time.sleep(20)
        (hold / "sessionize").unlink()
        assert wait_until_ended(stack, run_id) == "success"
    assert [call["beside"] for call in fake_nightjar.calls if call["beside"]] == []
    assert {call["argv"][0] for call in fake_nightjar.calls} >= set(STEPS)


def scheduler_of(call):
    """The scheduler above a command: the topmost Python whose command line names it."""
    above = psutil.Process(call["parent"]).parents()
    return [each for each in above if "scheduler" in each.cmdline() and each.name() != "sh"][-1]


def test_two_runs_of_a_day_a_bad_day_and_a_site_file_that_is_gone(tmp_path, write_sites, fake_nightjar, hold):
    with shop_stack(tmp_path, write_sites) as stack:
        both = [stack.airflow.start_run("shop__nightly", DAY) for _ in range(2)]
        assert [wait_until_ended(stack, run_id) for run_id in both] == ["success", "success"]
        assert len(calls_of(fake_nightjar, "export")) == 2
        for told in ({"partition_key": "2026-13-45"}, {"conf": {"date": "2026-13-45"}}, {"conf": {"date": "$(id)"}}):
            with pytest.raises(AirflowApiError, match="400"):
                stack.airflow.post("dags/shop__nightly/dagRuns", {"logical_date": None, **told})

        (hold / "sessionize").touch()
        later = "2026-11-21"
        run_id = stack.airflow.start_run("shop__nightly", later)
        wait_for(lambda: calls_of(fake_nightjar, "sessionize", later), MINUTE)
        site_file = tmp_path / "conf" / "shop.yaml"
        site_file.unlink()
        (hold / "sessionize").unlink()
        time.sleep(20)
        assert calls_of(fake_nightjar, "export", later) == []
        site_file.write_text(SITE)
        stack.wait_for_dag("shop__nightly", time.monotonic() + MINUTE)
        if wait_until_ended(stack, run_id) == "failed":
            stack.command("dags", "clear", "shop__nightly", "--partition-key", later, "-y")
            time.sleep(1)
            assert wait_until_ended(stack, run_id) == "success"
        assert len(calls_of(fake_nightjar, "export", later)) == 1
    assert [call["beside"] for call in fake_nightjar.calls if call["beside"]] == []


ALERTS = """
  alerts: [{notifier: dags.alerts.FileNotifier, arguments: {path: alerts.jsonl}}]
  tables_by: 00:01
"""


def test_somebody_is_told_of_a_night_that_is_late_and_of_one_that_failed(
    tmp_path, write_sites, fake_nightjar, hold, monkeypatch
):
    monkeypatch.setenv("FAKE_EXIT_export", "3")
    (hold / "ingest").touch()
    box = tmp_path / "home" / "alerts.jsonl"

    def told():
        return [json.loads(line)["text"] for line in box.read_text().splitlines()] if box.exists() else []

    with shop_stack(tmp_path, write_sites, f"name: shop\nschedule:{ALERTS}") as stack:
        run_id = stack.airflow.start_run("shop__nightly", DAY)
        [late] = wait_for(told, 3 * MINUTE, "the alert of a late night")
        (hold / "ingest").unlink()
        assert wait_until_ended(stack, run_id) == "failed"
        _, failed = wait_for(lambda: len(told()) > 1 and told(), MINUTE, "the alert of a failed task")
        address = stack.airflow.address
    assert f"shop__nightly of {DAY} has not ended by 00:01. Readers keep the lists that they have." in late
    sentence, command, link = failed.splitlines()
    assert "failed at export: `nightjar export` failed (exit code 3: the data broke its contract)" in sentence
    assert command.endswith(f"nightjar export --site {tmp_path}/conf/shop.yaml --date {DAY}")
    assert link.startswith(f"{address}/dags/shop__nightly/runs/")


def test_a_retraining_backs_off_while_mlflow_is_away_and_ends_well(tmp_path, loaded_shop, write_site, monkeypatch):
    """Two minutes without the tracking server, in the middle of real commands."""
    shop = write_site(
        tmp_path / "home",
        training={"recipes": {"popularity": None, "recent_popularity": None}},
        schedule={"retries": 5, "retry_delay": "10s", "max_retry_delay": "1m", "gpu_steps": []},
    )
    shutil.copytree(loaded_shop.home / "store", shop.home / "store")
    conf = tmp_path / "conf"
    conf.mkdir()
    shutil.copy(shop.file, conf)
    with ports.claimed_port(25_000) as port, mlflow(shop.home, port) as first:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        with local_stack.airflow_stack(shop.home, conf) as stack:
            stack.wait_for_dag("small__retrain", time.monotonic() + MINUTE)
            run_id = stack.airflow.start_run("small__retrain", str(shop.days[-1]))
            wait_for(lambda: state_of(stack, run_id, "features") == "success", 2 * MINUTE, "features")
            os.killpg(first.pid, signal.SIGKILL)
            time.sleep(2 * MINUTE)
            with mlflow(shop.home, port):
                assert wait_until_ended(stack, run_id, "small__retrain") == "success"
                tries = {task["task_id"]: task["try_number"] for task in tasks_of(stack, run_id)}
            assert tries["train"] > 1
            assert tries["promote"] == 1


def tasks_of(stack, run_id):
    return stack.airflow.task_instances("small__retrain", run_id)


def state_of(stack, run_id, task_id):
    return next(task["state"] for task in tasks_of(stack, run_id) if task["task_id"] == task_id)


@contextmanager
def mlflow(home, port):
    """A real tracking server, until the block ends."""
    [command] = local_stack.mlflow_server(home, port).values()
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        ports.wait_until_listening(port, lambda: None, 2 * MINUTE)
        yield server
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
