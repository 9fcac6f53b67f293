"""A small simulated shop that many tests share, and ways to change a copy of it."""

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

import nightjar
from pipeline.days import present_content, read_days, update_days
from pipeline.publish import Store, open_store
from pipeline.simulate import Shop, simulate

os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch, once it is imported: the cores are shared with the whole way

for variable in [name for name in os.environ if name.startswith("NIGHTJAR_")]:
    del os.environ[variable]  # tests bring their own; `make` sets a home

DAYS = [date(2026, 3, 1) + timedelta(days=number) for number in range(6)]
SMALL = Shop(seed=7, num_items=120, num_visitors=200, sessions_per_day=150, faults_per_day=2, bots_per_day=0)
SITE: dict[str, Any] = {
    "name": "small",
    "store": "store",
    "buckets": 2,
    "source": {
        "events": "raw/events-{date}.csv",
        "columns": {"user_id": "user_id", "session_id": "session_id", "item_id": "item_id", "occurred_at": "time"},
        "event_type": {"column": "event", "map": {"view": "view", "cart": "cart", "purchase": "purchase"}},
        "lateness": "2d",
    },
    "items": {
        "path": "raw/items.csv",
        "columns": {"item_id": "item_id", "title": "title", "category": "category", "price": "price"},
    },
    "window": {"length": "4d", "min_item_count": 2, "min_days": 2},
    "training": {"recipes": {"gru": {"hidden_size": 16, "epochs": 2, "batch_size": 64}, "popularity": None}},
    "export": {"top_n": 10},
}


@dataclass(frozen=True)
class SmallShop:
    """A site with its store; tests that write take a copy."""

    home: Path
    file: Path
    site: nightjar.Site
    days: list[date]
    told: dict[date, dict[str, Any]] = field(default_factory=dict)
    """What the model steps of each night returned."""

    @property
    def store(self) -> Store:
        return open_store(self.site)

    def with_changes(self, **changes: Any) -> nightjar.Site:
        """The same site under other rules: `export={"top_n": 3}`."""
        told = self.site.model_dump() | {"home": self.home}
        merged = {k: told[k] | v if isinstance(v, dict) else v for k, v in changes.items()}
        return nightjar.Site.model_validate(told | merged)


@pytest.fixture(scope="session")
def write_site() -> Callable[..., SmallShop]:
    """Write a site file into a folder; keywords replace its sections."""

    def write(home: Path, **sections: Any) -> SmallShop:
        home.mkdir(parents=True, exist_ok=True)
        file = home / "small.yaml"
        file.write_text(yaml.safe_dump(SITE | sections))
        return SmallShop(home, file, nightjar.load_site(file, nightjar.Site, home), DAYS)

    return write


@pytest.fixture(scope="session")
def find_program() -> Callable[[str], str]:
    """Gives the path of a program of a server: on the PATH, or where Debian keeps those of PostgreSQL.

    Without it the test is skipped; where REQUIRE_SERVICES is set (`make test-services`), it fails.
    """

    def find(name: str) -> str:
        debian = sorted(map(str, Path("/usr/lib/postgresql").glob(f"*/bin/{name}")), reverse=True)
        found = shutil.which(name) or next(iter(debian), None)
        if found is None and os.environ.get("REQUIRE_SERVICES"):
            pytest.fail(f"{name} is not installed, and REQUIRE_SERVICES is set")
        if found is None:
            pytest.skip(f"{name} is not installed")
        return found

    return find


SECRET = {"NIGHTJAR_USER_ID_SECRET": "a secret for tests, and for nothing else"}
PLANTED = "planted-user-4711"


def plant_user(raw: Path) -> None:
    """Give each day's log rows of one user: events, a duplicate, and rows that are rejected."""
    for day in DAYS:
        visit = f"{PLANTED},s-1,{{item}},{{kind}},{day}T{{time}}Z,phone,1.00\n"
        acts = [("sku-00001", "view", "10:00:00"), ("sku-00002", "cart", "10:01:00"), ("sku-00003", "view", "10:02:00")]
        bad = [
            ("sku-00001", "view", "10:00:00"),
            ("", "view", "10:00:00"),
            ("a,b", "view", "10:00"),
            ("x", "?", "9:00"),
        ]
        rows = [visit.format(item=item, kind=kind, time=time) for item, kind, time in (*acts, *bad)]
        with (raw / f"events-{day}.csv").open("a") as log:
            log.write("".join(rows))


