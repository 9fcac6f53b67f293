"""Trainings that lose their process, or their MLflow server, for real."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from mlflow import MlflowClient

import nightjar
from training.tracking import Tracking

pytestmark = pytest.mark.slow
NIGHTJAR = Path(sys.executable).with_name("nightjar")
GRU = {"recipes": {"gru": {"hidden_size": 16, "epochs": 12, "batch_size": 4}}}


def start(shop, **environment):
    arguments = ["train", "--site", str(shop.file), "--date", str(shop.days[3]), "--recipe", "gru"]
    ours = {"NIGHTJAR_HOME": str(shop.home), "OMP_NUM_THREADS": "1"} | environment
    return subprocess.Popen(
        [NIGHTJAR, *arguments], env=os.environ | ours, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(is_there, what):
    for _ in range(1200):
        if is_there():
            return
        time.sleep(0.05)
    pytest.fail(f"waited a minute for {what}")


def checkpoints(shop):
    return list((shop.home / "checkpoints").rglob("last.ckpt"))


def test_a_killed_training_goes_on_and_ends_as_if_nothing_had_happened(copy_shop):
    shop = copy_shop(training=GRU)
    night = shop.days[3]
    nightjar.features(shop.site, shop.store, night)
    whole = nightjar.train(shop.site, shop.store, night, "gru", 1)
    process = start(shop)
    wait_for(lambda: checkpoints(shop), "a checkpoint")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert checkpoints(shop), "it was killed too late to tell anything"
    out, err = start(shop).communicate(timeout=300)
    assert "going on from" in err
    resumed = nightjar.json.loads(out)
    assert resumed["metrics"] == whole["metrics"]
    tracking = Tracking(shop.site)
    versions = {int(v.version): tracking.load(v).recommender.state_dict() for v in tracking.versions()}
    assert len(versions) == 2
    for name, weights in versions[whole["model_version"]].items():
        assert (weights == versions[resumed["model_version"]][name]).all(), name
    runs = tracking.client.search_runs([tracking.experiment_id], "tags.kind = 'train'")
    assert {run.info.run_id for run in runs} == {whole["run_id"], resumed["run_id"]}
    assert not checkpoints(shop)


@pytest.fixture
def server(tmp_path):
    """Start and stop an MLflow server on one free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = []

    def begin():
        running.append(
            subprocess.Popen(
                [
                    *(Path(sys.executable).with_name("mlflow"), "server", "--host", "127.0.0.1", "--port", str(port)),
                    *("--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}", "--workers", "1"),
                    *("--artifacts-destination", str(tmp_path / "artifacts")),
                ],
                env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        )
        wait_for(answers, "the server")

    def answers():
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).status == 200
        except OSError:
            return False

    def end():
        os.killpg(running[-1].pid, signal.SIGKILL)
        running.pop().wait()

    yield f"http://127.0.0.1:{port}", begin, end
    if running:
        end()


def test_a_training_outlives_its_mlflow_server_and_delivers_later(copy_shop, server):
    shop = copy_shop(training=GRU)
    nightjar.features(shop.site, shop.store, shop.days[3])
    address, begin, end = server
    begin()
    environment = {"MLFLOW_TRACKING_URI": address, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    process = start(shop, **environment)
    wait_for(lambda: checkpoints(shop), "a checkpoint")
    end()
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (1, ""), err
    assert "epoch 12 of 12" in err, "the training did not go on"
    assert f"MLflow at {address} does not answer" in err
    assert "run the same command again" in err
    (waiting,) = (shop.home / "undelivered").glob("*.jsonl")
    begin()
    out, err = start(shop, **environment).communicate(timeout=300)
    assert "going on from" in err
    told = nightjar.json.loads(out)
    assert told["run_id"] == waiting.stem
    assert not waiting.exists()
    client = MlflowClient(address)
    steps = [point.step for point in client.get_metric_history(told["run_id"], "train_loss")]
    assert sorted(set(steps)) == list(range(1, 13))
    run = client.get_run(told["run_id"])
    assert run.info.status == "FINISHED"
    assert int(run.data.tags["delivered_late"]) > 1
