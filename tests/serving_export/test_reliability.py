"""Killed, doubled, without room: whatever happens to an export, readers see whole releases and the next one works."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest

from pipeline.errors import NightjarError, RetryableError
from pipeline.publish import Store
from pipeline.tables import SITE
from serving_export import export as exporting
from serving_export.export import export
from serving_export.history import releases
from serving_export.reader import Recommendations, bucket_of
from serving_export.rollback import rollback_recommendations
from serving_export.tables import RECOMMENDATIONS

NURSERY = """
import os, signal, sys, time
from datetime import date
from pathlib import Path
import nightjar
from pipeline.publish import open_store
from serving_export.export import export
site = nightjar.load_site(Path(sys.argv[1]), nightjar.Site, Path(sys.argv[1]).parent)
print("ready", flush=True)
for line in sys.stdin:
    day, delay = line.split()
    child = os.fork()  # nothing has run here yet but imports, so no thread is lost
    if child == 0:
        export(site, open_store(site), date.fromisoformat(day))
        os._exit(0)
    if delay != "None":
        time.sleep(float(delay))
        os.kill(child, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Nursery:
    """A process in which everything is imported; each export is a child of it that can be killed."""

    def __init__(self, file: Path) -> None:
        environment = os.environ | {"NIGHTJAR_HOME": str(file.parent), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY, str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.read()

    def read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, "the nursery has died"
        return line

    def export(self, day: object, kill_after: float | None = None) -> int:
        """Run an export; its exit code, negative if it was killed."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{day} {kill_after}\n")
        self.process.stdin.flush()
        return int(self.read())


@pytest.fixture
def nursery(released) -> Iterator[Nursery]:
    found = Nursery(released.file)
    yield found
    found.process.kill()
    found.process.wait()


def content(store: Store) -> tuple[str, pl.DataFrame]:
    """The day of the release that readers see, and its lists."""
    lists = Recommendations(store.root, when_stale="ignore")
    columns = ["user_id", "channel", "rank", "item_id", "score", "source"]
    return lists.facts["data_through"], lists.rows().select(columns).sort("user_id", "channel", "rank").collect()


def kill_exports(shop, nursery: Nursery, times: int, seed: int) -> int:
    """Kill exports at random moments, each followed by one that must complete; return how many were killed."""
    days, whole, killed = shop.days[3:5], {}, 0
    started = time.monotonic()
    for day in days:
        assert nursery.export(day) == 0
        whole[str(day)] = content(shop.store)[1]
    first = releases(shop.store)[1]["table_version"]
    longest = (time.monotonic() - started) / len(days)
    moments = random.Random(seed)
    for _ in range(times):
        rollback_recommendations(shop.store, first)
        killed += nursery.export(day, kill_after=moments.uniform(0, longest)) == -signal.SIGKILL
        shown, rows = content(shop.store)
        assert rows.equals(whole[shown]), "a whole release, no row twice"
        assert nursery.export(day) == 0, "the next run completes"
        shown, rows = content(shop.store)
        assert (shown, rows.equals(whole[shown])) == (str(day), True)
    return killed


def test_killed_twice(released, nursery):
    assert kill_exports(released, nursery, times=2, seed=1) >= 1


@pytest.mark.slow
def test_killed_twenty_times(released, nursery):
    assert kill_exports(released, nursery, times=20, seed=2) >= 15


def test_of_two_exports_at_once_one_wins_and_the_other_says_so(released, monkeypatch):
    check = exporting.check_release
    days = released.days[3:5]

    def overtaken(*arguments, **options):
        monkeypatch.setattr(exporting, "check_release", check)
        export(released.site, released.store, days[1])
        return check(*arguments, **options)

    monkeypatch.setattr(exporting, "check_release", overtaken)
    with pytest.raises(RetryableError, match=r"changed by another writer meanwhile. Nothing was published there"):
        export(released.site, released.store, days[0])
    assert content(released.store)[0] == str(days[1])
    assert export(released.site, released.store, days[0]) == {"published": False, "shown": str(days[1])}
    assert content(released.store)[0] == str(days[1])


@pytest.fixture
def small_disk(released, write_site) -> Iterator[tuple[object, Callable[[int | None], None]]]:
    """The released shop on a disk of its own, and a way to leave only so many bytes on it."""
    disk = released.home / "disk"
    disk.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32m", "none", str(disk)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {done.stderr.strip()}")
    try:
        subprocess.run(["cp", "-r", str(released.home / "store"), str(disk / "store")], check=True)
        ballast = disk / "ballast"

        def leave(num_bytes: int | None) -> None:
            ballast.unlink(missing_ok=True)
            if num_bytes is not None:
                told = os.statvfs(disk)
                with ballast.open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, told.f_bavail * told.f_frsize - num_bytes)

        yield write_site(released.home, store=str(disk / "store"), training={"recipes": {"popularity": None}}), leave
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("num_bytes", [0, 4096, 16_384, 40_960, 65_536])
def test_a_full_disk_publishes_nothing_and_says_so(small_disk, num_bytes):
    shop, leave = small_disk
    before = content(shop.store)
    leave(num_bytes)
    with pytest.raises(NightjarError, match=r"(?i)no space left on device"):
        export(shop.site, shop.store, shop.days[4])
    assert content(shop.store)[1].equals(before[1])
    leave(None)
    export(shop.site, shop.store, shop.days[4])
    assert content(shop.store)[0] == str(shop.days[4])


def test_a_file_that_may_grow_no_more_publishes_nothing(released):
    before = content(released.store)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_500, limits[1]))
        with pytest.raises(NightjarError, match=r"(?i)file too large"):
            released.store.stage(RECOMMENDATIONS, released.store.scan(RECOMMENDATIONS).collect())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert content(released.store)[1].equals(before[1])


READER = """
import sys, warnings
from serving_export.reader import Recommendations
mixed = reads = 0
seen = set()
while True:
    lists = Recommendations(sys.argv[1])
    rows = lists.rows().collect()
    one, many = lists.user("u7"), lists.users([f"u{n}" for n in range(0, 40, 3)])
    items = set(rows["item_id"]) | set(one["item_id"]) | set(many["item_id"])
    reads += 1
    mixed += len(items) != 1 or rows.height != 40 * 5 or lists.facts["model_version"] not in items
    seen |= items
    if "50" in items:
        break
print(reads, mixed, len(seen))
"""


@pytest.mark.slow
def test_readers_in_a_loop_over_fifty_releases_never_see_a_mixture(tmp_path):
    store = Store(str(tmp_path / "store"))
    site = {"name": "small", "buckets": 4, "user_id_secret": None}
    store.replace(SITE, pl.DataFrame([site], schema=dict(SITE.columns)), {})
    users = pl.DataFrame({"user_id": [f"u{n}" for n in range(40)]})
    rows = users.join(pl.DataFrame({"rank": range(1, 6)}), how="cross").with_columns(
        user_bucket=pl.col("user_id").map_elements(lambda user: bucket_of(user, 4), pl.Int64),
        channel=pl.lit("home"),
        score=-pl.col("rank"),
        source=pl.lit("model"),
        because=pl.lit(None, pl.String),
        session_id=pl.lit("s"),
    )

    def publish(number: int) -> None:
        facts = {"model_version": number, "valid_until": "2999-01-01T00:00:00+00:00", "data_through": "2026-03-04"}
        listed = rows.with_columns(item_id=pl.lit(str(number)))
        store.replace(RECOMMENDATIONS, listed, {"user_bucket": [0, 1, 2, 3]}, facts)

    publish(0)
    readers = [
        subprocess.Popen([sys.executable, "-c", READER, store.root], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for number in range(1, 51):
        publish(number)
        time.sleep(0.1)
    for reader in readers:
        reads, mixed, seen = map(int, reader.communicate(timeout=60)[0].split())
        assert mixed == 0
        assert reads >= seen >= 5, "it read while releases came"
