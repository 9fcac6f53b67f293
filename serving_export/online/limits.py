"""What keeps one client from harming the others: sizes and times, before any route is asked."""

import asyncio
from collections.abc import MutableMapping
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST_BODY = 256 * 1024
LONGEST_URL = 8 * 1024
BODY_WITHIN = 5.0
"""Seconds in which a body must have come."""


class Limits:
    """Reads bodies whole, within limits, before the app sees the request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is within the limits; refuse the rest with a sentence."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refused = self.refuse(scope)
        body = b""
        if refused is None and may_have_body(scope):
            try:
                async with asyncio.timeout(BODY_WITHIN):
                    read = await self.read(receive)
            except TimeoutError:
                refused = fault(408, f"the body did not come within {BODY_WITHIN:g} s; send it in one go")
            else:
                if isinstance(read, bytes):
                    body = read
                else:
                    refused = read
        if refused is not None:
            await refused(scope, receive, send)
            return
        await self.app(scope, replay(body, receive), send)

    def refuse(self, scope: Scope) -> JSONResponse | None:
        """What can be said before the body came."""
        length = len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"")
        if length > LONGEST_URL:
            return fault(414, f"the address has {length} bytes, at most {LONGEST_URL} are read")
        told = dict(scope["headers"]).get(b"content-length", b"0")
        if told.isdigit() and int(told[:20]) > LARGEST_BODY:
            return self.too_large()
        return None

    def too_large(self) -> JSONResponse:
        """Of a body beyond the limit."""
        return fault(413, f"the body is larger than {LARGEST_BODY} bytes; send fewer events")

    async def read(self, receive: Receive) -> bytes | JSONResponse:
        """The whole body, or what to say of it."""
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return b""
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > LARGEST_BODY:
                return self.too_large()
            if not message.get("more_body", False):
                return b"".join(parts)


def may_have_body(scope: Scope) -> bool:
    """Whether a request announces a body."""
    names = {name for name, _ in scope["headers"]}
    return b"content-length" in names or b"transfer-encoding" in names


def replay(body: bytes, receive: Receive) -> Receive:
    """Give a body that was read again, then what comes behind it."""
    told: list[MutableMapping[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return told.pop() if told else await receive()

    return receive_again


def fault(status: int, sentence: str) -> JSONResponse:
    """A refusal; the connection ends with it, for what is left of the request is not read."""
    return JSONResponse({"detail": sentence}, status, {"connection": "close"})
