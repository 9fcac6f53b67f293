"""The process: load what serves, then listen. uvicorn does the HTTP."""

import asyncio
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.middleware.trustedhost import TrustedHostMiddleware
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pipeline.privacy import user_id_secret
from pipeline.publish import open_store
from pipeline.terminal import log
from serving_export.online.app import create_app
from serving_export.online.metrics import Metrics
from serving_export.online.versions import Versions
from training.settings import TrainingSite

HEAD_WITHIN = 10.0
"""Seconds in which the head of a request must have come."""
MOST_CONNECTIONS = 1000
LOOPBACK = ["localhost", "127.0.0.1"]


class PatientProtocol(HttpToolsProtocol):
    """uvicorn's, which closes idle connections, and here also one whose request does not come."""

    head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there: its first request must follow."""
        super().connection_made(transport)
        self.await_head()

    def on_message_begin(self) -> None:
        """The first byte of a further request came."""
        super().on_message_begin()
        self.await_head()

    def on_headers_complete(self) -> None:
        """The head is there."""
        self.stop_waiting()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self.stop_waiting()
        super().connection_lost(exc)

    def await_head(self) -> None:
        """Close the connection unless the head comes."""
        self.stop_waiting()
        self.head_timer = self.loop.call_later(HEAD_WITHIN, self.give_up)

    def stop_waiting(self) -> None:
        """The connection may stay."""
        if self.head_timer is not None:
            self.head_timer.cancel()
            self.head_timer = None

    def give_up(self) -> None:
        """The client is too slow."""
        if not self.transport.is_closing():
            self.transport.close()


def serve(site: TrainingSite, host: str, port: int) -> None:
    """Answer until the process is told to end; raises ConfigurationError where there is nothing to serve."""
    metrics = Metrics()
    secret = (user_id_secret(site) or b"").decode()
    versions = Versions(site, open_store(site, must_exist=True), secret, metrics)
    app = create_app(versions, metrics)
    know_names(app, host)
    address = f"[{host}]" if ":" in host else host
    log.info("answering at http://%s:%d, described at http://%s:%d/docs", address, port, address, port)
    uvicorn.run(app, **settings(host, port))


def know_names(app: FastAPI, host: str) -> None:
    """On loopback, answer to its names only: a website whose name comes to mean 127.0.0.1 must not read histories."""
    if host in LOOPBACK:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=LOOPBACK)


def settings(host: str, port: int) -> dict[str, Any]:
    """uvicorn's."""
    return {
        "host": host,
        "port": port,
        "http": PatientProtocol,
        "ws": "none",
        "access_log": False,
        "log_config": None,
        "server_header": False,
        "limit_concurrency": MOST_CONNECTIONS,
        "timeout_keep_alive": 20,
        "timeout_graceful_shutdown": 10,
        "backlog": 2048,
    }