@pytest.fixture(scope="session", autouse=True)
def whole_way(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    raw_shop: SmallShop,
    write_site: Callable[..., SmallShop],
) -> Iterator[Callable[[], tuple[SmallShop, str, str]]]:
    """`nightjar run` over three days in a process of its own: call for its shop, stdout and stderr.

    Its site hashes user ids; one user is planted in the raw logs.
    It takes half a minute, so it starts before the first test where any test wants it, beside all others.
    """
    is_wanted = any(item.path.name == "test_flow.py" for item in request.session.items)
    if not is_wanted:
        yield lambda: pytest.fail("only test_flow.py may ask for the whole way")
        return
    home = tmp_path_factory.mktemp("flow")
    shutil.copytree(raw_shop.home / "raw", home / "raw")
    plant_user(home / "raw")
    shop = write_site(home, privacy={"hash_user_ids": True})
    arguments = ["run", "--site", str(shop.file), "--from", str(DAYS[0]), "--to", str(DAYS[2])]
    ours = {"NIGHTJAR_HOME": str(home), "OMP_NUM_THREADS": "1", "NIGHTJAR_DIE_WITH_PARENT": "1"}
    environment = os.environ | ours | SECRET
    process = subprocess.Popen(
        [Path(sys.executable).with_name("nightjar"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )

    @functools.cache
    def ended() -> tuple[SmallShop, str, str]:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        return shop, out, err

    yield ended
    process.kill()
    process.wait()


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """The secret of the whole way's user ids."""
    for name, value in SECRET.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def planted() -> str:
    """The user whom the whole way's raw logs tell of."""
    return PLANTED


@pytest.fixture(scope="session")
def raw_shop(tmp_path_factory: pytest.TempPathFactory, write_site: Callable[..., SmallShop]) -> SmallShop:
    """Raw logs of six days, nothing loaded. Read only."""
    shop = write_site(tmp_path_factory.mktemp("raw"))
    simulate(shop.site, DAYS, SMALL)
    return shop


def load_days(shop: SmallShop, days: list[date]) -> None:
    """Ingest, sessionize, and let every day pass."""
    for day in days:
        nightjar.ingest(shop.site, shop.store, day)
    for day in days:
        nightjar.sessionize(shop.site, shop.store, day)
    for day in days:
        give_verdict(shop.store, day, "passed")


def give_verdict(store: Store, day: date, verdict: str) -> None:
    """Say that a day passed or failed, without Great Expectations, which takes seconds."""
    is_day = pl.col("event_date") == day
    update_days(
        store,
        read_days(store)
        .filter(is_day)
        .select("event_date", validated_content=present_content(), verdict=pl.lit(verdict)),
    )


@pytest.fixture(scope="session")
def judge() -> Callable[[Store, date, str], None]:
    return give_verdict


@pytest.fixture(scope="session")
def load() -> Callable[[SmallShop, list[date]], None]:
    return load_days


@pytest.fixture(scope="session")
def loaded_shop(
    tmp_path_factory: pytest.TempPathFactory, raw_shop: SmallShop, write_site: Callable[..., SmallShop]
) -> SmallShop:
    """Six passed days. Read only."""
    home = tmp_path_factory.mktemp("loaded")
    shutil.copytree(raw_shop.home, home, dirs_exist_ok=True)
    shop = write_site(home)
    load_days(shop, DAYS)
    return shop


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated MLflow database without content: making one takes seconds, copying it does not."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def copy_shop(
    tmp_path: Path, loaded_shop: SmallShop, write_site: Callable[..., SmallShop], empty_mlflow: Path
) -> Callable[..., SmallShop]:
    """A copy of the loaded shop that a test may write to, under other rules if told so."""

    def copy(**sections: Any) -> SmallShop:
        return write_site(copy_home(loaded_shop.home / "store", empty_mlflow, tmp_path / "home"), **sections)

    return copy


def copy_home(store: Path, mlflow_file: Path, home: Path) -> Path:
    """A home with a copy of the tables and of MLflow's database, which names its artifacts where they were made."""
    shutil.copytree(store, home / "store")
    shutil.copy(mlflow_file, home / "mlflow.db")
    return home


POPULAR_ONLY: dict[str, Any] = {"training": {"recipes": {"popularity": None}}}


@pytest.fixture(scope="session")
def popular_shop(
    tmp_path_factory: pytest.TempPathFactory,
    loaded_shop: SmallShop,
    write_site: Callable[..., SmallShop],
    empty_mlflow: Path,
) -> SmallShop:
    """A release of the fourth night by a popularity model, which is quick to make. Read only."""
    home = copy_home(loaded_shop.home / "store", empty_mlflow, tmp_path_factory.mktemp("popular") / "home")
    shop = write_site(home, **POPULAR_ONLY)
    shop.told[DAYS[3]] = run_night(shop, DAYS[3], ("popularity",))
    return shop


@pytest.fixture
def released(tmp_path: Path, popular_shop: SmallShop, write_site: Callable[..., SmallShop]) -> SmallShop:
    """A copy of the popular shop that a test may write to."""
    home = copy_home(popular_shop.home / "store", popular_shop.home / "mlflow.db", tmp_path / "home")
    return write_site(home, **POPULAR_ONLY)


@pytest.fixture(scope="session")
def served_shop(
    tmp_path_factory: pytest.TempPathFactory,
    loaded_shop: SmallShop,
    write_site: Callable[..., SmallShop],
    empty_mlflow: Path,
) -> SmallShop:
    """Two nights (the fourth and the fifth day) of a shop whose six days are loaded. Read only."""
    shop = write_site(copy_home(loaded_shop.home / "store", empty_mlflow, tmp_path_factory.mktemp("served") / "home"))
    for night in DAYS[3:5]:
        shop.told[night] = run_night(shop, night)
    return shop


def run_night(shop: SmallShop, night: date, recipes: tuple[str, ...] = ("gru", "popularity")) -> dict[str, Any]:
    """The model steps of a night; the results by step, trained recipes by name."""
    results = {"features": nightjar.features(shop.site, shop.store, night)}
    for recipe in recipes:
        results[recipe] = nightjar.train(shop.site, shop.store, night, recipe, 1)
    for name in ("promote", "refit", "export"):
        results[name] = nightjar.STEPS[name](shop.site, shop.store, night)
    return results


@pytest.fixture(scope="session")
def sessions_of() -> Callable[..., pl.DataFrame]:
    """Rows of `sessions`, a minute between events, an hour between sessions: [["a", "b"], ["c"]]."""

    def rows(items: list[list[str]], visitors: list[str] | None = None, start: date = DAYS[0]) -> pl.DataFrame:
        first = pl.datetime(start.year, start.month, start.day, time_zone="UTC", time_unit="us")
        frame = pl.DataFrame(
            {
                "session_id": [f"s{n:06d}" for n in range(len(items))],
                "visitor": visitors or [f"v{n}" for n in range(len(items))],
                "item_ids": items,
                "offsets_seconds": [[60.0 * n for n in range(len(ids))] for ids in items],
            },
            schema_overrides={"item_ids": pl.List(pl.String), "offsets_seconds": pl.List(pl.Float64)},
        )
        return frame.with_columns(started_at=first + pl.duration(minutes=pl.int_range(pl.len())))

    return rows


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Run `nightjar …` in this process: exit code, stdout, stderr."""

    def run(home: Path, *arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setenv("NIGHTJAR_HOME", str(home))
        monkeypatch.setattr(sys, "argv", ["nightjar", *map(str, arguments)])
        code: Any = 0
        capfd.readouterr()
        try:
            nightjar.main()
        except SystemExit as stop:
            code = stop.code or 0
        finally:
            if nightjar.STDOUT != 1:
                os.dup2(nightjar.STDOUT, 1)
                os.close(nightjar.STDOUT)
                nightjar.STDOUT = 1
        told = capfd.readouterr()
        return int(code), told.out, told.err

    return run
