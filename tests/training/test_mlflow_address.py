"""The address of MLflow may hold a password; MLflow prints its address, so the password is given to it otherwise."""

import base64
import http.server
import json
import threading
from collections.abc import Iterator

import pytest
from mlflow import MlflowClient

from pipeline.errors import ConfigurationError
from training.delivery import deliver_all, post
from training.tracking import PASSWORD, USER, tracking_uri


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    """Variables that the code sets are gone after a test."""
    for name in (USER, PASSWORD):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    """A server that knows no experiment and remembers who asked."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.server.asked_by = self.headers["Authorization"]
            self.send_response(404)
            self.end_headers()
            self.wfile.write(json.dumps({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "none"}).encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        yield listener
        listener.shutdown()


def test_mlflow_gets_the_login_of_an_address_and_an_address_without_it(tmp_path, monkeypatch, server):
    place = f"127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hu%2Fsh@{place}")
    uri = tracking_uri(tmp_path)
    assert uri == f"http://{place}"
    assert MlflowClient(uri).get_experiment_by_name("small") is None
    assert base64.b64decode(server.asked_by.removeprefix("Basic ")) == b"me:hu/sh"


@pytest.mark.parametrize("address", ["http://me:hu/sh@127.0.0.1:1", "http://me:hu#sh@127.0.0.1:1"])
def test_an_ambiguous_address_is_refused_without_being_shown(tmp_path, monkeypatch, address):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(ConfigurationError, match=r"^MLFLOW_TRACKING_URI is http://… and cannot be read") as told:
        tracking_uri(tmp_path)
    assert "sh" not in str(told.value).replace(USER, "").replace(PASSWORD, "")


def test_a_server_that_is_away_is_told_without_its_password(released, command, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hush@127.0.0.1:1")
    code, out, err = command(released.home, "compare", "--site", released.file, "--date", "2026-03-04")
    assert (code, out) == (1, "")
    assert "MLflow at http://127.0.0.1:1 does not answer" in err
    assert "hush" not in err


@pytest.mark.parametrize("scheme", ["http", "postgresql+psycopg"])
def test_metrics_that_wait_on_disk_name_the_server_without_its_password(tmp_path, monkeypatch, scheme):
    sent = []
    monkeypatch.setattr("training.delivery.deliver", lambda file, uri: sent.append(uri))
    address = f"{scheme}://me:hush@127.0.0.1:1/mlflow"
    post(tmp_path, address, "run", {"train_loss": 1.0}, 1)
    deliver_all(tmp_path, address)
    deliver_all(tmp_path, f"{scheme}://elsewhere/mlflow")
    (waiting,) = (tmp_path / "undelivered").glob("*.jsonl")
    assert json.loads(waiting.read_text())["uri"] == f"{scheme}://127.0.0.1:1/mlflow"
    assert sent == [address, address]
