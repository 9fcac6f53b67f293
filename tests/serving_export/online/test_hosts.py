"""On loopback, only names of this machine may be asked for, however the address is written."""

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from pipeline.errors import ConfigurationError
from serving_export.online.hosts import LoopbackNames, listens_on_loopback

LOOPBACK = [
    "127.0.0.1",
    "127.0.0.2",
    "127.1",
    "0x7f.1",
    "2130706433",
    "localhost",
    "LOCALHOST",
    "::1",
    "::ffff:127.0.0.1",
]


@pytest.mark.parametrize("host", LOOPBACK)
def test_an_address_of_loopback_is_one_however_it_is_written(host):
    assert listens_on_loopback(host, 8600)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.0.0.1", "0", "::ffff:10.0.0.1"])
def test_an_address_that_others_reach_is_not_loopback(host):
    assert not listens_on_loopback(host, 8600)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 300, "300.1.2.3"])
def test_a_host_that_means_nothing_is_a_sentence(host):
    with pytest.raises(ConfigurationError, match="cannot listen at the host"):
        listens_on_loopback(host, 8600)


@pytest.fixture(scope="module", params=["127.0.0.1", "127.0.0.2", "::1", "this-machine"])
def client(request):
    app = Starlette(routes=[Route("/ready", lambda _: PlainTextResponse("yes"))])
    return TestClient(LoopbackNames(app, request.param), base_url="http://localhost")


@pytest.mark.parametrize(
    "name",
    [
        *("localhost", "LocalHost:8600", "localhost.", "shop.localhost:80", "127.0.0.1", "127.0.0.1:8600", "127.9.9.9"),
        *("127.1:80", "0x7f.1", "2130706433", "[::1]", "[::1]:8600", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]:80"),
        "[::1%lo]:8600",
    ],
)
def test_names_of_loopback_are_answered(client, name):
    assert client.get("/ready", headers={"host": name}).status_code == 200


@pytest.mark.parametrize(
    "name",
    [
        *("evil.example", "evil.example:8600", "localhost.evil.example", "127.0.0.1.evil.example", "evillocalhost"),
        *("10.0.0.1", "[::2]", "[::ffff:10.0.0.1]", "[fe80::1%lo]", "0.0.0.0", "", " ", "[", "127.0.0.1 evil.example"),
        *("localhost@evil.example", "[::1].evil.example", "1.evil", "127.0.0.1:80:80", "localhost, evil.example"),
    ],
)
def test_other_names_are_refused(client, name):
    assert client.get("/ready", headers={"host": name}).status_code == 400


def test_a_server_answers_to_the_name_that_it_was_started_with():
    client = TestClient(LoopbackNames(Starlette(), "This-Machine"), base_url="http://this-machine:8600")
    assert client.get("/ready").status_code == 404


def test_a_second_host_header_is_refused(client):
    headers = [("host", "localhost"), ("host", "evil.example")]
    assert client.get("/ready", headers=headers).status_code == 400
