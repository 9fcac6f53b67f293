"""HTTP connections with bounds on size and time that hold while a request arrives.

The parser keeps a header until it is complete, and the app sees a request only once its head is there. So an endless
header, address or trailer must be stopped here, by counting raw bytes as they come.
"""

import asyncio
from typing import ClassVar

from pydantic_core import to_json
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from serving_export.online.limits import LARGEST_BODY, LONGEST_URL

MOST_CONNECTIONS = 1000
LONGEST_HEAD = 16 * 1024
"""Bytes of the request line and all headers."""
MOST_HEADERS = 100
"""With the trailers of a chunked body."""
LONGEST_RAW_BODY = 2 * LARGEST_BODY
"""Bytes of a body as it is sent, with the sizes and extensions of its chunks."""
MOST_CHUNKS = 1024
MOST_PIPELINED = 16
"""Requests of a connection that may wait for the answer to the one before them."""
HEAD_WITHIN = 10.0
"""Seconds from the first byte of a request, or from the connection, to the end of its head."""
ANSWERED_WITHIN = 30.0
"""Seconds from the end of a head until the client has taken the answer; the app gives up long before."""
READ_WITHIN = 10.0
"""Seconds in which a client must take what was written to a connection that is being closed."""
SLICE = 4096
"""Bytes that the parser gets at a time: a limit is exceeded by less than this."""


class RefusedError(Exception):
    """A request is beyond a limit; raised inside the parser, which ends with it."""


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which closes a connection whose request has no end in size or time."""

    deadline: asyncio.TimerHandle | None = None
    url = b""
    has_head = False
    num_bytes = 0
    """Of the current head, or of the current body: raw, as received."""
    num_chunks = 0
    refusal: tuple[int, str] | None = None
    waiting_since = 0.0
    """When the client last had its answer, or connected."""
    LIMITS: ClassVar = {
        False: (LONGEST_HEAD, 431, f"the head of the request is larger than {LONGEST_HEAD} bytes"),
        True: (LONGEST_RAW_BODY, 413, f"the body as it is sent is larger than {LONGEST_RAW_BODY} bytes"),
    }

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect a request; make room where too many clients are connected."""
        super().connection_made(transport)
        self.waiting_since = self.loop.time()
        self.abort_within(HEAD_WITHIN)
        if len(self.connections) > MOST_CONNECTIONS:
            self.make_room()

    def make_room(self) -> None:
        """Close the connection that has waited longest for its client; none where all are being answered."""
        others = (each for each in self.connections if isinstance(each, BoundedProtocol) and each is not self)
        waiting = [each for each in others if each.is_waiting_for_client()]
        if waiting:
            longest = min(waiting, key=lambda each: each.waiting_since)
            longest.abort()
            self.connections.discard(longest)

    def is_waiting_for_client(self) -> bool:
        """Whether the client has to send or to read before anything can go on."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body or self.flow.write_paused

    def data_received(self, data: bytes) -> None:
        """Parse bytes slice by slice until a limit is reached."""
        if not self.has_head and self.deadline is None:
            self.abort_within(HEAD_WITHIN)
        for start in range(0, len(data), SLICE):
            if self.transport.is_closing():
                return
            part = data[start : start + SLICE]
            self.num_bytes += len(part)
            super().data_received(part)
            most, status, sentence = self.LIMITS[self.has_head]
            if self.num_bytes > most and not self.transport.is_closing():
                if not self.has_head and len(self.url) > LONGEST_URL:
                    status, sentence = 414, f"the address has more than {LONGEST_URL} bytes"
                self.refuse(status, sentence)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer, is complete."""
        if len(self.headers) >= MOST_HEADERS:
            self.stop_parsing(431, f"the request has more than {MOST_HEADERS} headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is complete: the app begins."""
        if len(self.pipeline) >= MOST_PIPELINED:
            self.stop_parsing(429, f"more than {MOST_PIPELINED} requests wait on this connection")
        self.has_head, self.num_bytes, self.num_chunks = True, 0, 0
        self.abort_within(ANSWERED_WITHIN)
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        """A chunk of the body begins."""
        self.num_chunks += 1
        if self.num_chunks > MOST_CHUNKS:
            self.stop_parsing(413, f"the body comes in more than {MOST_CHUNKS} chunks; send it in fewer")

    def on_message_complete(self) -> None:
        """The request is complete; what follows is the next one."""
        super().on_message_complete()
        self.has_head, self.num_bytes = False, 0

    def on_response_complete(self) -> None:
        """The answer is written: close where the rest of the request would be read for nothing."""
        is_early = not self.pipeline and self.cycle.more_body
        has_next = bool(self.pipeline)
        self.waiting_since = self.loop.time()
        super().on_response_complete()
        if is_early or self.transport.is_closing():
            self.close()
        elif has_next:
            self.abort_within(ANSWERED_WITHIN)
        else:
            self.stop_deadline()

    def stop_parsing(self, status: int, sentence: str) -> None:
        """End the parser, which calls `send_400_response`."""
        self.refusal = status, sentence
        raise RefusedError(sentence)

    def send_400_response(self, msg: str) -> None:
        """Refuse what the parser did not take."""
        self.refuse(*(self.refusal or (400, msg)))

    def refuse(self, status: int, sentence: str) -> None:
        """Say why and close; where an answer is being written already, only close."""
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if not is_answering or (self.cycle.more_body and not self.cycle.response_started and not self.pipeline):
            body = to_json({"detail": sentence})
            head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
            self.transport.write(STATUS_LINE[status] + head + body)
        if is_answering:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.close()

    def close(self) -> None:
        """Close once the client has read what was written, or has had the time to."""
        self.transport.close()
        self.abort_within(READ_WITHIN)

    def timeout_keep_alive_handler(self) -> None:
        """An idle connection has had its time, also one whose client never read the last answer."""
        self.abort()

    def abort_within(self, seconds: float) -> None:
        """Close the connection after so long, whatever it is doing, unless another deadline takes this one's place."""
        self.stop_deadline()
        self.deadline = self.loop.call_later(seconds, self.abort)

    def stop_deadline(self) -> None:
        """Let the connection stay."""
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None

    def abort(self) -> None:
        """Close at once."""
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        self.stop_deadline()
        super().connection_lost(exc)
