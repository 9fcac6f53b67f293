"""The few calls to Airflow's REST API that a local night needs."""

import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode


class AirflowApiError(RuntimeError):
    """Airflow refused a call, or nobody answered."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class AirflowApi:
    """Airflow at an address where everybody is an admin (a server on this machine's loopback)."""

    address: str
    """Like http://127.0.0.1:8080."""
    timeout_seconds: float = 30.0
    _token: str | None = field(default=None, repr=False)

    def get(self, path: str, **query: str | int) -> Any:
        """The answer to GET /api/v2/`path`."""
        return self._call("GET", f"/api/v2/{path}{'?' + urlencode(query) if query else ''}")

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The answer to POST /api/v2/`path`."""
        return self._call("POST", f"/api/v2/{path}", body)

    def unhealthy_parts(self) -> list[str]:
        """The parts of Airflow that are not up yet."""
        try:
            health = self._send("GET", "/api/v2/monitor/health", None)
        except AirflowApiError:
            return ["api-server"]
        return [part for part in ("metadatabase", "scheduler", "dag_processor") if health[part]["status"] != "healthy"]

    def has_dag(self, dag_id: str) -> bool:
        """Whether Airflow has read a DAG of that id."""
        try:
            return not self.get(f"dags/{dag_id}")["is_stale"]
        except AirflowApiError as error:
            if error.status == 404:
                return False
            raise

    def import_errors(self) -> list[str]:
        """What is wrong with the DAG files, a text each."""
        return [str(error["stack_trace"]).rstrip() for error in self.get("importErrors")["import_errors"]]

    def unpause(self, dag_id: str) -> None:
        """Let a DAG's runs start."""
        self._call("PATCH", f"/api/v2/dags/{dag_id}", {"is_paused": False})

    def make_pool(self, name: str, slots: int, description: str) -> None:
        """A pool, unless there is one of that name."""
        try:
            self.post("pools", {"name": name, "slots": slots, "description": description})
        except AirflowApiError as error:
            if error.status != 409:
                raise

    def start_run(self, dag_id: str, partition_key: str) -> str:
        """Start a DAG for a partition key; gives the run's id."""
        return str(
            self.post(f"dags/{dag_id}/dagRuns", {"logical_date": None, "partition_key": partition_key})["dag_run_id"]
        )

    def runs(self, dag_id: str, partition_key: str) -> list[str]:
        """The ids of a DAG's runs for a partition key, oldest first."""
        found = self.get(f"dags/{dag_id}/dagRuns", partition_key_pattern=partition_key, order_by="id", limit=100)
        return [str(run["dag_run_id"]) for run in found["dag_runs"] if run["partition_key"] == partition_key]

    def run_state(self, dag_id: str, run_id: str) -> str:
        """One of queued, running, success and failed."""
        return str(self.get(f"dags/{dag_id}/dagRuns/{quote(run_id, safe='')}")["state"])

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """The run's tasks, mapped ones one by one."""
        answer = self.get(f"dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances", limit=100)
        return list(answer["task_instances"])

    def xcom(self, task: dict[str, Any]) -> Any:
        """What a task returned; None where it returned nothing."""
        try:
            path = f"{task_path(task)}/xcomEntries/return_value"
            return self.get(path, map_index=task["map_index"], stringify="false")["value"]
        except AirflowApiError as error:
            if error.status == 404:
                return None
            raise

    def log_lines(self, task: dict[str, Any]) -> list[str]:
        """The log of a task's last try."""
        answer = self.get(f"{task_path(task)}/logs/{max(task['try_number'], 1)}", map_index=task["map_index"])
        return [line for entry in answer["content"] for line in entry_lines(entry)]

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        if self._token is None:
            self._token = self._send("GET", "/auth/token", None)["access_token"]
        try:
            return self._send(method, path, body)
        except AirflowApiError as error:
            if error.status != 401:
                raise
        self._token = self._send("GET", "/auth/token", None)["access_token"]  # the old one has run out
        return self._send(method, path, body)

    def _send(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        if self._token is not None and path != "/auth/token":
            headers["Authorization"] = f"Bearer {self._token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data=data, headers=headers, method=method)
        try:
            with OPENER.open(request, timeout=self.timeout_seconds) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")[:500]
            raise AirflowApiError(f"{method} {path}: Airflow answered {error.code} {text}", error.code) from error
        except OSError as error:
            raise AirflowApiError(f"{method} {self.address}{path}: no answer ({error})") from error


OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Loopback is never asked of a proxy."""


def task_path(task: dict[str, Any]) -> str:
    """The address of one task of a run."""
    return f"dags/{task['dag_id']}/dagRuns/{quote(task['dag_run_id'], safe='')}/taskInstances/{task['task_id']}"


def entry_lines(entry: Any) -> list[str]:
    """One entry of a task's log as text, with the exceptions that it tells of."""
    if not isinstance(entry, dict):
        return [str(entry)]
    faults = [f"{fault['exc_type']}: {fault['exc_value']}" for fault in entry.get("error_detail") or []]
    return [line for text in (str(entry["event"]), *faults) for line in text.splitlines()]


def wait_until_healthy(api: AirflowApi, still_there: Any, seconds: float) -> None:
    """Return once all parts are up; raises AirflowApiError after `seconds`, naming the missing ones."""
    deadline = time.monotonic() + seconds
    while parts := api.unhealthy_parts():
        still_there()
        if time.monotonic() > deadline:
            raise AirflowApiError(f"Airflow at {api.address} is not up after {seconds:.0f} s: no {', '.join(parts)}")
        time.sleep(0.3)
