"""docker/backup.sh of a deployment after a night, and docker/restore.sh of it into an empty one."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

pytestmark = pytest.mark.services
SERVICES = ("postgres", "mlflow", "cpu-worker")


@pytest.fixture(scope="module")
def docker(tmp_path_factory):
    """Runs a script of docker/ over a deployment, with a stand-in for the program docker."""
    programs = tmp_path_factory.mktemp("programs")
    (programs / "docker").write_text(f"#!{sys.executable}\n" + Path(__file__).with_name("fake_docker.py").read_text())
    (programs / "docker").chmod(0o755)

    def run(deployment, script, *arguments):
        told = {
            "services": {name: deployment.environment(name) for name in SERVICES},
            "folders": {folder: deployment.here(folder) for folder in ("/var/lib/mlflow", "/var/lib/nightjar")},
        }
        environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "FAKE_DOCKER": json.dumps(told)}
        return subprocess.run(
            [deployment.folder / "docker" / script, *arguments], env=environment, capture_output=True, text=True
        )

    return run


@pytest.fixture(scope="module")
def backup(night, running, docker, tmp_path_factory):
    """The folder that backup.sh wrote while all servers ran."""
    deployment, _ = running
    folder = tmp_path_factory.mktemp("backup")
    ended = docker(deployment, "backup.sh", str(folder))
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.fixture(scope="module")
def restored(backup, running, docker, empty_deployment, start_postgres, start_servers):
    """Another deployment, made of nothing but the backup; its Airflow and MLflow run."""
    before, _ = running
    other = empty_deployment
    shutil.copy(backup / "env", other.folder / "docker" / ".env")
    other.read_variables()
    shutil.copytree(before.folder / "conf", other.folder / "conf", dirs_exist_ok=True)
    shutil.copytree(before.folder / "home/raw", other.folder / "home/raw", dirs_exist_ok=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(start_postgres(other))
        (other.folder / "docker" / ".env").unlink()  # restore.sh brings it, before it starts PostgreSQL
        ended = docker(other, "restore.sh", str(backup))
        assert ended.returncode == 0, ended.stderr
        stack.enter_context(start_servers(other, ("api-server", "mlflow")))
        yield other


def test_airflow_remembers_the_night_and_knows_its_admin(restored, stack_of, small_site):
    api = stack_of(restored, None).airflow
    for dag in ("small__nightly", "small__retrain"):
        [run] = api.runs(dag, str(small_site.days[3]))
        assert api.run_state(dag, run) == "success"


def test_readers_find_the_lists_of_the_night(restored, running, night):
    before, _ = running
    user = pl.read_delta(f"{before.folder}/home/store/recommendations")["user_id"][0]
    read = ["nightjar", "read", "--site", f"{restored.folder}/conf/small.yaml", "--user", user]
    history = ["nightjar", "history", "--site", f"{restored.folder}/conf/small.yaml", "--json"]
    assert restored.run("cpu-worker", *history) == before.run("cpu-worker", *history) != ""
    assert restored.run("cpu-worker", *read) == before.run("cpu-worker", *read) != ""


def test_the_next_step_goes_on_from_the_restored_models(restored, night, small_site):
    refit = ["nightjar", "refit", "--site", f"{restored.folder}/conf/small.yaml", "--date", str(small_site.days[3])]
    report = json.loads(restored.run("cpu-worker", *refit).splitlines()[-1])
    assert int(report["model_version"]) > int(night["promote"]["model_version"])


def test_one_database_is_restored_over_itself(restored, backup, small_site):
    over = ["--username", "postgres", "--clean", "--if-exists", "--exit-on-error", "--dbname", "mlflow"]
    restored.run("postgres", "pg_restore", *over, str(backup / "mlflow.dump"))
    refit = ["nightjar", "refit", "--site", f"{restored.folder}/conf/small.yaml", "--date", str(small_site.days[3])]
    assert json.loads(restored.run("cpu-worker", *refit).splitlines()[-1])["model_version"]


def test_an_upgrade_of_what_is_up_to_date_changes_nothing(restored, stack_of, small_site):
    words = [restored.here(word) for word in restored.services["init"]["command"]]
    restored.run("init", *words)
    restored.run("mlflow", "sh", "-c", 'mlflow db upgrade "$MLFLOW_BACKEND_STORE_URI"')
    assert len(stack_of(restored, None).airflow.runs("small__nightly", str(small_site.days[3]))) == 1


def test_a_deployment_that_is_there_is_never_restored_over(running, docker, backup):
    deployment, _ = running
    ended = docker(deployment, "restore.sh", str(backup))
    assert ended.returncode == 1
    assert "there is a deployment here already" in ended.stderr
