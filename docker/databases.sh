#!/bin/sh
# Run once by the PostgreSQL image, over an empty volume: a role and a database for Airflow and for MLflow each.
set -eu

# The password is taken from the environment: arguments are seen by `ps`, failed statements by the server's log.
make_database() {
    psql --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres \
        --set name="$1" --set variable="$2" <<'SQL'
\getenv password :variable
SET log_min_error_statement = panic;
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE CONNECT ON DATABASE :"name" FROM PUBLIC;
SQL
}

make_database airflow AIRFLOW_DB_PASSWORD
make_database mlflow MLFLOW_DB_PASSWORD
