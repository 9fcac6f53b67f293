#!/bin/sh
# Makes docker/.env: passwords and keys that nobody else has, for `docker compose`. Once; it never overwrites the file.
#
#     docker/first-start.sh          # all steps on the CPU worker
#     docker/first-start.sh --gpu    # a worker on this machine's NVIDIA GPUs, too
set -eu
umask 077
cd "$(dirname "$0")"

case "${1:-}" in
    "") profiles="" cpu_queues="default,gpu" ;;
    --gpu) profiles="gpu" cpu_queues="default" ;;
    *) echo "usage: $0 [--gpu]" >&2; exit 2 ;;
esac
if [ -e .env ]; then
    echo "$PWD/.env is there already; its passwords are those of the volumes. To start anew, remove both" >&2
    exit 1
fi

secret() { head -c 32 /dev/urandom | base64 | tr '+/' '-_' | tr -d '=\n'; }

cat > .env.new <<END
# Made by first-start.sh. Keep a copy where you keep secrets: a backup is of no use without it.
AIRFLOW_ADMIN_PASSWORD=$(secret)
POSTGRES_PASSWORD=$(secret)
AIRFLOW_DB_PASSWORD=$(secret)
MLFLOW_DB_PASSWORD=$(secret)
REDIS_PASSWORD=$(secret)
AIRFLOW_FERNET_KEY=$(secret)=
AIRFLOW_SECRET_KEY=$(secret)
AIRFLOW_JWT_SECRET=$(secret)$(secret)
NIGHTJAR_USER_ID_SECRET=$(secret)

# Where things are on this machine; paths hang from the folder of compose.yaml.
SITE_FILES=../conf
RAW_LOGS=../home/raw
AIRFLOW_PORT=8080
AIRFLOW_ADDRESS=http://localhost:8080
MLFLOW_PORT=5000
MLFLOW_NAME=localhost
MLFLOW_ARTIFACTS=/var/lib/mlflow

# Who does what: queues of the CPU worker, tasks side by side there, memory of a worker.
COMPOSE_PROFILES=$profiles
CPU_QUEUES=$cpu_queues
CPU_TASKS=2
CPU_WORKER_MEMORY=8g
GPU_WORKER_MEMORY=16g
END
mkdir -p ../home/raw
mv .env.new .env
echo "made $PWD/.env; log in to Airflow as admin with its AIRFLOW_ADMIN_PASSWORD" >&2
