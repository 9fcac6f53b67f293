"""One client cannot harm the others: by slowness, by size, or by asking much."""

import asyncio
import socket
import threading
import time

import httpx
import pytest

from serving_export.online import app as app_module
from serving_export.online import batcher as batcher_module
from serving_export.online import connection, limits
from serving_export.online.batcher import Batcher, BusyError
from serving_export.online.metrics import Metrics

HALF = b"POST /recommend HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n{"


def connect(listening, sent):
    client = socket.create_connection(("127.0.0.1", listening.port), timeout=10)
    client.sendall(sent)
    return client


def test_a_body_that_does_not_come_is_given_up(listening, monkeypatch):
    monkeypatch.setattr(limits, "BODY_WITHIN", 0.2)
    with connect(listening, HALF) as client:
        answer = client.recv(4096)
        assert b" 408 " in answer.splitlines()[0]
        assert b"did not come within 0.2 s" in answer
        assert client.recv(10) == b"", "the connection ends"


@pytest.mark.parametrize("sent", [b"", b"GET /rea", b"GET /ready HTTP/1.1\r\nhost:"], ids=["nothing", "line", "header"])
def test_a_head_that_does_not_come_is_given_up(listening, monkeypatch, sent):
    monkeypatch.setattr(connection, "HEAD_WITHIN", 0.2)
    with connect(listening, sent) as client:
        assert client.recv(10) == b""


def test_slow_clients_hold_nobody_up(listening):
    slow = [connect(listening, HALF) for _ in range(50)]
    try:
        assert httpx.post(f"{listening.url}/recommend", json={"items": [{"item_id": "sku-00001"}]}).status_code == 200
    finally:
        for client in slow:
            client.close()


def test_a_body_that_grows_beyond_the_limit_is_refused_however_it_is_sent(listening):
    def grow():
        yield b'{"items": ['
        for _ in range(40):
            yield b" " * 10_000

    answer = httpx.post(f"{listening.url}/recommend", content=grow(), headers={"content-type": "application/json"})
    assert answer.status_code == 413


def test_an_answer_that_takes_too_long_is_given_up(endpoint, monkeypatch):
    from starlette.testclient import TestClient

    monkeypatch.setattr(app_module, "ANSWER_WITHIN", 0.2)
    monkeypatch.setattr("serving_export.online.answers.Answers.answer", lambda *_: time.sleep(1))
    with TestClient(app_module.create_app(endpoint.versions, Metrics(), 3600)) as client:
        answer = client.post("/recommend", json={})
        assert answer.status_code == 503
        assert "within 0.2 s" in answer.json()["detail"]
        assert client.get("/health").status_code == 200


def run_batcher(answer, work):
    async def main():
        batcher = Batcher(answer, Metrics())
        batcher.start()
        try:
            return await work(batcher)
        finally:
            await batcher.stop()

    return asyncio.run(main())


def test_who_comes_while_a_batch_is_answered_is_in_the_next_one():
    sizes, go_on = [], threading.Event()

    def answer(asked):
        sizes.append(len(asked))
        go_on.wait(10)
        return [2 * number for number in asked]

    async def work(batcher):
        first = asyncio.create_task(batcher.ask(1))
        while not sizes:
            await asyncio.sleep(0.01)
        others = [asyncio.create_task(batcher.ask(number)) for number in range(2, 8)]
        await asyncio.sleep(0.01)
        go_on.set()
        return [await task for task in (first, *others)]

    assert run_batcher(answer, work) == [2, 4, 6, 8, 10, 12, 14]
    assert sizes == [1, 6]


def test_what_fails_fails_alone():
    def answer(asked):
        return [ValueError("no") if number == 2 else number for number in asked]

    async def work(batcher):
        return await asyncio.gather(*(batcher.ask(number) for number in (1, 2, 3)), return_exceptions=True)

    one, two, three = run_batcher(answer, work)
    assert (one, three) == (1, 3)
    assert isinstance(two, ValueError)


def test_too_many_who_wait_are_sent_away(monkeypatch):
    monkeypatch.setattr(batcher_module, "MOST_WAITING", 2)
    go_on = threading.Event()

    def answer(asked):
        go_on.wait(10)
        return asked

    async def work(batcher):
        tasks = [asyncio.create_task(batcher.ask(1))]
        await asyncio.sleep(0.05)
        tasks += [asyncio.create_task(batcher.ask(number)) for number in (2, 3)]
        await asyncio.sleep(0)
        with pytest.raises(BusyError):
            await batcher.ask(4)
        go_on.set()
        return await asyncio.gather(*tasks)

    assert run_batcher(answer, work) == [1, 2, 3]


def test_nobody_answers_whom_who_asked_has_gone():
    asked_for = []

    def answer(asked):
        asked_for.extend(asked)
        time.sleep(0.05)
        return asked

    async def work(batcher):
        first = asyncio.create_task(batcher.ask(1))
        await asyncio.sleep(0.02)
        gone = asyncio.create_task(batcher.ask(2))
        await asyncio.sleep(0)
        gone.cancel()
        await first
        return await batcher.ask(3)

    assert run_batcher(answer, work) == 3
    assert asked_for == [1, 3]


def test_only_so_many_versions_wait_to_be_loaded(endpoint, monkeypatch):
    monkeypatch.setattr(app_module, "MOST_LOADING", 0)
    endpoint.versions.beside.clear()
    (trained,) = (m for m in endpoint.client.get("/models").json()["models"] if not m["is_serving"])
    assert endpoint.client.post("/recommend", json={"model": trained["model_version"]}).status_code == 503
    assert endpoint.client.post("/recommend", json={}).status_code == 200


def test_versions_that_are_not_registered_cost_one_listing_a_second(endpoint, monkeypatch):
    listings, versions = [], endpoint.versions.tracking.versions
    monkeypatch.setattr("serving_export.online.versions.LIST_EVERY", 60)
    monkeypatch.setattr(endpoint.versions.tracking, "versions", lambda **told: listings.append(1) or versions(**told))
    for number in range(900, 920):
        assert endpoint.client.post("/recommend", json={"model": number}).status_code == 404
    assert len(listings) <= 1


@pytest.mark.parametrize("where", ["body", "event"])
def test_a_body_of_unknown_fields_is_refused_with_few_words(endpoint, where):
    unknown = {f"x{number}": 0 for number in range(20_000)}
    body = unknown if where == "body" else {"items": [unknown | {"item_id": "a"}]}
    answer = endpoint.client.post("/recommend", json=body)
    assert answer.status_code == 422
    assert "20,00" in answer.text
    assert len(answer.content) < 2000


@pytest.mark.parametrize(
    "body", ["[" * 100_000, '{"items": ' + "[" * 900 + "]" * 900 + "}", '{"n": ' + "1" * 100_000 + "}", '{"n": NaN}']
)
def test_odd_json_is_refused(endpoint, body):
    answer = endpoint.client.post("/recommend", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    assert len(answer.content) < 2000
