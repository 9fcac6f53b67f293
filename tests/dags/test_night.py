"""A whole night through Airflow's own machinery, with a stand-in for the command line."""

import pytest

KEYED_DAY, PARAM_DAY = "2026-11-09", "2026-11-10"
STEPS = ["ingest", "sessionize", "validate", "features", "train", "train", "promote", "refit", "export"]


@pytest.fixture(scope="module")
def night(in_airflow, airflow_home, tmp_path_factory, night_command):
    """What became of two nights: one started with a partition key, one with the param `date`."""
    conf = tmp_path_factory.mktemp("conf")
    (conf / "shop.yaml").write_text(
        "name: shop\ntime_zone: Europe/Berlin\nschedule: {start_after: 2h}\ntraining: {recipes: {gru: , stan: }}\n"
    )
    arguments = ["shop__nightly", KEYED_DAY, PARAM_DAY]
    return in_airflow("run_a_night.py", *arguments, NIGHTJAR_CONF=str(conf), **night_command.environment)


def test_all_steps_run_in_the_order_that_data_flows(night):
    for run in (night["keyed"], *night["by_param"]):
        assert run["state"] == "success"
        assert run["order"] == ["wait_for_start", *STEPS]
        assert sorted(run["labels"]) == ["gru", "stan"]


def test_every_step_gets_the_day_of_its_run(night, night_command):
    days = [call["argv"][4] for call in night_command.calls]
    assert days == [KEYED_DAY] * len(STEPS) + [PARAM_DAY] * len(STEPS)


def test_the_release_is_told_with_the_day_as_key_and_what_was_counted(night):
    assert [key for key, _ in night["events"]] == [KEYED_DAY, PARAM_DAY]
    assert night["events"][0][1] == {"step": "export", "date": KEYED_DAY, "users": 42}
    assert night["keyed"]["export"]["users"] == 42
