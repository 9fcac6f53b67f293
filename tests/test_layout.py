"""What must hold for our folder names to be safe import names, and for light parts to stay light."""

import subprocess
import sys
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OUR_NAMES = ("pipeline", "features", "training", "serving_export", "dags", "nightjar")
HEAVY = ("polars", "pandas", "pyarrow", "deltalake", "torch", "mlflow", "faiss", "great_expectations", "airflow")


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a fresh process has after a statement."""
    code = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(answer.stdout.split())


@pytest.mark.parametrize("name", OUR_NAMES)
def test_our_import_names_belong_to_us_alone(name):
    assert set(packages_distributions().get(name, [])) <= {"nightjar"}
    found = find_spec(name)
    assert found is not None
    assert found.origin is not None
    assert Path(found.origin).is_relative_to(ROOT)


def test_the_docker_folder_does_not_hide_the_docker_package():
    assert not (ROOT / "docker/__init__.py").exists()


def test_tests_are_no_packages():
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_every_folder_of_ours_is_a_package_with_a_sentence():
    for name in OUR_NAMES[:-1]:
        assert (ROOT / name / "__init__.py").read_text().startswith('"""'), name


def test_settings_and_the_command_line_import_nothing_heavy():
    ours = (
        "pipeline.settings",
        "pipeline.site_file",
        "features.settings",
        "training.settings",
        "serving_export.settings",
        "dags.settings",
        "nightjar",
    )
    assert loaded_by(f"import {', '.join(ours)}") & set(HEAVY) == set()


def test_the_reader_of_the_exported_tables_needs_polars_pyarrow_and_deltalake_alone():
    heavy = {
        "torch",
        "mlflow",
        "faiss",
        "great_expectations",
        "pydantic",
        "pandas",
        "numpy",
        "polars_hash",
        "typer",
        "yaml",
    }
    loaded = loaded_by("import serving_export.reader")
    assert loaded & (heavy | set(HEAVY)) <= {"polars", "pyarrow", "deltalake"}
    assert "polars" in loaded
