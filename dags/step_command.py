"""A `nightjar` command as a child process: no shell, no way to outlive its task.

Its stderr goes to a log line by line, the last line of its stdout is its report.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil
from airflow.sdk.exceptions import AirflowException, AirflowFailException

MEANING = {1: "a retry may cure it", 2: "usage or configuration is wrong", 3: "the data broke its contract"}
SECONDS_TO_STOP = 10.0
"""How long a command may take to end after SIGTERM."""
LINES_SHOWN = 10
"""How many last lines of the log are repeated in an error."""


class StepError(AirflowException):
    """A command failed in a way that a retry may cure; tells the sentence and the line to paste."""

    def __init__(self, text: str, sentence: str = "", command: str = "") -> None:
        super().__init__(text)
        self.sentence = sentence
        self.command = command


class StepFailError(StepError, AirflowFailException):
    """A command failed for a reason that stays: the task fails at once."""


@dataclass
class StepCommand:
    """One `nightjar` command."""

    arguments: list[str]
    """Program first, then the subcommand and its options."""
    _process: "subprocess.Popen[str] | None" = field(default=None, repr=False)

    @property
    def line(self) -> str:
        """The command for a shell, with the folder that relative paths hang from."""
        home = os.environ.get("NIGHTJAR_HOME")
        return (f"NIGHTJAR_HOME={shlex.quote(home)} " if home else "") + shlex.join(self.arguments)

    def report(self, log: Callable[[str], None]) -> dict[str, Any]:
        """Run it; give the JSON object that it prints last.

        Raises StepError, or StepFailError after exit codes 2 and 3, which no retry can cure.
        """
        exit_code, output, last_lines = self.run(log)
        if exit_code != 0:
            raise self.failure(exit_code, last_lines)
        return self.parse(output)

    def run(self, log: Callable[[str], None]) -> tuple[int, str, list[str]]:
        """Exit code, last line of stdout and last lines of stderr; each line of stderr also goes to `log`."""
        last_lines: deque[str] = deque(maxlen=LINES_SHOWN)
        output: deque[str] = deque(maxlen=1)

        def keep(line: str) -> None:
            last_lines.append(line)
            log(line)

        self._process = process = start(self.arguments)
        try:
            readers = [read_lines(process.stderr, keep), read_lines(process.stdout, output.append)]
            while not has_ended(process.pid):
                time.sleep(0.1)
            for reader in readers:
                reader.join(SECONDS_TO_STOP)  # a helper of the command may hold the pipes a little longer
        finally:
            stop_group(process.pid)  # nothing is left after a timeout, and no helper outlives the command
            self._process = None
        return process.wait(), "".join(output), list(last_lines)

    def stop(self) -> None:
        """Stop it and all that it started, if it is running."""
        if self._process is not None:
            stop_group(self._process.pid)

    def failure(self, exit_code: int, last_lines: list[str]) -> StepError:
        """The exception for an exit code, with the line to reproduce it."""
        step = self.arguments[len(program())]
        meaning = f"exit code {exit_code}: {MEANING.get(exit_code, 'unknown')}"
        if exit_code < 0:
            meaning = f"signal {-exit_code} ended it"
        text = "\n".join([f"`nightjar {step}` failed ({meaning})", *last_lines, f"Reproduce: {self.line}"])
        sentence = f"`nightjar {step}` failed ({meaning}){': ' + told_in(last_lines) if last_lines else ''}"
        return (StepFailError if exit_code in (2, 3) else StepError)(text, sentence, self.line)

    def parse(self, line: str) -> dict[str, Any]:
        """The JSON object of a line; NaN, which XCom cannot hold, becomes null."""
        try:
            report = json.loads(line, parse_constant=lambda _: None)
        except ValueError:
            report = None
        if not isinstance(report, dict):
            raise AirflowFailException(
                f"{self.arguments[0]} ended well, but the last line of its stdout is no JSON object: {line[:200]!r}. "
                "Is NIGHTJAR_COMMAND the nightjar command line?"
            )
        return report


def step_command(
    step: str, site_file: str, day: str | None, options: Mapping[str, str | None] | None = None
) -> StepCommand:
    """The command of a step for a day, or for no day in particular; an option without a value is a flag."""
    all_options = {"site": site_file, **({} if day is None else {"date": day}), **(options or {})}
    told = [part for name, value in all_options.items() for part in (f"--{name}", value) if part is not None]
    return StepCommand([*program(), step, *told])


def program() -> list[str]:
    """The program that runs a step: NIGHTJAR_COMMAND, else the `nightjar` of this environment.

    Logs and alerts repeat it, so it must hold no password.
    """
    chosen = os.environ.get("NIGHTJAR_COMMAND")
    return shlex.split(chosen) if chosen else [str(Path(sys.executable).with_name("nightjar"))]


def told_in(last_lines: Sequence[str]) -> str:
    """What the command said of its fault: from the line that begins with its name on."""
    starts = [n for n, line in enumerate(last_lines) if line.startswith("nightjar: ")]
    return " ".join(last_lines[starts[-1] if starts else -1 :]).removeprefix("nightjar: ")


def start(arguments: list[str]) -> "subprocess.Popen[str]":
    """The command in a session of its own: it can be stopped with its helpers, and ends when this task dies."""
    try:
        return subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,  # inherited, it would hold the socket to Airflow's supervisor open
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
            env={**os.environ, "NIGHTJAR_DIE_WITH_PARENT": "1"},
        )
    except OSError as error:
        raise AirflowFailException(
            f"cannot start {arguments[0]}: {error.strerror}. Install nightjar in {sys.prefix}, or set NIGHTJAR_COMMAND"
        ) from error


def read_lines(stream: IO[str] | None, use: Callable[[str], None]) -> threading.Thread:
    """A running thread that hands each line of a pipe that is not empty to `use`."""
    assert stream is not None

    def read() -> None:
        with stream:
            for line in stream:
                if line.strip():
                    use(line.rstrip())

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


def stop_group(pid: int) -> None:
    """Ask a process group to end, then end it. Safe in a signal handler, and when the group's leader has ended."""
    if not has_ended(pid):
        signal_group(pid, signal.SIGTERM)
        deadline = time.monotonic() + SECONDS_TO_STOP
        while not has_ended(pid) and time.monotonic() < deadline:
            time.sleep(0.05)
    signal_group(pid, signal.SIGKILL)


def has_ended(pid: int) -> bool:
    """Whether a child has ended; leaves it to be reaped by who waits for it, so that its id stays its own."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def signal_group(pid: int, number: signal.Signals) -> None:
    """Signal a process group that may be gone."""
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):  # macOS answers the latter for a group of zombies
        return
