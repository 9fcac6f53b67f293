"""Airflow, MLflow and shop pages on this machine: `python -m dags.local_stack` (= `make ui`); Ctrl-C stops them all.

Everything listens on 127.0.0.1 only and needs no log-in: whoever has an account on this machine can use it. Nights
start by hand (Trigger, with a partition key like 2026-11-20); NIGHTJAR_SCHEDULE=on lets them start by themselves.

    with airflow_stack(home, conf) as stack:
        reports = stack.run_night("shop__nightly", "2026-11-20")
"""

import contextlib
import importlib.metadata
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dags.airflow_api import AirflowApi, AirflowApiError, wait_until_healthy
from dags.pools import DESCRIPTION, SLOTS, named_pools
from dags.ports import LOOPBACK, StackError, claimed_port, wait_until_listening
from dags.processes import ServerEndedError, kept
from dags.shop_pages import ShopPage, shop_pages, those_up
from dags.site_files import conf_folder, read_site_files

AIRFLOW_PORT = 8080
MLFLOW_PORT = 5000
SECONDS_TO_START = 180.0
SECONDS_TO_READ = 40.0
"""For Airflow to find a DAG; it looks at changed site files twice a minute."""
ENDED = {"success", "failed", "upstream_failed", "skipped", "removed"}
LOG_LINES_SHOWN = 25

TaskEnded = Callable[[str, str, float], None]
"""Called with a task's name, its state and its seconds."""


class NightFailedError(RuntimeError):
    """A night ended red, or not at all; the message ends with the log of the task that failed."""


