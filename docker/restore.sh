#!/bin/sh
# Makes a deployment out of what backup.sh wrote, on a machine that has none: `docker/restore.sh FOLDER`.
set -eu
umask 077
from=$(cd "${1:?usage: $0 FOLDER}" && pwd)
cd "$(dirname "$0")"
if [ -e .env ]; then
    echo "there is a deployment here already: $PWD/.env. Take it away first: docker compose down --volumes, rm .env" >&2
    exit 1
fi

cp "$from/env" .env
docker compose up --detach --wait --build postgres
for name in airflow mlflow; do
    docker compose exec -T postgres pg_restore --username postgres --exit-on-error --dbname "$name" <"$from/$name.dump"
done
docker compose run --rm --no-deps -T mlflow tar --extract --directory /var/lib/mlflow <"$from/artifacts.tar"
docker compose run --rm --no-deps -T cpu-worker tar --extract --directory /var/lib/nightjar <"$from/home.tar"
docker compose up --detach --build
