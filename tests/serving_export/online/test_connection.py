"""Whatever a client sends without end is cut while it arrives, and the others are answered meanwhile."""

import asyncio
import contextlib
import select
import selectors
import socket
import time
from threading import Thread
from types import SimpleNamespace

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from serving_export.online import connection
from serving_export.online.hosts import LoopbackNames
from serving_export.online.limits import Limits
from serving_export.online.server import settings

GET = b"GET /health HTTP/1.1\r\nhost: localhost\r\n"
POST = b"POST /echo HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
CHUNK = b"ffff\r\n" + b"a" * 0xFFFF + b"\r\n"
ENDLESS = {
    "header": (GET + b"x: ", b"a" * 65536, 431),
    "headers": (GET, b"a: b\r\n" * 10_000, 431),
    "address": (b"GET /", b"a" * 65536, 414),
    "empty lines": (b"", b"\r\n" * 32_768, 431),
    "body": (POST, CHUNK, 413),
    "small chunks": (POST, b"1\r\na\r\n" * 10_000, 413),
    "chunk extension": (POST + b"1;", b"a" * 65536, 413),
    "trailers": (POST + b"0\r\n", b"a: b\r\n" * 10_000, 431),
    "body to another host": (POST.replace(b"localhost", b"evil.example"), CHUNK, 400),
    "requests": (b"", (GET + b"\r\n") * 1500, None),
}
MOST_SENT = 32_000_000


@pytest.fixture(scope="module")
def server():
    """A small app behind the limits of the endpoint, over real connections."""

    async def health(_):
        return JSONResponse({"status": "ok"})

    async def echo(request):
        return JSONResponse({"num_bytes": len(await request.body())})

    async def long(_):
        return StreamingResponse(iter([b"a" * 1_000_000] * 100))

    async def slow(_):
        await asyncio.sleep(0.3)
        return JSONResponse({})

    routes = [Route("/health", health), Route("/echo", echo, methods=["POST"]), Route("/long", long)]
    app = Starlette(routes=[*routes, Route("/slow", slow)])
    app.add_middleware(Limits)
    app.add_middleware(LoopbackNames, host="127.0.0.1")
    running = uvicorn.Server(uvicorn.Config(app, **settings("127.0.0.1", 0)))
    thread = Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = running.servers[0].sockets[0].getsockname()[1]
    yield SimpleNamespace(port=port, url=f"http://127.0.0.1:{port}", state=running.server_state)
    running.should_exit = True
    thread.join(20)


def connect(server, sent=b""):
    client = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    client.sendall(sent)
    return client


def send_until_cut(client, first, more):
    """Send without end; how many bytes left before the connection broke."""
    num_sent = 0
    with contextlib.suppress(ConnectionError):
        client.sendall(first)
        while num_sent < MOST_SENT:
            client.sendall(more)
            num_sent += len(more)
    return num_sent


def read_to_end(client):
    """All that comes until the connection ends; a reset may have overtaken it."""
    answer = b""
    with contextlib.suppress(ConnectionError):
        while part := client.recv(65536):
            answer += part
    return answer


def is_closed(client):
    try:
        return client.recv(10) == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize("kind", ENDLESS)
def test_what_has_no_end_is_cut(server, kind):
    first, more, _ = ENDLESS[kind]
    with connect(server) as client:
        assert send_until_cut(client, first, more) < MOST_SENT
    assert httpx.get(f"{server.url}/health").status_code == 200


@pytest.mark.parametrize("kind", [kind for kind in ENDLESS if kind != "requests"])
def test_what_is_cut_is_refused_with_a_status(server, kind):
    first, more, status = ENDLESS[kind]
    num_sent, data = 0, first + more
    with connect(server) as client:
        while not select.select([client], [], [], 0.005)[0] and num_sent < MOST_SENT:
            client.sendall(data[:8192])
            num_sent, data = num_sent + 8192, data[8192:] or more
        answer = client.recv(65536)
    assert int(answer.split()[1]) == status
    assert num_sent < connection.LONGEST_RAW_BODY + 200_000


@pytest.mark.parametrize("kind", ["header", "address"])
def test_two_hundred_clients_without_end_hold_nobody_up(server, kind):
    first, more, _ = ENDLESS[kind]
    sending = selectors.DefaultSelector()
    clients = [connect(server, first) for _ in range(200)]
    for client in clients:
        client.setblocking(False)
        sending.register(client, selectors.EVENT_WRITE)
    longest, done, began = 0.0, [], time.monotonic()

    def ask():
        nonlocal longest
        while not done:
            asked = time.monotonic()
            assert httpx.get(f"{server.url}/health", timeout=30).status_code == 200
            longest = max(longest, time.monotonic() - asked)

    asking = Thread(target=ask)
    asking.start()
    try:
        while sending.get_map() and time.monotonic() < began + 20:
            for key, _ in sending.select(0.1):
                try:
                    key.fileobj.send(more)
                except BlockingIOError:
                    continue
                except OSError:
                    sending.unregister(key.fileobj)
        assert not sending.get_map(), "all of them are cut"
    finally:
        done.append(True)
        asking.join()
        for client in clients:
            client.close()
    assert longest < 5, "seconds, on however busy a machine; benchmarks/serve.py measures milliseconds"


def test_empty_lines_now_and_then_do_not_keep_a_connection(server, monkeypatch):
    monkeypatch.setattr(connection, "HEAD_WITHIN", 0.3)
    with connect(server, GET + b"\r\n") as client:
        assert b" 200 " in client.recv(4096)
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < began + 5:
                client.sendall(b"\r\n")
                time.sleep(0.05)
        assert time.monotonic() - began < 4


def test_an_answer_that_nobody_reads_does_not_keep_a_connection(server, monkeypatch):
    monkeypatch.setattr(connection, "ANSWERED_WITHIN", 0.3)
    with connect(server, b"GET /long HTTP/1.1\r\nhost: localhost\r\n\r\n"):
        began = time.monotonic()
        while server.state.connections and time.monotonic() < began + 5:
            time.sleep(0.05)
        assert not server.state.connections


def test_requests_that_come_together_are_answered_in_their_order(server):
    bodies = [b"a" * length for length in range(1, 11)]
    asked = b"".join(
        b"POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body) for body in bodies
    )
    with connect(server, asked + GET + b"connection: close\r\n\r\n") as client:
        told = read_to_end(client)
    assert [int(part.partition(b"}")[0]) for part in told.split(b'"num_bytes":')[1:]] == list(range(1, 11))


def test_a_body_as_large_as_allowed_may_come_in_many_parts(server):
    parts = (b"a" * 512 for _ in range(512))
    assert httpx.post(f"{server.url}/echo", content=parts).json() == {"num_bytes": 256 * 1024}


def test_where_too_many_are_connected_the_one_that_waits_longest_goes(server, monkeypatch):
    while server.state.connections:
        time.sleep(0.01)
    monkeypatch.setattr(connection, "MOST_CONNECTIONS", 4)
    get_slow = b"GET /slow HTTP/1.1\r\nhost: localhost\r\n\r\n"
    with contextlib.ExitStack() as held:
        busy = held.enter_context(connect(server, get_slow))
        half = []
        for number in range(3):
            half.append(held.enter_context(connect(server, GET)))
            while len(server.state.connections) < number + 2:
                time.sleep(0.01)
            time.sleep(0.02)
        assert httpx.get(f"{server.url}/health").status_code == 200
        half[0].settimeout(3)
        assert is_closed(half[0])
        half[1].sendall(b"\r\n")
        assert b" 200 " in half[1].recv(4096)
        assert b" 200 " in busy.recv(4096)
