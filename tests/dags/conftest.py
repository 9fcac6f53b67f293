"""What the DAG tests share: a stand-in command line, site files, and an Airflow home that no other test sees."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent
DAGS_FOLDER = HERE.parent.parent / "dags"


@pytest.fixture(scope="session")
def airflow_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of an Airflow over an empty home of its own."""
    home = tmp_path_factory.mktemp("airflow")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "NIGHTJAR", "FAKE"))}
    return kept | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS_FOLDER),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__API_AUTH__JWT_SECRET": "only for tests " * 5,
    }


@pytest.fixture(scope="session")
def airflow_home(airflow_environment: dict[str, str]) -> Path:
    """The Airflow home with its database made."""
    subprocess.run(
        [sys.executable, "-m", "airflow", "db", "migrate"], env=airflow_environment, check=True, capture_output=True
    )
    return Path(airflow_environment["AIRFLOW_HOME"])


@pytest.fixture(scope="session")
def in_airflow(airflow_environment: dict[str, str]) -> Callable[..., Any]:
    """Run a script of this folder in a fresh process with Airflow's environment; gives the JSON it prints last."""

    def run(script: str, *arguments: str, **environment: str) -> Any:
        ended = subprocess.run(
            [sys.executable, str(HERE / script), *arguments],
            env=airflow_environment | environment,
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, f"{script} failed:\n{ended.stdout[-3000:]}\n{ended.stderr[-6000:]}"
        return json.loads(ended.stdout.splitlines()[-1])

    return run


@pytest.fixture(scope="session")
def step_operator(airflow_environment: dict[str, str]) -> ModuleType:
    """The operator's module; what Airflow does to the process when it is imported is undone."""
    handlers, level = list(logging.root.handlers), logging.root.level
    with pytest.MonkeyPatch.context() as patch:
        for name, value in airflow_environment.items():
            patch.setenv(name, value)
        import dags.step_operator as module
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    return module


class FakeNightjar:
    """The stand-in command line, and what it was called with."""

    def __init__(self, folder: Path) -> None:
        self.command = folder / "nightjar"
        self.calls_file = folder / "calls.jsonl"
        self.command.write_text(f"#!{sys.executable}\n" + (HERE / "fake_nightjar.py").read_text())
        self.command.chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        return {"NIGHTJAR_COMMAND": str(self.command), "FAKE_CALLS": str(self.calls_file)}

    @property
    def calls(self) -> list[dict[str, Any]]:
        """One entry per call; half-written lines are not there yet."""
        text = self.calls_file.read_text() if self.calls_file.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


@pytest.fixture(scope="module")
def night_command(tmp_path_factory: pytest.TempPathFactory) -> FakeNightjar:
    """The command line that a whole night calls."""
    return FakeNightjar(tmp_path_factory.mktemp("command"))


@pytest.fixture
def fake_nightjar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNightjar:
    fake = FakeNightjar(tmp_path)
    for name, value in fake.environment.items():
        monkeypatch.setenv(name, value)
    return fake


@pytest.fixture
def write_sites(tmp_path: Path) -> Callable[..., Path]:
    """Writes site files, name=text, into a conf folder."""
    conf = tmp_path / "conf"
    conf.mkdir()

    def write(**files: str) -> Path:
        for name, text in files.items():
            (conf / f"{name}.yaml").write_text(text)
        return conf

    return write
