"""The whole way, from raw logs to lists: once as people run it, in a process of its own; then in this one."""

import json
import shutil
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

import nightjar
from features.tables import SEQUENCES, VOCABULARY
from pipeline.days import stale_verdicts
from pipeline.privacy import known_as
from pipeline.tables import DAYS as DAYS_TABLE
from pipeline.tables import ITEMS, REJECTED, events_table, sessions_table
from serving_export.lineage import lineage
from serving_export.lineage_text import as_text
from serving_export.reader import Recommendations
from serving_export.tables import DRIFT, POPULAR_ITEMS, RECOMMENDATIONS

TABLES = [
    events_table([]),
    sessions_table([]),
    REJECTED,
    ITEMS,
    DAYS_TABLE,
    VOCABULARY,
    SEQUENCES,
    POPULAR_ITEMS,
    RECOMMENDATIONS,
    DRIFT,
]
DIFFERS = ["ingested_run"]


def content(store, *tables) -> dict[str, pl.DataFrame]:
    """Tables in a fixed order of rows, without the columns that may differ from run to run."""
    found = {}
    for table in tables or TABLES:
        rows = store.scan(table).collect().drop(DIFFERS, strict=False)
        found[table.name] = rows.sort([name for name, kind in rows.schema.items() if not kind.is_nested()])
    return found


def check_equal(one: dict[str, pl.DataFrame], other: dict[str, pl.DataFrame]) -> None:
    for name, rows in one.items():
        assert rows.height > 0, name
        assert rows.equals(other[name]), name


@pytest.fixture
def without_great_expectations(monkeypatch, judge):
    """It takes seconds; the run in its own process has it."""

    def validate(site, store, day):
        for each in {day, *stale_verdicts(store, day)}:
            judge(store, each, "passed")
        return {"verdict": "passed"}

    monkeypatch.setitem(nightjar.DATA_STEPS, "validate", validate)


@pytest.fixture
def fresh_shop(tmp_path, raw_shop, write_site, empty_mlflow):
    """Raw logs and nothing else."""
    home = tmp_path / "home"
    shutil.copytree(raw_shop.home / "raw", home / "raw")
    shutil.copy(empty_mlflow, home / "mlflow.db")
    return write_site(home, training={"recipes": {"popularity": None}})


def test_one_command_takes_raw_logs_to_lists(whole_way):
    _, out, err = whole_way()
    assert "Traceback" not in err
    lines = [json.loads(line) for line in out.splitlines()]  # stdout holds nothing else
    data_steps = [step for step in ("ingest", "sessionize", "validate") for _ in range(3)]
    model_steps = ["features", "train", "train", "promote", "refit", "export", "drift"]
    assert [line["step"] for line in lines] == data_steps + model_steps
    assert all(line["date"] == "2026-03-03" and line["site"] == "small" for line in lines[-7:])
    of_model = {line["step"]: line for line in lines if "model_version" in line}
    assert all(type(line["model_version"]) is int for line in of_model.values())
    assert all(line["metrics"]["all/next_mrr_at_20"] > 0 for line in (of_model["train"], of_model["promote"]))
    assert of_model["export"]["model_version"] == of_model["refit"]["model_version"]
    assert of_model["export"]["rows"] == 10 * of_model["export"]["users"] > 0
    assert "first champion" in err
    assert "all/recall_at_20" in err, "the table of metrics is for people"


def texts_of(file: Path) -> str:
    """All that a file tells: as it lies there, and unpacked."""
    told = file.read_bytes().decode("latin-1")
    if file.suffix == ".parquet":
        told += str(pq.read_table(file, partitioning=None).to_pylist())
    return told


