"""databases.sh makes the roles of a deployment, and nothing of it that others can read holds their passwords."""

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docker" / "databases.sh"


@pytest.mark.services
def test_neither_arguments_nor_the_log_of_the_server_hold_a_password(own_deployment, start_postgres):
    secrets = [own_deployment.variables[f"{role}_DB_PASSWORD"] for role in ("AIRFLOW", "MLFLOW")]
    with start_postgres(own_deployment):
        environment = own_deployment.environment("postgres") | {"POSTGRES_USER": "postgres"}
        again = subprocess.run(["sh", "-x", SCRIPT], env=environment, capture_output=True, text=True)
        log_in = ["psql", "--username", "airflow", "--dbname", "airflow", "--command", "SELECT 1"]
        subprocess.run(log_in, env=environment | {"PGPASSWORD": secrets[0]}, check=True, capture_output=True)
    log = (own_deployment.folder / "logs" / "postgres.log").read_text()
    assert again.returncode != 0
    assert 'role "airflow" already exists' in log
    assert not any(secret in text for secret in secrets for text in (again.stdout, again.stderr, log))
