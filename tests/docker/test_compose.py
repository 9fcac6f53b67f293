"""What docker/compose.yaml promises: nothing of it is run here, `make test-services` starts it as processes."""

import re
import shutil
import stat
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import yaml

from dags.settings import Schedule

DOCKER = Path(__file__).parent.parent.parent / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
STAYING = {name: service for name, service in SERVICES.items() if service["restart"] != "no"}
VARIABLE = re.compile(r"\$\{(\w+)(:[?-][^}]*)?\}")
SECRETS = re.compile(r"PASSWORD|SECRET|FERNET|CONN|URL$|URI$|BACKEND$|_KEY")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What first-start.sh writes into a copy of the folder, and the file."""
    folder = shutil.copytree(
        DOCKER, tmp_path_factory.mktemp("checkout") / "docker", ignore=shutil.ignore_patterns(".env*")
    )
    subprocess.run([folder / "first-start.sh"], check=True, capture_output=True)
    lines = [line for line in (folder / ".env").read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines), folder / ".env"


@pytest.mark.parametrize("name", SERVICES)
def test_every_image_has_a_version(name):
    image, _, tag = SERVICES[name]["image"].rpartition(":")
    assert image
    assert re.match(r"\d+\.\d+", tag)


@pytest.mark.parametrize("name", SERVICES)
def test_no_service_is_root_or_can_become_it(name):
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    user = service.get("user") or last_user(service["build"]["target"])
    assert user.split(":")[0] not in {"", "0", "root"}


def last_user(target):
    """The user that a target of the Dockerfile ends with."""
    stages = re.split(r"^FROM ", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE)[1:]
    stage = next(stage for stage in stages if re.match(rf"\S+ AS {target}\n", stage))
    return re.findall(r"^USER (\S+)$", stage, re.MULTILINE)[-1]


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_bounded(name):
    limits = SERVICES[name]["deploy"]["resources"]["limits"]
    assert {"memory", "pids"} <= set(limits)


@pytest.mark.parametrize("name", STAYING)
def test_every_service_that_stays_is_looked_after(name):
    assert STAYING[name]["healthcheck"]["test"]
    assert STAYING[name]["restart"] == "unless-stopped"


def test_only_the_two_pages_are_published_and_on_loopback_only():
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(published) == {"api-server", "mlflow"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)


def test_the_database_and_the_broker_are_on_a_network_without_a_way_out():
    assert COMPOSE["networks"]["inner"]["internal"] is True
    for name in ("postgres", "redis"):
        assert SERVICES[name]["networks"] == ["inner"]


def test_only_servers_know_the_database_of_airflow():
    told = {
        name for name, service in SERVICES.items() if "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN" in service["environment"]
    }
    assert told == {"init", "api-server", "scheduler", "dag-processor", "triggerer"}


@pytest.mark.parametrize("name", SERVICES)
def test_no_password_is_written_down(name):
    for variable, value in SERVICES[name]["environment"].items():
        if SECRETS.search(variable) and "://" in value and "@" in value:
            assert re.search(r":\$\{\w+:\?[^}]+\}@", value), variable
        elif re.search(r"PASSWORD|SECRET|FERNET|_AUTH$", variable):
            assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", value), variable


def test_first_start_makes_every_variable_that_compose_must_have(made):
    wanted = dict(VARIABLE.findall((DOCKER / "compose.yaml").read_text()))
    needed = {name for name, rule in wanted.items() if rule.startswith(":?")}
    assert needed
    assert needed <= set(made[0])
    assert set(wanted) - set(made[0]) == set()
    assert set(made[0]) - set(wanted) == {"COMPOSE_PROFILES"}


def test_secrets_are_long_and_all_different(made):
    secrets = [value for name, value in made[0].items() if re.search(r"PASSWORD|SECRET|FERNET", name)]
    assert len(set(secrets)) == len(secrets) == 9
    assert min(map(len, secrets)) >= 43
    assert all(re.fullmatch(r"[\w=-]+", secret) for secret in secrets)  # whole in addresses and in the file


def test_the_file_of_secrets_is_for_its_owner_only_and_never_overwritten(made):
    _, file = made
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    before = file.read_text()
    again = subprocess.run([file.parent / "first-start.sh"], capture_output=True, text=True)
    assert again.returncode == 1
    assert "is there already" in again.stderr
    assert file.read_text() == before


def test_git_and_images_never_see_the_file_of_secrets():
    root = DOCKER.parent
    for path in ("docker/.env", "docker/worker.env"):
        assert subprocess.run(["git", "check-ignore", "-q", path], cwd=root).returncode == 0
    allowed = [line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert "*" in (root / ".dockerignore").read_text().splitlines()
    assert [path for path in allowed if path.startswith("docker")] == ["docker/requirements_of.py", "docker/healthy.py"]


def test_gpu_steps_go_to_the_gpu_worker_where_there_is_one(tmp_path):
    folder = shutil.copytree(DOCKER, tmp_path / "docker", ignore=shutil.ignore_patterns(".env*"))
    subprocess.run([folder / "first-start.sh", "--gpu"], check=True, capture_output=True)
    lines = (folder / ".env").read_text().splitlines()
    assert "COMPOSE_PROFILES=gpu" in lines
    assert "CPU_QUEUES=default" in lines
    assert SERVICES["gpu-worker"]["profiles"] == ["gpu"]
    assert queue_of("gpu-worker") == Schedule().gpu_queue
    assert Schedule().gpu_queue in queue_of("cpu-worker")  # without --gpu it takes them, too


def queue_of(name):
    command = SERVICES[name]["command"]
    return command[command.index("--queues") + 1]


def test_mlflow_answers_by_the_name_that_workers_call_it():
    address = SERVICES["gpu-worker"]["environment"]["MLFLOW_TRACKING_URI"].removeprefix("http://")
    assert address in SERVICES["mlflow"]["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")


def test_no_task_is_given_away_twice_or_given_up_while_it_may_still_run():
    seconds = Schedule().step_timeout.total_seconds()
    airflow = SERVICES["scheduler"]["environment"]
    assert int(airflow["AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__VISIBILITY_TIMEOUT"]) > seconds
    assert int(airflow["AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT"]) > seconds


@pytest.fixture
def monitor():
    """A server that says what Airflow's does: the scheduler is well, the triggerer is not."""

    class Monitor(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"scheduler": {"status": "healthy"}, "triggerer": {"status": null}}')

        def log_message(self, *_):
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Monitor) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.parametrize(
    ("parts", "code", "said"),
    [([], 0, ""), (["scheduler"], 0, ""), (["scheduler", "triggerer"], 1, "not healthy: triggerer")],
    ids=["answers", "well", "ill"],
)
def test_the_health_check_looks_at_the_parts_that_it_is_asked_for(monitor, parts, code, said):
    checked = subprocess.run([sys.executable, DOCKER / "healthy.py", monitor, *parts], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr.strip()) == (code, said)


def test_a_server_that_does_not_answer_is_not_healthy():
    checked = subprocess.run([sys.executable, DOCKER / "healthy.py", "http://127.0.0.1:9/"], capture_output=True)
    assert checked.returncode == 1
