"""Many nights through a real scheduler, side by side: the tables are those of one `nightjar run` over the same days."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path

import polars as pl
import pytest

from dags.local_stack import airflow_stack
from pipeline.simulate import Shop, simulate

HERE = Path(__file__).parent
DIFFERS = ["ingested_run", "run_id", "model_version", "generated_at"]
TINY = Shop(seed=7, num_items=120, num_visitors=200, sessions_per_day=60, faults_per_day=2, bots_per_day=0)
HISTORIES = {"list_checks", "drift"}  # of each release and night: longer where there were more of them
ENDED = {"success", "failed"}
LOG_LINES = 60


@contextmanager
def command_server(folder: Path) -> Iterator[str]:
    """Value of NIGHTJAR_COMMAND while a server of commands runs."""
    address = folder / "commands"
    server = subprocess.Popen([sys.executable, str(HERE / "command_server.py"), str(address)])
    try:
        yield f"{sys.executable} -S -E {HERE / 'command_client.py'} {address}"
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def commands(tmp_path_factory, monkeypatch):
    """Commands that need not import everything anew; they all come to the shop's home."""
    folder = tmp_path_factory.mktemp("s")
    with command_server(folder) as command:
        monkeypatch.setenv("NIGHTJAR_COMMAND", command)
        wait_for(lambda: (folder / "commands").exists(), 120)
        yield command.split()


class Nights:
    """A site under a real Airflow."""

    def __init__(self, stack, site: str) -> None:
        self.stack, self.airflow, self.site = stack, stack.airflow, site

    def pause(self, *kinds: str) -> None:
        """Keep the runs of some DAGs from starting."""
        for kind in kinds:
            self.stack.wait_for_dag(f"{self.site}__{kind}", time.monotonic() + 60)
            self.stack.command("dags", "pause", f"{self.site}__{kind}", "-y")

    def backfill(self, days: list[date], *options: str) -> None:
        """Start nights, and wait for them."""
        self.stack.wait_for_dag(f"{self.site}__nightly", time.monotonic() + 60)
        told = ["--dag-id", f"{self.site}__nightly", "--from-date", str(days[0]), "--to-date", str(days[-1])]
        self.stack.command("backfill", "create", *told, *options)
        self.wait_for("nightly", days)

    def again(self, day: date) -> None:
        """Run a night again as people do."""
        self.stack.command("dags", "clear", f"{self.site}__nightly", "--partition-key", str(day), "-y")
        self.wait_for("nightly", [day])

    def runs(self, kind: str) -> dict[str, str]:
        """Key -> state of the newest run."""
        found = self.airflow.get(f"dags/{self.site}__{kind}/dagRuns", order_by="id", limit=200)["dag_runs"]
        return {run["partition_key"]: run["state"] for run in found}

    def wait_for(self, kind: str, days: list[date], seconds: float = 1500) -> None:
        """Return once the newest run of each day has ended well."""
        keys = {str(day) for day in days}
        wait_for(lambda: self.stack.check() or {self.runs(kind).get(key) for key in keys} <= ENDED, seconds, 0.5)
        failed = [key for key in sorted(keys) if self.runs(kind)[key] != "success"]
        assert not failed, "\n".join(self.failures(kind, key) for key in failed)

    def failures(self, kind: str, key: str) -> str:
        """The tasks that failed in the newest run of a day, with the logs of all their tries."""
        run_id = self.airflow.runs(f"{self.site}__{kind}", key)[-1]
        lines = [f"{self.site}__{kind} of {key} failed"]
        for task in self.airflow.task_instances(f"{self.site}__{kind}", run_id):
            lines.append(f"{task['task_id']}: {task['state']}, tries {task['try_number']}")
            if task["state"] == "failed":
                for number in range(1, task["try_number"] + 1):
                    lines += [f"--- try {number}", *self.airflow.log_lines(task | {"try_number": number})[-LOG_LINES:]]
        return "\n".join(lines)

    def states(self, kind: str, day: date) -> dict[str, str]:
        """Task -> state, of the newest run of a day."""
        run_id = self.airflow.runs(f"{self.site}__{kind}", str(day))[-1]
        return {task["task_id"]: task["state"] for task in self.airflow.task_instances(f"{self.site}__{kind}", run_id)}


