"""The process: load what serves, then listen. uvicorn does the HTTP."""

import resource
from typing import Any

import uvicorn

from pipeline.privacy import user_id_secret
from pipeline.publish import open_store
from pipeline.terminal import log
from serving_export.online.app import create_app
from serving_export.online.connection import MOST_CONNECTIONS, BoundedProtocol
from serving_export.online.hosts import LoopbackNames, listens_on_loopback
from serving_export.online.metrics import Metrics
from serving_export.online.versions import Versions
from training.settings import TrainingSite

FILES_BESIDE = 1000
"""Files that may be open beside connections: tables, and what the libraries need."""


def serve(site: TrainingSite, host: str, port: int) -> None:
    """Answer until the process is told to end; raises ConfigurationError where there is nothing to serve."""
    is_local = listens_on_loopback(host, port)
    metrics = Metrics()
    secret = (user_id_secret(site) or b"").decode()
    versions = Versions(site, open_store(site, must_exist=True), secret, metrics)
    app = create_app(versions, metrics)
    if is_local:
        app.add_middleware(LoopbackNames, host=host)
    allow_open_files(MOST_CONNECTIONS + FILES_BESIDE)
    address = f"[{host}]" if ":" in host else host
    log.info("answering at http://%s:%d, described at http://%s:%d/docs", address, port, address, port)
    uvicorn.run(app, **settings(host, port))


def allow_open_files(number: int) -> None:
    """Let the process open so many files, as far as the system lets it: usually it may have 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = number if hard == resource.RLIM_INFINITY else min(number, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def settings(host: str, port: int) -> dict[str, Any]:
    """uvicorn's."""
    return {
        "host": host,
        "port": port,
        "http": BoundedProtocol,
        "ws": "none",
        "access_log": False,
        "log_config": None,
        "server_header": False,
        "limit_concurrency": MOST_CONNECTIONS + 1,
        "timeout_keep_alive": 20,
        "timeout_graceful_shutdown": 10,
        "backlog": 2048,
    }
