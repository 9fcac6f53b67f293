"""The demo: eight days of a simulated shop, from raw logs to recommendation tables.

Days 1 to 6 are loaded on the command line; days 7 and 8 are two nights of Airflow, each followed by a retraining. The
first night has no champion yet and exports popular items, the second one exports the champion's lists; the second gate
meets the first one's champion. Every step is the command that production runs; this file only calls them.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl

from dags.local_stack import airflow_stack
from pipeline.terminal import align
from training.report import comparison_text

CONF = Path(__file__).parent / "conf"
SITE = CONF / "demo.yaml"
FIRST, LOADED, NIGHTS = "2026-03-01", "2026-03-06", ("2026-03-07", "2026-03-08")
NUM_USERS_SHOWN, NUM_ITEMS_SHOWN = 5, 5
METRICS = {
    "all/next_recall_at_20": "recall@20",
    "all/next_mrr_at_20": "mrr@20",
    "all/next_ndcg_at_20": "ndcg@20",
    "warm/next_recall_at_20": "warm recall@20",
    "warm/next_mrr_at_20": "warm mrr@20",
    "list/any_recall_at_20": "list recall@20",
}


def main() -> None:
    """Simulate, load, run two nights, show what came out."""
    started = time.monotonic()
    home = Path(os.environ.get("NIGHTJAR_HOME") or "home").resolve()
    os.environ["NIGHTJAR_HOME"] = str(home)
    say(f"1. Eight days of raw logs of a simulated shop, in {home / 'raw' / 'demo'}")
    nightjar("simulate", "--from", FIRST, "--to", NIGHTS[-1])
    say(f"2. Days {FIRST} to {LOADED}: ingest, sessionize, validate")
    loaded = nightjar("run", "--data-only", "--from", FIRST, "--to", LOADED)
    say(f"3. Two nights through Airflow: {' and '.join(NIGHTS)}")
    nights = {}
    with airflow_stack(home, CONF) as stack:
        for night in NIGHTS:
            sys.stderr.write(f"the night of {night}\n")
            steps = stack.run_night("demo__nightly", night)
            sys.stderr.write(f"the retraining of {night}, which that night's data has started\n")
            nights[night] = steps | stack.follow_night("demo__retrain", night)
    ingested = [line for line in loaded if line["step"] == "ingest"] + [steps["ingest"] for steps in nights.values()]
    show_data_quality(ingested)
    oracle = {day["date"]: day["oracle"] for day in json.loads(find_report(home).read_text())["days"]}
    for night, steps in nights.items():
        show_night(night, steps, oracle[night])
    show_users(home)
    show_where_next(home, time.monotonic() - started)


def nightjar(step: str, *options: str) -> list[dict[str, Any]]:
    """Run a command as a user would; its JSON lines."""
    command = [str(Path(sys.executable).with_name("nightjar")), step, "--site", str(SITE), *options]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if ended.returncode != 0:
        sys.exit(f"the demo stops here: `{' '.join(command)}` ended with exit code {ended.returncode}")
    return [json.loads(line) for line in ended.stdout.splitlines()]


def say(heading: str) -> None:
    """A heading."""
    print(f"\n\033[1m{heading}\033[0m" if sys.stdout.isatty() else f"\n{heading}", flush=True)


def find_report(home: Path) -> Path:
    """What the simulator knows of its own logs."""
    return home / "raw" / "demo" / "simulation.json"


def show_data_quality(days: list[dict[str, Any]]) -> None:
    """What became of every raw row."""
    say("Data quality: rows read = events + duplicates + rejected, by delivery day")
    reasons = sorted({reason for day in days for reason in day["rejected"]})
    names = ["rows_read", "events", "duplicates"]
    lines = [["day", *names, *reasons]]
    for day in days:
        lines.append([day["date"], *(str(day[n]) for n in names), *(str(day["rejected"].get(r, 0)) for r in reasons)])
    print(align(lines))


def show_night(night: str, steps: dict[str, Any], oracle: dict[str, float]) -> None:
    """The models beside each other, beside the best that anyone could reach, and the gate's verdict."""
    say(f"The night of {night}: trained on the days before, tested on sessions that began on the day")
    promote = steps["promote"]
    best = {f"all/{name}": value for name, value in oracle.items()}
    print(comparison_text([*promote["comparison"], {"model": "oracle", "metrics": best, "intervals": {}}], METRICS))
    print(f"cold targets: {promote['metrics']['all/cold_share']:.1%} of {promote['metrics']['all/num_targets']:.0f}")
    print(f"gate: {promote['reason']}")
    made_by = "popular items: there was no champion yet"
    if (version := steps["export"]["model_version"]) is not None:
        made_by = f"by model version {version} (the champion of the night before, refitted through {night})"
    print(f"export: {steps['export']['users']} users, {steps['export']['rows']} rows, {made_by}")


def show_users(home: Path) -> None:
    """What five users get, with titles."""
    users = pl.read_delta(str(home / "store" / "demo" / "recommendations"), columns=["user_id"])["user_id"].unique()
    say(f"What {NUM_USERS_SHOWN} of {len(users)} users get on the morning after {NIGHTS[-1]}")
    for user in users.sort().gather_every(len(users) // NUM_USERS_SHOWN)[:NUM_USERS_SHOWN]:
        [answer] = nightjar("read", "--user", user, "--json")
        shown = [item for item in answer["items"] if item["channel"] == "home"][:NUM_ITEMS_SHOWN]
        print(f"{user}  (last item: {shown[0]['because']})")
        told = ("item_id", "title", "source")
        print(align([[f"  {i['rank']}.", *(i[name] or "" for name in told), f"{i['score']:.2f}"] for i in shown], 4))


def show_where_next(home: Path, seconds: float) -> None:
    """Lines to paste."""
    say(f"Done in {seconds / 60:.1f} minutes. Where to look next")
    print(f"""\
  make ui                                                       MLflow, Airflow and the shop's page in the browser
  export NIGHTJAR_HOME={home}
  .venv/bin/nightjar serve --site conf/demo.yaml                      a session to try: http://127.0.0.1:8600
  .venv/bin/nightjar read --site conf/demo.yaml --user u00042         a user's list
  .venv/bin/nightjar recommend --site conf/demo.yaml --item sku-00123   a session that the shop never saw
  {home / "data_docs" / "demo" / "index.html"}   what validation saw
  docs/data-flow.md                                             how a click becomes a recommendation""")


if __name__ == "__main__":
    main()
