"""Make a home with the code of an earlier commit: a store, MLflow's and Airflow's databases, as users of then have.

    .venv/bin/python tests/earlier_release/make_home.py HOME [COMMIT]

HOME must not be there yet. Afterwards it holds `conf/small.yaml`, `raw/` (six simulated days), `store/`, `mlflow.db`,
`mlartifacts/` and `airflow/`: five days and their models were made on the command line, the sixth by Airflow.
The code is that of the commit, the packages are those of the present environment. Versions name their artifacts where
they were made, so a copy of the home reads them there.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "0c177c4"
FIRST, LOADED, LAST = "2026-03-01", "2026-03-05", "2026-03-06"
SITE: dict[str, Any] = {
    "name": "small",
    "store": "store",
    "buckets": 2,
    "source": {
        "events": "raw/events-{date}.csv",
        "columns": {"user_id": "user_id", "session_id": "session_id", "item_id": "item_id", "occurred_at": "time"},
        "event_type": {"column": "event", "map": {"view": "view", "cart": "cart", "purchase": "purchase"}},
        "context": ["device"],
        "lateness": "2d",
    },
    "items": {
        "path": "raw/items-{date}.csv",
        "columns": {"item_id": "item_id", "title": "title", "category": "category", "price": "price"},
    },
    "window": {"length": "4d", "min_item_count": 2, "min_days": 2},
    "training": {"recipes": {"gru": {"hidden_size": 16, "epochs": 2, "batch_size": 64}, "markov": None}},
    "export": {"top_n": 10, "triggers": {"abandoned_cart": {"after": "4h"}}},
}
SHOP = "num_items=120, num_visitors=200, sessions_per_day=150, faults_per_day=2, bots_per_day=0"
SIMULATE = f"""
import sys
from datetime import date, timedelta
from pathlib import Path
import nightjar
from pipeline.simulate import Shop, simulate
site = nightjar.load_site(Path(sys.argv[1]), nightjar.Site, Path(sys.argv[2]))
days = [date.fromisoformat({FIRST!r}) + timedelta(days=n) for n in range(6)]
simulate(site, days, Shop(seed=7, {SHOP}))
"""


def make_home(home: Path, commit: str = COMMIT) -> None:
    """Make the home; takes about two minutes."""
    home.mkdir(parents=True)
    code = home / "code"
    code.mkdir()
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", commit], check=True, stdout=subprocess.PIPE)
    subprocess.run(["tar", "-x", "-C", str(code)], input=archive.stdout, check=True)
    file = home / "conf" / "small.yaml"
    file.parent.mkdir()
    file.write_text(yaml.safe_dump(SITE, sort_keys=False))
    environment = environment_of(home, code)
    run(["-c", SIMULATE, str(file), str(home)], environment, code)
    nightjar = ["-c", "import nightjar; nightjar.main()"]
    run([*nightjar, "run", "--site", str(file), "--from", FIRST, "--to", LOADED], environment, code)
    run(["-m", "airflow", "db", "migrate"], environment, code)
    night = [f"small__{name}={LAST}" for name in ("nightly", "retrain")]
    run([str(code / "tests" / "dags" / "run_a_night.py"), *night], environment, code)


def environment_of(home: Path, code: Path) -> dict[str, str]:
    """What makes every process, those that Airflow starts too, take the earlier code."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "NIGHTJAR", "MLFLOW"))}
    return kept | {
        "PYTHONPATH": str(code),
        "NIGHTJAR_HOME": str(home),
        "NIGHTJAR_CONF": str(home / "conf"),
        "AIRFLOW_HOME": str(home / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(code / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__API_AUTH__JWT_SECRET": "only for tests " * 5,
    }


def run(arguments: list[str], environment: dict[str, str], folder: Path) -> None:
    """Run Python; what it printed is shown if it fails."""
    ended = subprocess.run([sys.executable, *arguments], env=environment, cwd=folder, capture_output=True, text=True)
    if ended.returncode:
        sys.exit(
            f"{' '.join(arguments[:3])} ended with {ended.returncode}:\n{ended.stdout[-3000:]}\n{ended.stderr[-6000:]}"
        )


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    make_home(Path(sys.argv[1]).absolute(), *sys.argv[2:])
