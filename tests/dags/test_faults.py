"""What a night does in trouble, at the level of a task: the small instances. The campaign is in test_campaign.py."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

TASK = """
import os, sys
from dags.step_operator import StepOperator
if os.fork() == 0:  # as Airflow's supervisor does
    StepOperator(task_id="t", step="train", site_file="x.yaml", date="2026-11-20").execute({})
    os._exit(0)
os.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux is asked")
@pytest.mark.parametrize("killed", ["task", "worker"])
def test_nothing_of_a_killed_step_meets_its_retry(airflow_environment, fake_nightjar, monkeypatch, killed):
    environment = airflow_environment | fake_nightjar.environment | {"FAKE_FOREVER_train": "yes"}
    worker = subprocess.Popen([sys.executable, "-c", TASK], env=environment, stderr=subprocess.DEVNULL)
    wait_for(lambda: fake_nightjar.calls)
    (call,) = fake_nightjar.calls
    os.kill(call["parent"] if killed == "task" else worker.pid, signal.SIGKILL)
    wait_for(lambda: not is_running(call["pid"]) and not is_running(call["parent"]))
    worker.wait()


def test_a_store_that_is_read_only_for_a_while_is_tried_again(copy_shop, tmp_path):
    shop = copy_shop()
    before = sorted(path.name for path in (shop.home / "store").rglob("*"))
    ended = in_namespace(
        f"mount --bind {shop.home}/store {shop.home}/store && mount -o remount,ro,bind {shop.home}/store || exit 77\n"
        f"{Path(sys.executable).with_name('nightjar')} sessionize --site {shop.file} --date 2026-03-06",
        NIGHTJAR_HOME=str(shop.home),
    )
    if ended.returncode == 77:
        pytest.skip("no read-only mount without being root here")
    assert ended.returncode == 1  # what Airflow tries again
    assert "Read-only file system. Is the store writable?" in ended.stderr
    assert sorted(path.name for path in (shop.home / "store").rglob("*")) == before


def in_namespace(script: str, **environment: str) -> subprocess.CompletedProcess:
    """A script where mounts are its own."""
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", script]
    try:
        return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 77)


def test_a_day_without_data_stops_with_the_reason_and_touches_nothing(command, copy_shop):
    shop = copy_shop()
    before = sorted(path.name for path in (shop.home / "store").rglob("*"))
    code, out, err = command(shop.home, "ingest", "--site", shop.file, "--date", "2026-03-20")
    assert (code, out) == (2, "")
    assert "no input for 2026-03-20" in err
    assert sorted(path.name for path in (shop.home / "store").rglob("*")) == before


def test_a_site_file_that_was_removed_stops_with_the_reason(step_operator, tmp_path, monkeypatch):
    from airflow.sdk.exceptions import AirflowFailException

    monkeypatch.setenv("NIGHTJAR_COMMAND", str(Path(sys.executable).with_name("nightjar")))
    task = step_operator.StepOperator(
        task_id="ingest", step="ingest", site_file=str(tmp_path / "gone.yaml"), date="2026-11-20"
    )
    with pytest.raises(AirflowFailException, match=r"exit code 2[\s\S]*cannot read the site file .*gone.yaml"):
        task.execute({"ti": SimpleNamespace()})


def is_running(pid: int) -> bool:
    """Whether a process runs; a zombie that nobody has reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)
