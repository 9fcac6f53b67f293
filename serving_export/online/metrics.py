"""What the endpoint tells Prometheus of itself."""

import asyncio
import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECONDS = (0.001, 0.002, 0.004, 0.006, 0.008, 0.012, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1, 5)


class Metrics:
    """Counters of one app; a registry of its own, so that several apps may live in a process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, told: str, *labels: str) -> Counter:
            return Counter(f"nightjar_{name}", told, labels, registry=self.registry)

        self.requests = counter("requests", "Requests answered.", "route", "status")
        self.seconds = Histogram(
            *("nightjar_request_seconds", "From the first byte asked to the last one answered."),
            ("route",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.batches = Histogram(
            "nightjar_batch_size",
            "Requests that were scored together.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=self.registry,
        )
        self.answers = counter("answers", "Lists made, by where they come from.", "source")
        self.unknown_items = counter("unknown_items", "Items of sessions that the model does not know.")
        self.unknown_users = counter("unknown_users", "Requests with a user of whom nothing is known.")
        self.steps = counter("recurrent_steps", "Steps of the model, each over one event of one session.")
        self.reads = counter("sessions_read", "Sessions read from their first event, for want of a state.")
        self.reloads = counter("reloads", "Looks at what is served that found something new.", "outcome")
        self.states = Gauge("nightjar_states", "States of sessions in progress in memory.", registry=self.registry)
        self.model_version = Gauge("nightjar_model_version", "The version that serves.", registry=self.registry)
        self.release = Gauge("nightjar_release", "The version of the exported lists.", registry=self.registry)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)


class Counted:
    """Counts requests by route and status, and bounds the time of each."""

    def __init__(self, app: ASGIApp, metrics: Metrics, within: float) -> None:
        self.app, self.metrics, self.within = app, metrics, within

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on; a request that takes too long is told to try again."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            async with asyncio.timeout(self.within):
                await self.app(scope, receive, noted)
        except TimeoutError:
            if status:  # half of an answer is out: the connection has to break
                raise
            sentence = f"no answer within {self.within:g} s; try again"
            await JSONResponse({"detail": sentence}, 503, {"retry-after": "1"})(scope, receive, noted)
        finally:
            route = getattr(scope.get("route"), "path_format", "none")
            self.metrics.requests.labels(route, str(status or 500)).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - started)
