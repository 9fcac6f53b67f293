"""Servers that start together and never outlive the program that asked for them.

Between the program and its servers stands a keeper: a process that starts them, and stops them and all that they
started as soon as the pipe from the program closes, which it does however the program ends. `python -m dags.processes`
is the keeper; `kept` is the program's side.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

SET_CHILD_SUBREAPER = 36
"""Number of the prctl call by which Linux hands us processes whose own parent has died."""
PATIENCE = (8.0, 4.0)
"""Seconds that the servers get to end after SIGINT, and then after SIGTERM."""


class ServerEndedError(RuntimeError):
    """A server has ended by itself."""


@contextlib.contextmanager
def kept(
    servers: Mapping[str, list[str]],
    environment: Mapping[str, str],
    logs: Path,
    patience: tuple[float, float] = PATIENCE,
) -> Iterator[Callable[[], None]]:
    """Servers (name -> command) that run until the block ends; their output goes to `logs`/<name>.log.

    Gives a function that raises ServerEndedError once a server has ended by itself.
    """
    logs.mkdir(parents=True, exist_ok=True)
    keeper = subprocess.Popen(
        [sys.executable, "-m", "dags.processes"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=dict(environment),
        start_new_session=True,  # the terminal's Ctrl-C is for the program; the keeper hears of it by the pipe
    )
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    stdout = keeper.stdout

    said: list[str] = []

    def check() -> None:
        if keeper.poll() is not None:
            said.extend(stdout.read().splitlines())
            raise ServerEndedError(explain_end("".join(said), logs))

    try:
        wanted = {"servers": dict(servers), "logs": str(logs), "patience": patience}
        keeper.stdin.write(json.dumps(wanted) + "\n")
        keeper.stdin.flush()
        yield check
    finally:
        with contextlib.suppress(BrokenPipeError):
            keeper.stdin.close()
        keeper.wait()
        stdout.close()


def explain_end(message: str, logs: Path) -> str:
    """What the keeper said of the server that ended, and where its log is, with the end of it."""
    log = logs / f"{message.split(' ')[0]}.log"
    tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:] if log.is_file() else []
    return "\n".join([f"{message or 'the keeper of the servers was killed'}; the end of {log}:", *tail])


def keep() -> None:
    """The keeper: read what to start from stdin, stop it all when stdin closes."""
    wanted: dict[str, Any] = json.loads(sys.stdin.readline())
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(0))
    adopt_orphans()
    servers: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, command in wanted["servers"].items():
            servers[name] = start(command, Path(wanted["logs"]) / f"{name}.log")
        if ended := wait_for_end(servers):
            sys.stdout.write(f"{ended} ended by itself with exit code {servers[ended].returncode}\n")
            sys.stdout.flush()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        stop(list(servers.values()), wanted["patience"])


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """One server in a session of its own, its output added to a log file."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )


def wait_for_end(servers: Mapping[str, subprocess.Popen[bytes]]) -> str | None:
    """Name of the first server that ends by itself; None when stdin closes."""
    while True:
        readable, _, _ = select.select([sys.stdin], [], [], 0.5)
        if readable:
            return None
        for name, server in servers.items():
            if server.poll() is not None:
                return name


def stop(servers: list[subprocess.Popen[bytes]], patience: list[float]) -> None:
    """Ask the servers' groups to end, first kindly; then kill every descendant that is left."""
    for number, seconds in zip((signal.SIGINT, signal.SIGTERM), patience, strict=True):
        for server in servers:
            if server.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(server.pid, number)
        deadline = time.monotonic() + seconds
        while any(server.poll() is None for server in servers) and time.monotonic() < deadline:
            time.sleep(0.05)
    while left := [child for child in psutil.Process().children(recursive=True) if is_alive(child)]:
        for child in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(left, timeout=1)


def is_alive(process: psutil.Process) -> bool:
    """Whether a process still runs; a zombie does not."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    keep()
