"""Whether what docker/ tells Airflow is what Airflow knows: it takes a misspelt variable without a word."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
SERVICES = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())["services"]
CHART = yaml.safe_load((ROOT / "docker/kubernetes/values.yaml").read_text())
MISSPELT = "AIRFLOW__SCHEDULER__NO_SUCH_OPTION"
EXTRAS = ["airflow", "celery", "kubernetes", "fab", "postgresql"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    variables = {
        name for service in SERVICES.values() for name in service["environment"] if name.startswith("AIRFLOW__")
    }
    variables |= {
        f"AIRFLOW__{section}__{option}".upper() for section, told in CHART["config"].items() for option in told
    }
    listed = subprocess.run(
        [sys.executable, "docker/requirements_of.py", *EXTRAS], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    home = {"AIRFLOW_HOME": str(tmp_path_factory.mktemp("airflow")), "NIGHTJAR_CONF": str(ROOT / "conf")}
    ended = subprocess.run(
        [
            sys.executable,
            Path(__file__).with_name("inspect_settings.py"),
            json.dumps([sorted(variables | {MISSPELT}), listed]),
        ],
        env=os.environ | home,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout.splitlines()[-1])


def test_the_image_of_servers_is_made_of_these_extras():
    assert f"requirements_of.py {' '.join(EXTRAS)} >" in (ROOT / "docker/Dockerfile").read_text()


def test_airflow_knows_every_option_that_compose_and_the_chart_set(found):
    assert found["unknown"] == [MISSPELT]


def test_the_image_of_servers_has_all_that_dag_files_import(found):
    assert found["missing"] == []
