"""Run one step of a night as a command: the very line that a person can paste.

In   the DAG run's day (its partition key, else its param `date`), a site file, a step
Out  the step's JSON line as XCom; its log lines in the task log; its exit code as the task's fate
"""

import datetime
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import psutil
from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException

DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
MEANING = {1: "a retry may cure it", 2: "usage or configuration is wrong", 3: "the data broke its contract"}
SECONDS_TO_STOP = 10.0
"""How long a step may take to end after SIGTERM."""
LINES_SHOWN = 10
"""How many last lines of the log are repeated in an error."""


class StepOperator(BaseOperator):
    """One `nightjar` command, without a shell.

    Exit code 0 is success; 1 fails the try; 2 and 3 fail the task at once, since no retry can cure them.
    """

    template_fields: Sequence[str] = ("date",)
    ui_color = "#e8f0e4"

    def __init__(
        self,
        *,
        step: str,
        site_file: str,
        date: str = "{{ partition_key or params.date }}",
        options: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.step = step
        self.site_file = site_file
        self.date = date
        self.options = options
        self._process: subprocess.Popen[str] | None = None

    def execute(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """Run the command to its end and give what it reports."""
        day = checked_day(self.date)
        arguments = self.arguments(day)
        self.log.info("$ %s", line_to_paste(arguments))
        exit_code, output, last_lines = self.run_command(arguments)
        if exit_code != 0:
            raise failure(self.step, exit_code, arguments, last_lines)
        report = parse_report(output, arguments)
        self.announce(context, day, report)
        return report

    def arguments(self, day: str) -> list[str]:
        """The command as a list: program first, then the step and its options."""
        options = [part for name, value in (self.options or {}).items() for part in (f"--{name}", value)]
        return [*command(), self.step, "--site", self.site_file, "--date", day, *options]

    def run_command(self, arguments: list[str]) -> tuple[int, str, list[str]]:
        """Exit code, last line of stdout and last lines of stderr; stderr goes to the task's log line by line."""
        last_lines: deque[str] = deque(maxlen=LINES_SHOWN)
        output: deque[str] = deque(maxlen=1)

        def log(line: str) -> None:
            last_lines.append(line)
            self.log.info("%s", line)

        self._process = process = start(arguments)
        try:
            readers = [read_lines(process.stderr, log), read_lines(process.stdout, output.append)]
            while not has_ended(process.pid):
                time.sleep(0.1)
            for reader in readers:
                reader.join(SECONDS_TO_STOP)  # a helper of the step may hold the pipes a little longer
        finally:
            stop_group(process.pid)  # nothing is left after a timeout, and no helper outlives the step
            self._process = None
        return process.wait(), "".join(output), list(last_lines)

    def announce(self, context: Mapping[str, Any], day: str, report: Mapping[str, Any]) -> None:
        """Give the outlets' events the day as key, and the report's counts and versions."""
        for asset in self.outlets:
            event = context["outlet_events"][asset]
            event.extra = {key: value for key, value in report.items() if isinstance(value, int | float | str)}
            if context.get("partition_key") is None:
                event.add_partitions(day)

    def on_kill(self) -> None:
        """Stop the command and all that it started."""
        if self._process is not None:
            self.log.info("stopping `%s`", self.step)
            stop_group(self._process.pid)


def command() -> list[str]:
    """The program that runs a step: NIGHTJAR_COMMAND, else the `nightjar` of this environment."""
    chosen = os.environ.get("NIGHTJAR_COMMAND")
    return shlex.split(chosen) if chosen else [str(Path(sys.executable).with_name("nightjar"))]


def checked_day(text: object) -> str:
    """The day if it is one, written as YYYY-MM-DD; a run without a key says `None`."""
    try:
        if not isinstance(text, str) or not DAY.fullmatch(text):
            raise ValueError
        datetime.date.fromisoformat(text)
    except ValueError:
        raise AirflowFailException(
            f"this run's day is {text!r}, which is no date. Start it with a partition key like 2026-11-20, "
            'or with the conf {"date": "2026-11-20"}'
        ) from None
    return text


def line_to_paste(arguments: list[str]) -> str:
    """The command for a shell, with the folder that relative paths hang from."""
    home = os.environ.get("NIGHTJAR_HOME")
    return (f"NIGHTJAR_HOME={shlex.quote(home)} " if home else "") + shlex.join(arguments)


def start(arguments: list[str]) -> subprocess.Popen[str]:
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


def failure(step: str, exit_code: int, arguments: list[str], last_lines: list[str]) -> AirflowException:
    """The exception for an exit code, with the line to reproduce it."""
    meaning = f"exit code {exit_code}: {MEANING.get(exit_code, 'unknown')}"
    if exit_code < 0:
        meaning = f"signal {-exit_code} ended it"
    text = "\n".join([f"`nightjar {step}` failed ({meaning})", *last_lines, f"Reproduce: {line_to_paste(arguments)}"])
    return AirflowFailException(text) if exit_code in (2, 3) else AirflowException(text)


def parse_report(line: str, arguments: list[str]) -> dict[str, Any]:
    """The JSON object that a step prints last; NaN, which XCom cannot hold, becomes null."""
    try:
        report = json.loads(line, parse_constant=lambda _: None)
    except ValueError:
        report = None
    if not isinstance(report, dict):
        raise AirflowFailException(
            f"{arguments[0]} ended well, but the last line of its stdout is no JSON object: {line[:200]!r}. "
            "Is NIGHTJAR_COMMAND the nightjar command line?"
        )
    return report
