"""The DAG files as Airflow reads them, in a process of their own."""

from pathlib import Path

import pytest

KINDS = {
    "nightly": ["ingest", "sessionize", "validate", "other_nights", "refit", "export", "drift"],
    "retrain": ["newest_day", "features", "train", "promote"],
    "maintenance": ["newest_day", "compact", "vacuum"],
}
WAKES = {"nightly": [], "retrain": ["shop_sessions"], "maintenance": ["shop_recommendations"]}
MOST_SECONDS = 0.2
SECONDS_OF_AIRFLOW = 0.9
"""What `import airflow.sdk` takes of an idle core."""
SPRING = ["2026-03-27", "2026-03-28", "2026-03-29", "2026-03-30", "2026-03-31", "2026-04-01"]
AUTUMN = ["2026-10-23", "2026-10-24", "2026-10-25", "2026-10-26", "2026-10-27", "2026-10-28"]


@pytest.fixture(scope="module")
def conf(tmp_path_factory):
    """Three good site files."""
    conf = tmp_path_factory.mktemp("conf")
    (conf / "shop.yaml").write_text(
        "name: shop\ntime_zone: Europe/Berlin\nstore: ${NOT_SET}\n"
        "training: {recipes: {gru: , stan: }, seeds: [1, 2]}\n"
        "schedule: {owner: ana, retries: 1, start_after: 2h30m, retrain_on: [sun],\n"
        "  gpu_steps: [train], gpu_queue: big, gpu_pool: big_pool, tables_by: 06:00, fresh_within: 30h,\n"
        "  alerts: [{notifier: dags.alerts.FileNotifier, arguments: {path: alerts.jsonl}}]}\n"
    )
    (conf / "cairo.yaml").write_text("name: cairo\ntime_zone: Africa/Cairo\n")
    (conf / "plain.yaml").write_text("name: plain\n")
    return conf


@pytest.fixture(scope="module")
def found(in_airflow, conf):
    """What Airflow makes of them."""
    return in_airflow("inspect_dag_files.py", NIGHTJAR_CONF=str(conf))


def test_every_dag_file_imports(found):
    assert found["import_errors"] == {}
    sites = ("cairo", "plain", "shop")
    made = [f"{site}__{kind}" for site in sites for kind in KINDS]
    assert sorted(found["dags"]) == sorted([*made, "shop__watch"])


def test_only_dag_files_are_read_and_none_has_the_name_of_a_folder(found):
    assert sorted(found["files"]) == ["broken_sites.py", "maintenance.py", "nightly.py", "retrain.py", "watch.py"]
    root = Path(__file__).parent.parent.parent
    assert not {Path(name).stem for name in found["files"]} & {path.name for path in root.iterdir() if path.is_dir()}


def test_dag_files_are_quick_to_read_and_import_nothing_heavy(found):
    assert found["heavy"] == []
    slowness = found["seconds_of_airflow"] / SECONDS_OF_AIRFLOW  # neighbours at work slow a core down
    assert found["seconds"] < MOST_SECONDS * max(slowness, 1)


def test_every_dag_tells_whose_it_is_and_what_to_do_when_it_is_red(found):
    for dag_id, dag in found["dags"].items():
        assert dag["owner"] in {"ana", "nightjar"}
        assert dag["tags"] == sorted(["nightjar", dag_id.split("__")[0]])
        assert [word for word in ("**Delivers**", "**By when**", "*Triage*") if word not in dag["doc_md"]] == []
        assert dag["max_active_runs"] == 1
        assert dag["catchup"] is False


@pytest.mark.parametrize("kind", KINDS)
def test_a_dag_is_one_step_after_the_other(found, kind):
    plain, steps = found["dags"][f"plain__{kind}"], KINDS[kind]
    assert plain["order"] == steps
    assert plain["upstream"] == {step: steps[max(n - 1, 0) : n] for n, step in enumerate(steps)}


def test_a_night_that_starts_later_waits_first(found):
    assert found["dags"]["shop__nightly"]["order"] == ["wait_for_start", *KINDS["nightly"]]


@pytest.mark.parametrize("kind", KINDS)
def test_one_dag_wakes_the_next_and_every_awaited_asset_is_told_by_someone(found, kind):
    assert found["dags"][f"shop__{kind}"]["waits_for"] == WAKES[kind]
    told = {name for dag in found["dags"].values() for names in dag["outlets"].values() for name in names}
    assert set(WAKES[kind]) <= told