def test_no_file_of_a_site_that_hashes_user_ids_holds_one(whole_way, command, secret, planted):
    shop, out, err = whole_way()
    kept = [file for file in shop.home.rglob("*") if file.is_file() and not file.is_relative_to(shop.home / "raw")]
    kinds = {file.suffix for file in kept}
    assert {".parquet", ".json", ".html", ".db", ".safetensors", ".yaml"} <= kinds, "have all steps left something?"
    texts = {file: texts_of(file) for file in kept}
    hashed = known_as(shop.site, planted)
    tables = {file.relative_to(shop.home / "store").parts[0] for file in texts if hashed in texts[file]}
    assert {"events", "rejected", "sessions", "sequences", "recommendations"} <= tables, "the hash is all over"
    assert [file for file in texts if planted in texts[file]] == []
    assert planted not in out + err
    code, out, err = command(shop.home, "read", "--site", shop.file, "--user", planted, "--json")
    assert (code, err) == (0, "")
    assert len(json.loads(out)["items"]) == 10, "who asks with the id of the log is understood"
    assert [Recommendations(shop.store.root).user(user).height for user in (planted, hashed)] == [10, 0]


def test_running_it_all_again_gives_the_same_tables(whole_way, command, secret, without_great_expectations):
    shop, out, _ = whole_way()
    before = content(shop.store)
    code, again, err = command(shop.home, "run", "--site", shop.file, "--from", "2026-03-01", "--to", "2026-03-03")
    assert code == 0, err
    check_equal(before, content(shop.store))
    metrics = [
        [line["metrics"] for line in map(json.loads, text.splitlines()) if line["step"] in ("train", "promote")]
        for text in (out, again)
    ]
    for one, other in zip(*metrics, strict=True):
        assert one == pytest.approx(other)


def test_days_loaded_in_another_order_give_the_same_sessions(fresh_shop, loaded_shop, load):
    load(fresh_shop, [fresh_shop.days[n] for n in (3, 1, 0, 2)])
    nightjar.sessionize(fresh_shop.site, fresh_shop.store, fresh_shop.days[3])
    for table, day, key in (
        (events_table([]), "event_date", "event_id"),
        (sessions_table([]), "session_date", "session_id"),
    ):
        ours, theirs = (
            shop.store.scan(table)
            .filter(pl.col(day) < fresh_shop.days[2])  # later ones also take rows of files that are not loaded here
            .drop("source_file", "ingested_run", strict=False)
            .sort(key)
            .collect()
            for shop in (fresh_shop, loaded_shop)
        )
        assert ours.height > 0
        assert ours.equals(theirs)


def test_every_night_of_a_range_that_has_a_window_ends_with_a_release(fresh_shop, command, without_great_expectations):
    days = ["--from", "2026-03-01", "--to", "2026-03-03"]
    code, out, err = command(fresh_shop.home, "run", "--site", fresh_shop.file, *days, "--every-night")
    assert code == 0, err
    data_steps = ["ingest", "sessionize", "validate"]
    model_steps = ["features", "train", "promote", "refit", "export", "drift"]
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["step"] for line in lines] == [*data_steps * 3, *model_steps], "two days make the shortest window"
    assert {line["date"] for line in lines[-5:]} == {"2026-03-03"}


def test_a_night_run_again_over_its_own_champion_gives_the_same_tables(released, command, monkeypatch):
    monkeypatch.setattr(nightjar, "DATA_STEPS", {})
    found = []
    for _ in range(2):
        days = ["--from", "2026-03-04", "--to", "2026-03-05"]
        code, out, err = command(released.home, "run", "--site", released.file, *days)
        assert code == 0, err
        assert [json.loads(line)["date"] for line in out.splitlines()] == ["2026-03-05"] * 6
        found.append(content(released.store, VOCABULARY, SEQUENCES, POPULAR_ITEMS, RECOMMENDATIONS))
    check_equal(*found)


def test_data_steps_alone_make_no_model(fresh_shop, command, without_great_expectations):
    code, out, err = command(fresh_shop.home, "run", "--site", fresh_shop.file, "--date", "2026-03-01", "--data-only")
    assert code == 0, err
    assert [json.loads(line)["step"] for line in out.splitlines()] == ["ingest", "sessionize", "validate"]


def test_a_user_whose_id_is_hashed_is_traced_without_the_id(whole_way, secret, planted):
    shop, _, _ = whole_way()
    told = lineage(shop.site, shop.store, known_as(shop.site, planted), None, None)
    assert told["rows"]
    assert [file["events_of_user"] for file in told["files"]] == [3, 3, 3]
    assert planted not in as_text(told)
    assert planted not in json.dumps(told, default=str)
