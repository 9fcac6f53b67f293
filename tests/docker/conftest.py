"""docker/compose.yaml as plain processes: its commands, settings and health checks, on free ports of this machine.

What has to differ on one machine is said in `Deployment`: addresses, folders, and names of the workers.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from dags.airflow_api import AirflowApi
from dags.local_stack import Stack
from dags.processes import ServerEndedError, kept

ROOT = Path(__file__).parent.parent.parent
DOCKER = ROOT / "docker"
PROGRAMS = Path(sys.executable).parent
VARIABLE = re.compile(r"\$\$|\$\{(\w+)(?::([?-])([^}]*))?\}")
SECONDS_TO_START = 240.0
LISTENING = ("postgres:5432", "redis:6379", "api-server:8080", "mlflow:5000")
SERVERS = ("api-server", "scheduler", "dag-processor", "triggerer", "cpu-worker", "gpu-worker", "mlflow")


@dataclass
class Deployment:
    """The services of compose.yaml, translated for this machine."""

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)
    """What docker/.env says."""
    ports: dict[str, int] = field(
        default_factory=lambda: {name: free_port() for name in (*LISTENING, "scheduler:8974")}
    )
    of_workers: dict[str, str] = field(default_factory=dict)
    """What the tests tell the workers."""
    of_database: dict[str, str] = field(default_factory=dict)
    """Where PostgreSQL's programs find their server."""

    @property
    def services(self) -> dict[str, Any]:
        """The services with every variable of compose filled in."""
        return yaml.safe_load(self.fill_in((DOCKER / "compose.yaml").read_text()))["services"]

    def read_variables(self) -> None:
        """Take up what first-start.sh has written."""
        lines = (self.folder / "docker" / ".env").read_text().splitlines()
        self.variables = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))

    def fill_in(self, text: str) -> str:
        """As compose does: ${NAME:-default}, ${NAME:?what to do}, and $$ for a dollar."""

        def value(match: re.Match[str]) -> str:
            name, rule, other = match.groups()
            if name is None:
                return "$"
            if rule == "?":
                return self.variables[name]
            return self.variables.get(name) or other or ""

        return VARIABLE.sub(value, text)

    def here(self, text: str) -> str:
        """Addresses and folders of the containers become those of this machine."""
        for name, port in self.ports.items():
            host, inner = name.split(":")
            text = text.replace(name, f"127.0.0.1:{port}")
            if host != "scheduler":
                text = re.sub(rf"\b(127\.0\.0\.1|localhost):{inner}\b", f"127.0.0.1:{port}", text)
        text = text.replace("127.0.0.1:8974", f"127.0.0.1:{self.ports['scheduler:8974']}")
        folders = {
            "/opt/nightjar/healthy.py": DOCKER / "healthy.py",
            "/opt/nightjar/lib/python3.11/site-packages/dags": ROOT / "dags",
            "/opt/airflow": self.folder / "airflow",
            "/var/lib/nightjar": self.folder / "home",
            "/var/lib/mlflow": self.folder / "artifacts",
            "/etc/nightjar/conf": self.folder / "conf",
        }
        for inner, outer in folders.items():
            text = text.replace(inner, str(outer))
        return text

    def environment(self, name: str) -> dict[str, str]:
        """What a service's processes see: of this machine's environment only what finds programs."""
        kept_of_ours = {key: os.environ[key] for key in ("HOME", "LANG", "OMP_NUM_THREADS") if key in os.environ}
        told = {key: self.here(value) for key, value in self.services[name].get("environment", {}).items()}
        if name == "mlflow":  # names that it answers to, not addresses that anybody calls
            told["MLFLOW_SERVER_ALLOWED_HOSTS"] = self.services[name]["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"]
        one_machine = {
            "HOSTNAME": name,
            "NIGHTJAR_SCHEDULE": "off",
            "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_SERVER_PORT": str(self.ports["scheduler:8974"]),
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
            "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port()),
            "PYTHONPATH": str(ROOT),
            "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
        }
        more = self.of_workers if name.endswith("-worker") else self.of_database if name == "postgres" else {}
        return kept_of_ours | self.of_image() | told | one_machine | more

    def of_image(self) -> dict[str, str]:
        """The variables that the Dockerfile sets."""
        block = re.search(r"^ENV (.*?)[^\\]$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE | re.DOTALL)
        assert block is not None
        pairs = re.findall(r"(\w+)=(\S+)", block.group(0))
        return {
            key: self.here(value) for key, value in pairs if key.startswith(("AIRFLOW", "NIGHTJAR", "MLFLOW", "GX"))
        }

    def command(self, name: str) -> list[str]:
        """A service's command as a process that listens on loopback only, in its own environment."""
        words = [self.here(word) for word in self.services[name]["command"]]
        if "--port" in words:
            inner = words[words.index("--port") + 1]
            words[words.index("--port") + 1] = str(self.ports[f"{name}:{inner}"])
            words[words.index("--host") + 1] = "127.0.0.1"
        if name.endswith("-worker"):
            words += ["--celery-hostname", f"celery@{name}"]  # in a container the host has that name
        variables = [f"{key}={value}" for key, value in self.environment(name).items()]
        return ["env", "--ignore-environment", *variables, *words]

    def is_healthy(self, name: str) -> bool:
        """What the service's own health check says."""
        kind, *words = self.services[name]["healthcheck"]["test"]
        words = [self.here(word) for word in words]
        command = ["sh", "-c", *words] if kind == "CMD-SHELL" else words
        return subprocess.run(command, env=self.environment(name), capture_output=True).returncode == 0

    def wait_until_healthy(self, name: str, check: Any) -> None:
        """Return once a service is; fails when it has ended, or the time is up."""
        deadline = time.monotonic() + SECONDS_TO_START
        while not self.is_healthy(name):
            check()
            assert time.monotonic() < deadline, f"{name} is not healthy after {SECONDS_TO_START:.0f} s"
            time.sleep(1)

    def run(self, name: str, *words: str) -> str:
        """A command in the environment of a service; gives its stdout."""
        ended = subprocess.run(words, env=self.environment(name), capture_output=True, text=True)
        assert ended.returncode == 0, f"{words}:\n{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}"
        return ended.stdout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def new_folder(folder: Path) -> Path:
    """A folder with a copy of docker/ and all that containers would have as volumes."""
    folder.chmod(0o755)  # PostgreSQL runs as a user of its own where we are root
    shutil.copytree(DOCKER, folder / "docker", ignore=shutil.ignore_patterns("*.env"))
    for part in ("airflow/logs", "home/raw", "artifacts", "conf", "logs"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def deployment() -> Iterator[Deployment]:
    """Folders and passwords of a deployment; nothing is started."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = new_folder(Path(name))
        subprocess.run([folder / "docker" / "first-start.sh", "--gpu"], check=True, capture_output=True)
        made = Deployment(folder)
        made.read_variables()
        yield made


@pytest.fixture
def own_deployment() -> Iterator[Deployment]:
    """Folders and passwords of a deployment for one test; nothing is started."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = new_folder(Path(name))
        subprocess.run([folder / "docker" / "first-start.sh"], check=True, capture_output=True)
        made = Deployment(folder)
        made.read_variables()
        yield made


@pytest.fixture(scope="session")
def empty_deployment() -> Iterator[Deployment]:
    """Folders of a deployment that was never started."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        yield Deployment(new_folder(Path(name)))


@pytest.fixture(scope="session")
def start_postgres(find_program: Callable[[str], str]) -> Callable[[Deployment], Any]:
    """Runs a deployment's PostgreSQL until a block ends, as its image does: with databases.sh."""

    @contextlib.contextmanager
    def run(deployment: Deployment) -> Iterator[None]:
        user = "postgres" if os.geteuid() == 0 else None
        place = deployment.folder / "postgres"
        place.mkdir()
        secret = place / "secret"
        told = deployment.environment("postgres")
        secret.write_text(told["POSTGRES_PASSWORD"])
        if user:
            shutil.chown(place, user)
            shutil.chown(secret, user)
        options = ["-D", str(place / "data"), "-U", "postgres", f"--pwfile={secret}", "-E", "UTF8", "--no-sync"]
        make = [find_program("initdb"), *options, *told["POSTGRES_INITDB_ARGS"].split()]
        subprocess.run(make, check=True, user=user, cwd=place, stdout=subprocess.DEVNULL)
        port = str(deployment.ports["postgres:5432"])
        server = [find_program("postgres"), "-D", str(place / "data"), "-p", port, "-k", str(place)]
        settings = ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
        with (deployment.folder / "logs" / "postgres.log").open("wb") as log:
            process = subprocess.Popen([*server, *settings], user=user, cwd=place, stdout=log, stderr=log)
        try:
            ask = [find_program("pg_isready"), "--host", "127.0.0.1", "--port", port, "--username", "postgres"]
            wait_for(lambda: subprocess.run(ask, capture_output=True).returncode == 0, process)
            programs = f"{Path(find_program('psql')).parent}:{os.environ['PATH']}"
            deployment.of_database |= {"PGHOST": "127.0.0.1", "PGPORT": port, "PATH": programs}
            environment = deployment.environment("postgres") | {"POSTGRES_USER": "postgres"}
            subprocess.run([DOCKER / "databases.sh"], env=environment, check=True)
            yield
        finally:
            process.terminate()
            process.wait()

    return run


@pytest.fixture(scope="session")
def start_redis(find_program: Callable[[str], str]) -> Callable[[Deployment], Any]:
    """Runs a deployment's Redis with the options of compose.yaml, until a block ends."""

    @contextlib.contextmanager
    def run(deployment: Deployment) -> Iterator[None]:
        place = deployment.folder / "redis"
        place.mkdir()
        where = f"{find_program('redis-server')} --port {deployment.ports['redis:6379']} --bind 127.0.0.1 --dir {place}"
        shell, option, line = deployment.services["redis"]["command"]
        environment = deployment.environment("redis")
        process = subprocess.Popen(
            [shell, option, line.replace("redis-server", where, 1)], env=environment, stdout=subprocess.DEVNULL
        )
        try:
            ask = [find_program("redis-cli"), "-p", str(deployment.ports["redis:6379"]), "ping"]
            wait_for(lambda: b"PONG" in subprocess.run(ask, env=environment, capture_output=True).stdout, process)
            yield
        finally:
            process.terminate()
            process.wait()

    return run


def wait_for(is_ready: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not is_ready():
        assert process.poll() is None, f"{process.args} ended with {process.returncode}"
        assert time.monotonic() < deadline, f"{process.args} did not answer within {seconds:.0f} s"
        time.sleep(0.1)


@pytest.fixture(scope="session")
def start_servers() -> Callable[..., Any]:
    """Runs servers of compose.yaml until a block ends; it begins once each has passed its own health check."""

    @contextlib.contextmanager
    def run(deployment: Deployment, names: tuple[str, ...] = SERVERS) -> Iterator[Any]:
        commands = {name: deployment.command(name) for name in names}
        with kept(commands, os.environ, deployment.folder / "logs") as check:
            for name in names:
                try:
                    deployment.wait_until_healthy(name, check)
                except ServerEndedError as error:
                    pytest.fail(str(error))
            yield check

    return run


@pytest.fixture(scope="session")
def running(
    deployment: Deployment,
    start_postgres: Callable[..., Any],
    start_redis: Callable[..., Any],
    start_servers: Callable[..., Any],
    small_site: Any,
) -> Iterator[tuple[Deployment, Any]]:
    """All of compose.yaml, after its service `init`; and what fails once a server has ended by itself."""
    with start_postgres(deployment), start_redis(deployment):
        deployment.run("init", *[deployment.here(word) for word in deployment.services["init"]["command"]])
        others = tuple(name for name in SERVERS if name != "gpu-worker")  # that one may be killed
        with start_servers(deployment, others) as check, start_servers(deployment, ("gpu-worker",)):
            yield deployment, check


@pytest.fixture(scope="session")
def small_site(deployment: Deployment, raw_shop: Any, load: Any, write_site: Any) -> Any:
    """The site file of a small shop in the deployment's folders: three days loaded, the fourth delivered."""
    home = deployment.folder / "home"
    shutil.copytree(raw_shop.home / "raw", home / "raw", dirs_exist_ok=True)
    shop = write_site(
        home,
        window={"length": "3d", "min_item_count": 2},
        training={"recipes": {"popularity": None}},
        schedule={"retry_delay": "1s"},
    )
    load(shop, shop.days[:3])
    shutil.copy(shop.file, deployment.folder / "conf" / "small.yaml")
    deployment.of_workers |= {
        "NIGHTJAR_COMMAND": f"{sys.executable} {Path(__file__).with_name('witness.py')}",
        "WITNESS_COMMAND": str(PROGRAMS / "nightjar"),
        "WITNESS_FILE": str(deployment.folder / "witness.jsonl"),
    }
    return shop


@pytest.fixture(scope="session")
def stack_of() -> Callable[[Deployment, Any], Stack]:
    """Gives what runs nights of a deployment, as its admin."""

    def log_in(deployment: Deployment, check: Any) -> Stack:
        address = f"http://127.0.0.1:{deployment.ports['api-server:8080']}"
        token = token_for(address, "admin", deployment.variables["AIRFLOW_ADMIN_PASSWORD"])
        api = AirflowApi(address, _token=token)
        return Stack(deployment.folder, api, None, check, deployment.environment("scheduler"))

    return log_in


def token_for(address: str, user: str, password: str) -> str:
    """A token of Airflow for a user with a password."""
    body = json.dumps({"username": user, "password": password}).encode()
    request = urllib.request.Request(f"{address}/auth/token", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return str(json.load(answer)["access_token"])


@pytest.fixture(scope="session")
def night(
    running: tuple[Deployment, Any], small_site: Any, stack_of: Callable[[Deployment, Any], Stack]
) -> dict[str, Any]:
    """Task -> its report, of a night of the small shop and of the retraining that follows it."""
    stack, day = stack_of(*running), str(small_site.days[3])
    stack.wait_for_dag("small__retrain", time.monotonic() + 60)  # it must be there to hear of the night
    return stack.run_night("small__nightly", day) | stack.follow_night("small__retrain", day)
