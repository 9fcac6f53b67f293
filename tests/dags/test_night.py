"""Whole nights through Airflow's own machinery, with a stand-in for the command line."""

import json

import pytest

KEYED_DAY, PARAM_DAY = "2026-11-09", "2026-11-10"
DATA = ["ingest", "sessionize", "validate"]
NIGHT = [*DATA, "refit", "export", "drift"]


@pytest.fixture(scope="module")
def told(in_airflow, airflow_home, tmp_path_factory, night_command):
    """What became of two nights, one started with a key and one with the param `date`, and of the other DAGs."""
    conf = tmp_path_factory.mktemp("conf")
    (conf / "shop.yaml").write_text(
        "name: shop\ntime_zone: Europe/Berlin\nschedule: {start_after: 2h, retries: 0}\n"
        "training: {recipes: {gru: , stan: }, seeds: [1, 2]}\n"
    )
    by_param = json.dumps({"date": PARAM_DAY, "retrain": "every"})
    runs = [f"nightly={KEYED_DAY}", f"nightly={by_param}", f"retrain={KEYED_DAY}", f"maintenance={KEYED_DAY}"]
    arguments = [f"shop__{run}" for run in runs]
    return in_airflow("run_a_night.py", *arguments, NIGHTJAR_CONF=str(conf), **night_command.environment)


def test_all_steps_run_in_the_order_that_data_flows(told):
    for run in told["runs"][:2]:
        assert run["state"] == "success"
        assert run["order"] == ["wait_for_start", *DATA, "other_nights", "refit", "export", "drift"]


def test_every_recipe_is_trained_with_every_seed(told, night_command):
    run = told["runs"][2]
    assert run["state"] == "success"
    assert run["order"] == ["newest_day", "features", "train", "train", "train", "promote"]
    assert sorted(run["labels"]) == ["gru seed 1", "gru seed 2", "stan"]
    options = sorted(call["argv"][5:] for call in night_command.calls if call["argv"][0] == "train")
    assert options == [["--recipe", "gru", "--seed", "1"], ["--recipe", "gru", "--seed", "2"], ["--recipe", "stan"]]


def test_every_step_gets_the_day_of_its_run(night_command):
    days = [(call["argv"][0], call["argv"][4]) for call in night_command.calls if "--date" in call["argv"]]
    assert days[: 2 * len(NIGHT)] == [(step, day) for day in (KEYED_DAY, PARAM_DAY) for step in NIGHT]
    assert {day for _, day in days[2 * len(NIGHT) :]} == {KEYED_DAY}


def test_the_store_is_cared_for_after_a_release(told, night_command):
    assert told["runs"][3]["state"] == "success"
    assert [call["argv"][0] for call in night_command.calls][-2:] == ["compact", "vacuum"]


def test_others_are_told_with_the_day_as_key_and_what_was_counted(told):
    assert [(name, key) for name, key, _ in told["events"]] == [
        (f"shop_{asset}", day) for day in (KEYED_DAY, PARAM_DAY) for asset in ("sessions", "recommendations")
    ]
    told_of_data, told_of_lists = (extra for _, _, extra in told["events"][:2])
    assert told_of_data == {"step": "validate", "date": KEYED_DAY, "users": 42, "retrain": "newest"}
    assert told_of_lists == {"step": "export", "date": KEYED_DAY, "users": 42, "published": True, "table_version": 7}
    assert told["runs"][0]["reports"]["export"]["users"] == 42


def test_a_night_passes_on_whether_every_day_is_to_be_trained_for(told):
    assert told["events"][2][2]["retrain"] == "every"
