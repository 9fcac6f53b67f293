"""Real servers, started by the tests from programs on this machine; without these the tests are skipped."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(is_ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    for _ in range(200):
        if process.poll() is not None:
            pytest.fail(f"{process.args} ended with {process.returncode}")
        if is_ready():
            return
        time.sleep(0.05)
    pytest.fail(f"{process.args} did not answer within 10 s")


@pytest.fixture(scope="session")
def redis_server(find_program: Callable[[str], str]) -> Iterator[str]:
    """The address of an empty Redis with a password."""
    import redis

    program, port = find_program("redis-server"), free_port()
    options = ["--port", str(port), "--save", "", "--requirepass", "pa55word", "--bind", "127.0.0.1"]
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen([program, *options, "--dir", folder], stdout=subprocess.DEVNULL)
        address = f"redis://:pa55word@127.0.0.1:{port}/0"

        def answers() -> bool:
            try:
                return bool(redis.Redis.from_url(address).ping())
            except redis.exceptions.RedisError:
                return False

        try:
            wait_until(answers, process)
            yield address
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def postgresql_server(find_program: Callable[[str], str]) -> Iterator[str]:
    """The address of an empty PostgreSQL with a password; as root it runs as the user `postgres`."""
    import psycopg

    make, program, port = find_program("initdb"), find_program("postgres"), free_port()
    user = "postgres" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        data, secret = Path(folder) / "data", Path(folder) / "secret"
        secret.write_text("pa55word")
        if user:
            shutil.chown(folder, user)
            shutil.chown(secret, user)
        arguments = ["-D", str(data), "-U", "night", f"--pwfile={secret}", "-A", "scram-sha-256", "-E", "UTF8", "-N"]
        subprocess.run([make, *arguments], check=True, stdout=subprocess.DEVNULL, user=user, cwd=folder)
        options = ["-p", str(port), "-c", "listen_addresses=127.0.0.1", "-k", folder, "-c", "fsync=off"]
        process = subprocess.Popen(
            [program, "-D", str(data), *options], stderr=subprocess.DEVNULL, user=user, cwd=folder
        )
        address = f"postgresql://night:pa55word@127.0.0.1:{port}/postgres"

        def answers() -> bool:
            try:
                psycopg.connect(address, connect_timeout=1).close()
            except psycopg.OperationalError:
                return False
            return True

        try:
            wait_until(answers, process)
            yield address
        finally:
            process.terminate()
            process.wait()
