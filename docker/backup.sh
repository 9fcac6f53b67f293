#!/bin/sh
# Backs up what a deployment of compose.yaml cannot make again: `docker/backup.sh FOLDER`. Nights may go on meanwhile.
set -eu
umask 077
mkdir -p "${1:?usage: $0 FOLDER}"
to=$(cd "$1" && pwd)
cd "$(dirname "$0")"

# The databases first: whatever file they name is there already, and is still there when the files are copied.
for name in airflow mlflow; do
    docker compose exec -T postgres pg_dump --username postgres --format custom "$name" >"$to/$name.dump"
done
docker compose exec -T mlflow tar --create --directory /var/lib/mlflow . >"$to/artifacts.tar"
# Of the store its logs before its files: a version that was copied has all its files; what comes later is ignored.
docker compose exec -T cpu-worker sh -c 'cd /var/lib/nightjar && {
    find . -type f -path "*/_delta_log/*"
    find . -type f -not -path "*/_delta_log/*" -not -path "./raw/*"
} | tar --create --ignore-failed-read --files-from -' >"$to/home.tar"
cp .env "$to/env"
echo "backed up to $to, passwords among it; raw logs, site files and stores on s3:// are not" >&2