def test_steps_that_change_what_the_next_night_starts_from_never_run_beside_each_other(found):
    alone = {kind: found["dags"][f"plain__{kind}"]["alone"] for kind in KINDS}
    assert alone == {"nightly": ["refit", "export"], "retrain": ["promote"], "maintenance": []}


def test_a_night_can_be_asked_to_train_for_every_day(found):
    assert found["dags"]["plain__nightly"]["params"]["retrain"]["enum"] == ["newest", "every"]


def test_a_night_that_is_late_is_told_of_where_somebody_wants_to_know(found):
    assert found["dags"]["plain__nightly"]["deadlines"] == []
    [(reference, seconds, path, told)] = found["dags"]["shop__nightly"]["deadlines"]
    assert (reference, seconds, path) == ("DagRunQueuedAtDeadline", 6 * 3600, "dags.alerts.tables_are_late")
    assert told["tables_by"] == "06:00"
    assert told["notifiers"] == [{"notifier": "dags.alerts.FileNotifier", "arguments": {"path": "alerts.jsonl"}}]


def test_somebody_hears_of_every_task_that_fails(found):
    told = {dag_id: set(dag["told_of_failures"].values()) for dag_id, dag in found["dags"].items()}
    assert {number for dag_id, numbers in told.items() for number in numbers if "shop" in dag_id} == {1}
    assert {number for dag_id, numbers in told.items() for number in numbers if "shop" not in dag_id} == {0}


def test_the_schedule_section_decides_about_places_and_retries(found):
    shop, plain = (found["dags"][f"{name}__retrain"]["tasks"] for name in ("shop", "plain"))
    assert shop["train"] == ["big", "big_pool", 1]
    assert plain["train"] == ["gpu", "gpu", 3]
    shop, plain = (found["dags"][f"{name}__nightly"]["tasks"] for name in ("shop", "plain"))
    assert shop["refit"] == ["default", "default_pool", 1]
    assert plain["refit"] == ["gpu", "gpu", 3]


def test_the_night_tells_of_its_data_and_of_its_release(found):
    assert found["dags"]["shop__nightly"]["outlets"] == {
        "validate": ["shop_sessions"],
        "export": ["shop_recommendations"],
    }


@pytest.mark.parametrize("site", ["shop", "plain"])
def test_every_day_has_its_key_also_when_clocks_change(found, site):
    dag = found["dags"][f"{site}__nightly"]
    assert dag["keys_in_spring"]["backfill"] == SPRING
    assert dag["keys_in_autumn"]["backfill"] == AUTUMN


def test_the_clock_starts_a_night_when_its_day_is_over_in_the_sites_zone(found):
    shop = found["dags"]["shop__nightly"]
    nights = dict(shop["keys_in_spring"]["clock"])
    assert nights["2026-03-28"] == "2026-03-28T23:00:00+00:00"
    assert nights["2026-03-29"] == "2026-03-29T22:00:00+00:00"  # the day of 23 hours
    assert dict(shop["keys_in_autumn"]["clock"])["2026-10-25"] == "2026-10-25T23:00:00+00:00"  # the one of 25


def test_a_zone_without_some_midnights_loses_no_day(found):
    keys = found["dags"]["cairo__nightly"]["keys_in_cairo"]
    days = [f"2026-04-{day}" for day in range(21, 28)]
    assert keys["backfill"] == days
    assert [key for key, _ in keys["clock"]] == days[:-1]


def test_a_broken_site_file_is_shown_and_takes_no_other_dag_with_it(in_airflow, write_sites):
    conf = write_sites(good="name: good\n", bad="name: bad\nschedule: {retires: 3}\n")
    found = in_airflow("inspect_dag_files.py", NIGHTJAR_CONF=str(conf), NIGHTJAR_SCHEDULE="off")
    assert sorted(found["dags"]) == sorted(f"good__{kind}" for kind in KINDS)
    (name, error), *_ = found["import_errors"].items()
    assert name == "broken_sites.py"  # Airflow hides all DAGs of the file that an error is shown for
    assert "bad.yaml" in error
    assert "schedule.retires: unknown key; did you mean `retries`?" in error
    keys = found["dags"]["good__nightly"]["keys_in_spring"]  # with NIGHTJAR_SCHEDULE=off nothing starts by itself
    assert (keys["clock"], keys["backfill"]) == ([], SPRING)
