"""Whatever form an address has, no output, error or file of `send` holds its password."""

import socket
import threading
import traceback
from collections.abc import Iterator

import pytest

from pipeline.errors import ConfigurationError, NightjarError, RetryableError
from serving_export.exporters import EXPORTERS
from serving_export.parcel import pack
from serving_export.reader import Recommendations
from serving_export.send import send

SECRET = ("hush", "4711")
WELL_FORMED = [
    "postgresql://me:hush@127.0.0.1:1/db",
    "postgres://me:hush@127.0.0.1:1/db",
    "postgresql://127.0.0.1:1/db?user=me&password=hush",
    "postgresql://127.0.0.1:1/db?pass%77ord=hush",
    "postgresql://127.0.0.1:1/db?sslpassword=hush",
    "postgresql://me:hush#hush@127.0.0.1:1/db",
    "postgresql://me:hush:4711@127.0.0.1:1/db",
    "redis://:hush@127.0.0.1:1/0",
    "redis://127.0.0.1:1/0?password=hush",
    "redis://:hush@4711@127.0.0.1:1/0",
    "rediss://:hush@127.0.0.1:1/0?ssl_password=4711",
]
BROKEN = [
    "postgresql://me:hush/hush@127.0.0.1:1/db",
    "postgresql://me:4711/hush@127.0.0.1:1/db",
    "postgresql://me:hush@hush@127.0.0.1:1/db",
    "postgresql://me:hush%zz@127.0.0.1:1/db",
    "postgresql://me:4711 hush@127.0.0.1:1/db",
    "postgresql://me:hush@127.0.0.1:4711hush/db",
    "redis://:hush/hush@127.0.0.1:1/0",
    "redis://:4711/hush@127.0.0.1:1/0",
    "redis://:4711#hush@127.0.0.1:1/0",
    "redis://:hush@[127.0.0.1:1/0",
    "redis://:hush\u2100@127.0.0.1:1/0",
    "REDIS://:hush/4711@127.0.0.1:1/0",
    "host=127.0.0.1 port=1 password=hush",
    "host=127.0.0.1 port=1 password = 'hush 4711'",
    "password=hush host=127.0.0.1 sslrootcert=root.csv",
    "redis:/:hush@127.0.0.1:1/0",
    "me:hush@127.0.0.1/lists.csv",
    "s3://key:hush/4711@bucket/lists.csv",
    "s3://key:hush@bucket/lists.csv",
    "https://127.0.0.1:1/lists.csv?token=hush",
    "no-such-store://me:hush@host/lists.csv",
    "ftp://me:hush@127.0.0.1:1/lists",
]
NO_PASSWORD_BY_NAME = ["postgresql://127.0.0.1:1/db?pwassord=hush", "redis://127.0.0.1:1/0?pwassord=hush"]


def test_no_address_from_the_environment_is_printed_with_its_password(released, command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    for address in [*WELL_FORMED, *BROKEN, *NO_PASSWORD_BY_NAME]:
        monkeypatch.setenv("LISTS_URL", address)
        code, out, err = command(released.home, "send", "--site", released.file, "--to-from", "LISTS_URL")
        assert (code, out) == (1 if address in WELL_FORMED else 2, ""), (address, err)
        assert err.startswith("nightjar: "), err
        assert "Traceback" not in err
        assert not any(secret in err for secret in SECRET), (address, err)
    assert not [path for path in tmp_path.rglob("*") if any(secret in str(path) for secret in SECRET)]


def test_a_password_on_the_command_line_is_refused(released, command):
    for address in [*WELL_FORMED, *BROKEN]:
        code, out, err = command(released.home, "send", "--site", released.file, "--to", address)
        assert (code, out) == (2, ""), address
        assert "was given with a password" in err
        assert "--to-from VARIABLE" in err
        assert not any(secret in err for secret in SECRET), (address, err)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--to-from", "redis://:hush@127.0.0.1:1/0"],
        ["--to", "host=127.0.0.1", "password=hush"],
        ["host=127.0.0.1", "password=hush"],
    ],
    ids=["an address for a variable", "an address without quotes", "no option"],
)
def test_an_address_in_the_wrong_place_is_not_repeated(released, command, arguments):
    code, out, err = command(released.home, "send", "--site", released.file, *arguments)
    assert (code, out) == (2, "")
    assert "hush" not in err


def test_what_an_address_can_be_read_as_is_named(released, command, monkeypatch):
    told = {}
    for address in ["postgresql://me:hush@127.0.0.1:1/db", "redis://:hush/x@127.0.0.1:1", "host=db password=hush"]:
        monkeypatch.setenv("LISTS_URL", address)
        told[address] = command(released.home, "send", "--site", released.file, "--to-from", "LISTS_URL")[2]
    first, second, third = told.values()
    assert "cannot send to postgresql://127.0.0.1:1/db: " in first
    assert "Connection refused" in first
    assert "the address redis://… cannot be read" in second
    assert "/ ? # @ : and % in a user or password as %2F" in second
    assert "like postgresql://HOST/DATABASE" in third


def test_no_error_of_python_holds_the_password(released):
    for address in [*WELL_FORMED[:7], *BROKEN]:  # a Redis that is away is tried for a second
        with pytest.raises(NightjarError) as told:
            send(released.site, released.store, address, None, "rows")
        shown = [repr(told.value), *traceback.format_exception(told.value)]
        lines = [line for text in shown for line in text.splitlines() if "    " not in line]  # without lines of code
        assert not any(secret in line for secret in SECRET for line in lines), address


@pytest.fixture
def repeating_server() -> Iterator[str]:
    """The address of a server that knows no command and repeats what it was sent, as old Redis servers do."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client:
                    while sent := client.recv(65536):
                        words = b" ".join(
                            b"`%s`," % word for word in sent.split(b"\r\n") if word[:1] not in (b"*", b"$")
                        )
                        client.sendall(b"-ERR unknown command, with args beginning with: " + words + b"\r\n")

        threading.Thread(target=answer, daemon=True).start()
        yield f"redis://me:hu%40sh@127.0.0.1:{listener.getsockname()[1]}/0"
        listener.shutdown(socket.SHUT_RDWR)


def test_a_server_that_repeats_the_password_is_not_quoted(released, repeating_server):
    parcel = pack("small", Recommendations(released.store.root), None, "nested")
    with pytest.raises((RetryableError, ConfigurationError), match="unknown command") as told:
        EXPORTERS["redis"](parcel, repeating_server)
    assert "hu@sh" not in str(told.value)
    assert "hu%40sh" not in str(told.value)


@pytest.mark.services
def test_a_wrong_password_of_postgresql_is_told_without_it(released, postgresql_server):
    address = postgresql_server.replace("pa55word", "hush")
    with pytest.raises(RetryableError, match="password authentication failed") as told:
        send(released.site, released.store, address, None, "rows")
    assert "hush" not in str(told.value)
