"""Ports of this machine's loopback for servers that start by themselves."""

import contextlib
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

LOOPBACK = "127.0.0.1"
PORTS_TRIED = 100


class StackError(RuntimeError):
    """The local stack cannot start, or is there already."""


def free_port(first: int) -> int:
    """The first free loopback port from `first` on."""
    for port in range(first, first + PORTS_TRIED):
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                trial.bind((LOOPBACK, port))
                return port
    raise StackError(f"no port is free from {first} to {first + PORTS_TRIED - 1}; stop what holds them")


@contextlib.contextmanager
def claimed_port(first: int) -> Iterator[int]:
    """A free port from `first` on, which no other stack of this machine takes: a server binds it seconds later."""
    for number in range(first, first + PORTS_TRIED):
        port = free_port(number)
        lock = FileLock(Path(tempfile.gettempdir()) / f"nightjar-port-{port}.lock", timeout=0)
        with contextlib.suppress(Timeout, OSError):
            lock.acquire()
            break
    else:
        raise StackError(f"no port is free from {first} on; stop what holds them")
    try:
        yield port
    finally:
        lock.release()


def wait_until_listening(port: int, check: Callable[[], None], seconds: float) -> None:
    """Return once a loopback port answers; raises StackError after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=1):
            return
        check()
        if time.monotonic() > deadline:
            raise StackError(f"nothing listens on {LOOPBACK}:{port} after {seconds:.0f} s")
        time.sleep(0.3)