def wait_for(condition, seconds, pause=0.1):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(pause)


def start(commands, shop, step: str, *options: str) -> subprocess.Popen:
    """A command in a shop's home."""
    arguments = [step, "--site", str(shop.file), *options]
    environment = os.environ | {"NIGHTJAR_HOME": str(shop.home)}
    return subprocess.Popen([*commands, *arguments], env=environment, stdout=subprocess.DEVNULL)


def tables(home: Path) -> dict[str, pl.DataFrame]:
    """All tables of a store, in a fixed order of rows, without what may differ from run to run, and where they lie."""
    found = {}
    for log in sorted((home / "store").glob("*/_delta_log")):
        if log.parent.name in HISTORIES:
            continue
        rows = pl.read_delta(str(log.parent)).drop(DIFFERS, strict=False)
        rows = rows.with_columns(pl.col(pl.String).str.replace(str(home), "", literal=True))
        found[log.parent.name] = rows.sort([name for name, kind in rows.schema.items() if not kind.is_nested()])
    return found


def check_equal(one: dict[str, pl.DataFrame], other: dict[str, pl.DataFrame]) -> None:
    assert list(one) == list(other)
    assert [name for name, rows in one.items() if not rows.equals(other[name])] == []
    assert one["recommendations"].height > 0


@pytest.fixture
def two_homes(tmp_path, write_site, empty_mlflow):
    """The same raw logs in two homes, of a site whose models are quick."""

    def make(days):
        homes = []
        for name in ("night", "once"):
            shop = write_site(
                tmp_path / name,
                time_zone="Europe/Berlin",
                window={"length": "3d", "min_item_count": 2, "min_days": 2},
                training={"recipes": {"popularity": None}},
                schedule={"retries": 6, "retry_delay": "1s", "max_retry_delay": "4s"},
            )
            shutil.copy(empty_mlflow, shop.home / "mlflow.db")
            if homes:
                shutil.copytree(homes[0].home / "raw", shop.home / "raw")
            else:
                simulate(shop.site, days, TINY)
            homes.append(shop)
        return homes

    return make


@contextmanager
def nights_of(shop) -> Iterator[Nights]:
    conf = shop.home / "conf"
    conf.mkdir()
    shutil.copy(shop.file, conf)
    with airflow_stack(shop.home, conf) as stack:
        yield Nights(stack, "small")


def test_five_nights_side_by_side_end_as_one_run_does(two_homes, commands):
    days = [date(2026, 3, 27) + timedelta(days=n) for n in range(5)]  # clocks change on the 29th
    night, once = two_homes(days)
    span = ["--from", str(days[0]), "--to", str(days[-1])]
    reference = start(commands, once, "run", "--data-only", *span)
    with nights_of(night) as nights:
        nights.pause("retrain", "maintenance")
        nights.backfill(days, "--max-active-runs", "2")
    assert reference.wait(900) == 0
    assert start(commands, once, "export", "--date", str(days[-1])).wait(900) == 0
    check_equal(tables(night.home), tables(once.home))


@pytest.mark.slow
def test_a_month_of_nights_ends_as_one_run_does_and_is_trained_for_once(two_homes, commands):
    days = [date(2026, 3, 7) + timedelta(days=n) for n in range(30)]
    night, once = two_homes(days)
    reference = start(commands, once, "run", "--from", str(days[0]), "--to", str(days[-1]))
    with nights_of(night) as nights:
        nights.backfill(days, "--max-active-runs", "2")
        nights.wait_for("retrain", days)
        trained = [day for day in days if nights.states("retrain", day)["promote"] == "success"]
        assert trained == [days[-1]]
        nights.again(days[-1])  # the first champion came after its lists
        assert reference.wait(600) == 0
        released = tables(night.home)
        check_equal(released, tables(once.home))
        nights.again(days[1])
        assert nights.states("nightly", days[1])["export"] == "skipped"
        nights.again(days[-1])
    check_equal(released, tables(night.home))