@dataclass(frozen=True)
class Stack:
    """A running Airflow, and MLflow where it was asked for."""

    home: Path
    airflow: AirflowApi
    mlflow_address: str | None
    check: Callable[[], None]
    """Raises ServerEndedError once a server has ended by itself."""
    environment: Mapping[str, str] = field(repr=False)
    """That of the servers, with its passwords."""

    def command(self, *arguments: str) -> str:
        """What `airflow …` says on stdout, run beside the servers; raises CalledProcessError where it fails."""
        ended = subprocess.run(
            [sys.executable, "-m", "airflow", *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return ended.stdout

    def run_night(
        self,
        dag_id: str,
        day: str,
        *,
        task_ended: TaskEnded | None = None,
        timeout: timedelta = timedelta(hours=2),
    ) -> dict[str, Any]:
        """Run a DAG for a day and wait for it: task -> its report; for `train`, recipe -> its report.

        Each task that ends is told to `task_ended`, by default as a line on stderr.
        Raises NightFailedError with the end of the failed task's log.
        """
        deadline = time.monotonic() + timeout.total_seconds()
        self.wait_for_dag(dag_id, deadline)
        return self.watch(dag_id, self.airflow.start_run(dag_id, day), day, deadline, task_ended)

    def follow_night(
        self,
        dag_id: str,
        day: str,
        *,
        task_ended: TaskEnded | None = None,
        timeout: timedelta = timedelta(hours=2),
    ) -> dict[str, Any]:
        """Wait for the run of a DAG that another one's asset has started for a day, or is about to; as `run_night`."""
        deadline = time.monotonic() + timeout.total_seconds()
        self.wait_for_dag(dag_id, deadline)
        until = min(deadline, time.monotonic() + SECONDS_TO_READ)
        while not (runs := self.airflow.runs(dag_id, day)):
            self.wait_a_little(until, f"{dag_id} has no run for {day}")
        return self.watch(dag_id, runs[-1], day, deadline, task_ended)

    def watch(
        self, dag_id: str, run_id: str, day: str, deadline: float, task_ended: TaskEnded | None
    ) -> dict[str, Any]:
        """Wait for a run; tell of each task that ends."""
        told: set[str] = set()
        while True:
            state = self.airflow.run_state(dag_id, run_id)  # asked first: all tasks have ended when it has
            tasks = self.airflow.task_instances(dag_id, run_id)
            for task in sorted(tasks, key=lambda task: task["end_date"] or ""):
                if task["state"] in ENDED and label(task) not in told:
                    told.add(label(task))
                    (task_ended or tell)(label(task), task["state"], task["duration"] or 0.0)
            if state == "success":
                return self.reports(tasks)
            if state == "failed":
                raise NightFailedError(self.explain(dag_id, day, tasks))
            self.wait_a_little(deadline, f"{dag_id} for {day} is still {state}")

    def wait_for_dag(self, dag_id: str, deadline: float) -> None:
        """Return once Airflow has read the DAG, and is free to run it."""
        deadline = min(deadline, time.monotonic() + SECONDS_TO_READ)
        while not self.airflow.has_dag(dag_id):
            faults = self.airflow.import_errors()
            self.wait_a_little(deadline, "\n".join([f"Airflow knows no DAG {dag_id}", *faults]))
        self.airflow.unpause(dag_id)

    def wait_a_little(self, deadline: float, state: str) -> None:
        """Sleep between two looks; raises when the time is up or a server is gone."""
        self.check()
        if time.monotonic() > deadline:
            raise NightFailedError(f"{state}\nThe time for it is up; look at {self.airflow.address}")
        time.sleep(0.5)

    def reports(self, tasks: list[dict[str, Any]]) -> dict[str, Any]:
        """Task -> what it returned."""
        reports: dict[str, Any] = {}
        for task in sorted(tasks, key=lambda task: task["start_date"] or ""):
            report = self.airflow.xcom(task)
            if task["map_index"] < 0:
                reports[task["task_id"]] = report
            else:
                reports.setdefault(task["task_id"], {})[task["rendered_map_index"] or task["map_index"]] = report
        return reports

    def explain(self, dag_id: str, day: str, tasks: list[dict[str, Any]]) -> str:
        """Which tasks failed, and the end of the first one's log."""
        failed = sorted((task for task in tasks if task["state"] == "failed"), key=lambda task: task["end_date"] or "")
        if not failed:
            return f"{dag_id} for {day} failed, and none of its tasks did; look at {self.airflow.address}"
        lines = [line for line in self.airflow.log_lines(failed[0]) if not line.startswith("::")]
        names = ", ".join(label(task) for task in failed)
        return "\n".join([f"{dag_id} for {day} failed at {names}; the end of its log:", *lines[-LOG_LINES_SHOWN:]])


@contextlib.contextmanager
def airflow_stack(home: Path, conf: Path, *, with_mlflow: bool = False) -> Iterator[Stack]:
    """Airflow (and MLflow) over a home folder and a folder of site files, until the block ends.

    Raises StackError: another stack runs over this home, or this one does not come up.
    """
    with (
        claimed_port(AIRFLOW_PORT) as port,
        claimed_port(MLFLOW_PORT) as mlflow_port,
        stack_at(home.absolute(), conf.absolute(), port, mlflow_port, with_mlflow=with_mlflow) as stack,
    ):
        yield stack


@contextlib.contextmanager
def stack_at(home: Path, conf: Path, port: int, mlflow_port: int, *, with_mlflow: bool) -> Iterator[Stack]:
    """The stack at two ports that nobody else takes."""
    environment = {**os.environ, **airflow_settings(home, conf, port), **quiet_settings()}
    servers = airflow_servers(port) | triggerer(conf) | (mlflow_server(home, mlflow_port) if with_mlflow else {})
    logs = airflow_home(home) / "logs" / "servers"
    with only_one(home):
        migrate(home, environment, logs)
        with kept(servers, environment, logs) as check:
            api = AirflowApi(f"http://{LOOPBACK}:{port}")
            try:
                wait_until_healthy(api, check, SECONDS_TO_START)
                if with_mlflow:
                    wait_until_listening(mlflow_port, check, SECONDS_TO_START)
            except (ServerEndedError, AirflowApiError) as error:
                raise StackError(str(error)) from error
            for pool in named_pools(conf):
                api.make_pool(pool, SLOTS, DESCRIPTION)
            yield Stack(home, api, f"http://{LOOPBACK}:{mlflow_port}" if with_mlflow else None, check, environment)


def airflow_home(home: Path) -> Path:
    """Where the local Airflow keeps its database and logs."""
    return home / "airflow"


def mlflow_places(home: Path) -> tuple[str, str]:
    """The tracking URI and the artifact folder's URI under a home folder."""
    return f"sqlite:///{home.absolute() / 'mlflow.db'}", (home.absolute() / "mlartifacts").as_uri()


def airflow_settings(home: Path, conf: Path, port: int) -> dict[str, str]:
    """Airflow small, quick and on loopback; secrets are new at each start."""
    return {
        "NIGHTJAR_HOME": str(home),
        "NIGHTJAR_CONF": str(conf),
        "NIGHTJAR_SCHEDULE": os.environ.get("NIGHTJAR_SCHEDULE", "off"),
        "AIRFLOW_HOME": str(airflow_home(home)),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{airflow_home(home) / 'airflow.db'}",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__DAGS_FOLDER": str(Path(__file__).resolve().parent),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__PARALLELISM": "2",
        "AIRFLOW__CORE__AUTH_MANAGER": "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://{LOOPBACK}:{port}/execution/",
        "AIRFLOW__API__HOST": LOOPBACK,
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": f"http://{LOOPBACK}:{port}",
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API__SECRET_KEY": secrets.token_hex(32),
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
        "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
        "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
        "AIRFLOW__SCHEDULER__ENABLE_HEALTH_CHECK": "False",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "40",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "10",
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
    }


def quiet_settings() -> dict[str, str]:
    """No library tells anybody that it is used."""
    return {"DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true", "GX_ANALYTICS_ENABLED": "false"}


def airflow_servers(port: int) -> dict[str, list[str]]:
    """The three parts of Airflow. The scheduler's log server would listen on all interfaces; here nobody needs it."""
    airflow = [sys.executable, "-m", "airflow"]
    return {
        "api-server": [*airflow, "api-server", "--host", LOOPBACK, "--port", str(port)],
        "scheduler": [*airflow, "scheduler", "--skip-serve-logs"],
        "dag-processor": [*airflow, "dag-processor"],
    }


def triggerer(conf: Path) -> dict[str, list[str]]:
    """The fourth part, which only deadlines need."""
    is_needed = any(site.schedule.tables_by for site in read_site_files(conf).sites.values())
    return {"triggerer": [sys.executable, "-m", "airflow", "triggerer", "--skip-serve-logs"]} if is_needed else {}


def mlflow_server(home: Path, port: int) -> dict[str, list[str]]:
    """MLflow's pages over the database that the steps write to."""
    tracking, artifacts = mlflow_places(home)
    options = ["--host", LOOPBACK, "--port", str(port), "--workers", "1"]
    environment = ["env", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false"]  # else eight more processes, 0.5 GB
    server = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", tracking]
    return {"mlflow": [*environment, *server, "--artifacts-destination", artifacts, *options]}


@contextlib.contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Two schedulers over one SQLite file run each task twice: the second one is refused."""
    folder = airflow_home(home)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "stack.lock", timeout=0):
            yield
    except Timeout as error:
        raise StackError(f"a local stack runs over {home} already; stop it, or set another NIGHTJAR_HOME") from error


def migrate(home: Path, environment: dict[str, str], logs: Path) -> None:
    """Make Airflow's database, or bring it to the installed version; done once per version."""
    version = importlib.metadata.version("apache-airflow-core")
    stamp = airflow_home(home) / "database.version"
    if stamp.is_file() and stamp.read_text() == version:
        return
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / "migrate.log"
    with log.open("wb") as output:
        ended = subprocess.run(
            [sys.executable, "-m", "airflow", "db", "migrate"],
            env=environment,
            stdout=output,
            stderr=output,
            check=False,
        )
    if ended.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise StackError(f"`airflow db migrate` failed over {airflow_home(home)}:\n{tail}")
    stamp.write_text(version)


def label(task: dict[str, Any]) -> str:
    """A task's name; a mapped one's with its label: train [gru]."""
    if task["map_index"] < 0:
        return str(task["task_id"])
    return f"{task['task_id']} [{task['rendered_map_index'] or task['map_index']}]"


def tell(name: str, state: str, seconds: float) -> None:
    """One line on stderr for a task that ended; none for those that wait for a failed one in vain."""
    if state == "upstream_failed":
        return
    sys.stderr.write(f"  {name:<28} {state:<16} {seconds:7.1f} s\n")
    sys.stderr.flush()


def announce(stack: Stack, pages: Sequence[ShopPage]) -> None:
    """Where things are, on the terminal."""
    lines = [
        ("Airflow", stack.airflow.address, "log-in: none, you are the admin"),
        ("MLflow", stack.mlflow_address or "", "log-in: none"),
        *((page.site, page.address, "its page, to try a session; /docs for programs") for page in pages),
        ("logs", str(airflow_home(stack.home) / "logs"), ""),
    ]
    widths = [max(len(line[column]) for line in lines) for column in (0, 1)]
    for name, place, remark in lines:
        sys.stderr.write(f"  {name:<{widths[0]}}  {place:<{widths[1]}}  {remark}".rstrip() + "\n")
    starts = (
        "at midnight"
        if os.environ.get("NIGHTJAR_SCHEDULE", "off") != "off"
        else "by hand: Trigger, partition key 2026-11-20"
    )
    sys.stderr.write(f"  nights start {starts}. Ctrl-C stops all of it.\n")
    sys.stderr.flush()


def main() -> int:
    """Start all, wait for Ctrl-C or SIGTERM, stop all."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background job inherits SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    home, conf = Path(os.environ.get("NIGHTJAR_HOME") or Path.cwd()).absolute(), conf_folder()
    try:
        sys.stderr.write("starting Airflow, MLflow and the pages of sites with lists (20 to 60 s) …\n")
        with (
            shop_pages(home, conf, airflow_home(home) / "logs" / "servers") as pages,
            airflow_stack(home, conf, with_mlflow=True) as stack,
        ):
            announce(stack, list(those_up(pages, SECONDS_TO_START)))
            while True:
                stack.check()
                time.sleep(1)
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return 0
    except (StackError, ServerEndedError) as error:
        sys.stderr.write(f"{error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
