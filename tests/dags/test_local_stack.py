import json
import re
import socket
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from dags.airflow_api import AirflowApiError
from dags.local_stack import (
    NightFailedError,
    airflow_servers,
    airflow_settings,
    airflow_stack,
    mlflow_places,
    mlflow_server,
    only_one,
)
from dags.ports import LOOPBACK, StackError, claimed_port, free_port

NIGHT = ["ingest", "sessionize", "validate", "other_nights", "refit", "export", "drift"]


def test_a_port_that_is_taken_is_passed_over():
    with socket.socket() as holder:
        holder.bind((LOOPBACK, 0))
        holder.listen()
        taken = holder.getsockname()[1]
        assert free_port(taken) > taken


def test_two_stacks_at_once_get_different_ports():
    with claimed_port(18_080) as one, claimed_port(18_080) as other:
        assert one != other
    with claimed_port(18_080) as again:
        assert again == one


def test_a_second_stack_over_the_same_home_is_refused(tmp_path):
    with only_one(tmp_path), pytest.raises(StackError, match=r"runs over .* already"), only_one(tmp_path):
        pass


def test_servers_are_told_to_listen_on_loopback_only(tmp_path):
    commands = airflow_servers(8080) | mlflow_server(tmp_path, 5000)
    assert "--skip-serve-logs" in commands["scheduler"]
    for name in ("api-server", "mlflow"):
        assert commands[name][commands[name].index("--host") + 1] == LOOPBACK


def test_secrets_are_new_at_each_start_and_long_enough(tmp_path):
    first, second = (airflow_settings(tmp_path, tmp_path, 8080)["AIRFLOW__API_AUTH__JWT_SECRET"] for _ in range(2))
    assert first != second
    assert len(first) == 64


def test_mlflow_lives_under_the_home(tmp_path):
    tracking, artifacts = mlflow_places(tmp_path)
    assert tracking == f"sqlite:///{tmp_path}/mlflow.db"
    assert artifacts == f"file://{tmp_path}/mlartifacts"


@pytest.fixture
def other_team(tmp_path, monkeypatch):
    """Another team's DAGs beside ours: the example of the docs."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "mailing.py").write_text(example_of_docs())
    local = "airflow.dag_processing.bundles.local.LocalDagBundle"
    bundles = [
        {"name": "ours", "classpath": local, "kwargs": {}},
        {"name": "theirs", "classpath": local, "kwargs": {"path": str(folder)}},
    ]
    monkeypatch.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST", json.dumps(bundles))


def example_of_docs() -> str:
    """The only Python in docs/nights.md."""
    page = Path(__file__).parent.parent.parent / "docs" / "nights.md"
    [code] = re.findall("```python\n(.*?)```", page.read_text(), re.DOTALL)
    return code


def test_the_example_for_other_teams_is_a_dag_that_our_event_wakes(step_operator):
    from airflow.sdk import PartitionedAssetTimetable

    told = {}
    exec(compile(example_of_docs(), "nights.md", "exec"), told)
    dag = told["dag"]
    assert isinstance(dag.schedule, PartitionedAssetTimetable)
    from dags.site_assets import recommendations
    from dags.site_files import SiteHead

    assert dag.schedule.asset_condition == recommendations(SiteHead(name="shop"))
    event = SimpleNamespace(extra={"table_version": 7, "users": 42})
    fetched = dag.task_dict["fetch"].python_callable("2026-11-20", {told["lists"]: [event]})
    assert fetched == {"day": "2026-11-20", "users": 42, "table_version": 7}


@pytest.mark.slow
def test_nights_run_through_a_real_stack_that_only_listens_on_loopback(
    tmp_path, write_sites, fake_nightjar, other_team
):
    conf = write_sites(shop="name: shop\ntraining: {recipes: {gru: , stan: }}\n", bad="name: bad\nschedule: {x: 1}\n")
    told = []
    with airflow_stack(tmp_path / "home", conf, with_mlflow=True) as stack:
        reports = stack.run_night("shop__nightly", "2026-11-20", task_ended=lambda *task: told.append(task))
        assert reports["export"]["date"] == "2026-11-20"
        retrained = stack.follow_night("shop__retrain", "2026-11-20")
        assert set(retrained["train"]) == {"gru", "stan"}
        assert stack.follow_night("shop__maintenance", "2026-11-20")["vacuum"]["step"] == "vacuum"
        assert [name for name, _, _ in told] == NIGHT
        assert {state for _, state, _ in told} == {"success"}
        fetched = stack.follow_night("mailing__lists", "2026-11-20")["fetch"]
        assert fetched == {"day": "2026-11-20", "users": 42, "table_version": 7}
        processes = psutil.Process().children(recursive=True)
        ports = [address.rsplit(":", 1)[1] for address in (stack.airflow.address, stack.mlflow_address)]
        assert listening_addresses(processes) == {f"{LOOPBACK}:{port}" for port in ports}
        with pytest.raises(AirflowApiError, match="'whatever; echo x' does not match the timetable's key_format"):
            stack.run_night("shop__nightly", "whatever; echo x")
        with pytest.raises(NightFailedError, match=r"failed at newest_day[\s\S]*'whatever; echo x', which is no date"):
            stack.run_night("shop__retrain", "whatever; echo x")
        with pytest.raises(NightFailedError, match=r"no DAG bad__nightly[\s\S]*schedule.x: unknown key"):
            stack.run_night("bad__nightly", "2026-11-20", timeout=timedelta(seconds=2))
    assert [process for process in processes if process.is_running()] == []


def listening_addresses(processes):
    """The addresses that these processes listen on."""
    return {
        f"{connection.laddr.ip}:{connection.laddr.port}"
        for process in processes
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
