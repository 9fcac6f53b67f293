import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dags.processes import ServerEndedError, kept

SERVER = """
import pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN if "deaf" in sys.argv else signal.default_int_handler)
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
pathlib.Path(sys.argv[1]).write_text(str(helper.pid))
time.sleep(600)
"""
PROGRAM = """
import os, sys, time, pathlib
from dags.processes import kept
with kept({"server": [sys.executable, "-c", sys.argv[2], sys.argv[1]]}, os.environ, pathlib.Path(sys.argv[1]).parent):
    time.sleep(600)
"""


@pytest.fixture
def helper_file(tmp_path):
    return tmp_path / "helper.pid"


def server(helper_file, *options):
    return {"server": [sys.executable, "-c", SERVER, str(helper_file), *options]}


def helper_of(helper_file: Path) -> int:
    """The process that the server started in a session of its own."""
    wait_for(lambda: helper_file.exists() and helper_file.read_text())
    return int(helper_file.read_text())


@pytest.mark.parametrize("options", [[], ["deaf"]])
def test_nothing_is_left_when_the_block_ends(helper_file, tmp_path, options):
    with kept(server(helper_file, *options), os.environ, tmp_path, patience=(0.5, 0.5)) as check:
        helper = helper_of(helper_file)
        check()
    assert not is_running(helper)


def test_nothing_is_left_when_the_program_is_killed(helper_file):
    program = subprocess.Popen([sys.executable, "-c", PROGRAM, str(helper_file), SERVER])
    helper = helper_of(helper_file)
    program.kill()
    program.wait()
    wait_for(lambda: not is_running(helper))


def test_a_server_that_ends_by_itself_is_named_with_the_end_of_its_log(tmp_path):
    with kept({"oven": [sys.executable, "-c", "raise SystemExit('too hot')"]}, os.environ, tmp_path) as check:

        def has_ended():
            try:
                check()
            except ServerEndedError as error:
                return str(error)
            return None

        wait_for(has_ended)
        assert "oven ended by itself with exit code 1" in has_ended()
        assert "too hot" in has_ended()


def is_running(pid):
    """Whether a process runs; a zombie that nobody has reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)
