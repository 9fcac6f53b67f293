"""Who waits for whom, and who goes home; what Airflow would say is told by the tests."""

from types import SimpleNamespace

import pytest

DAY = "2026-11-20"  # a Friday


@pytest.fixture
def sensors(step_operator):
    import dags.night_sensors as module

    return module


@pytest.fixture
def poke(sensors, fake_nightjar, monkeypatch):
    """Looks once as the first task of a retraining: True, False or the reason to skip."""
    from airflow.sdk.exceptions import AirflowSkipException

    def poke(day=DAY, newest=DAY, under_way=0, run_type="asset_triggered", retrain="newest", **settings):
        monkeypatch.setenv("FAKE_NEWEST", newest)
        task = sensors.NewestDay(
            task_id="newest_day",
            nightly="shop__nightly",
            site_file="x.yaml",
            date=day,
            **{"obeys_every": True} | settings,
        )
        asked = []
        context = {
            "dag_run": SimpleNamespace(run_type=run_type),
            "ti": SimpleNamespace(get_dr_count=lambda dag_id, states: asked.append((dag_id, states)) or under_way),
            "triggering_asset_events": {"shop_sessions": [SimpleNamespace(extra={"retrain": retrain})]},
        }
        try:
            return task.poke(context)
        except AirflowSkipException as skipped:
            return str(skipped)
        finally:
            assert asked in ([], [("shop__nightly", ["queued", "running"])])

    return poke


def test_the_newest_day_is_trained_for(poke):
    assert poke() is True


def test_nobody_trains_while_a_night_is_under_way(poke, fake_nightjar):
    assert poke(under_way=2) is False
    assert fake_nightjar.calls == []


def test_an_older_day_is_not_trained_for(poke):
    assert "2026-11-20 is not the newest day that passed validation: 2026-11-21 is" in poke(newest="2026-11-21")


def test_every_day_is_trained_for_where_the_night_was_told_so(poke):
    assert poke(newest="2026-11-21", retrain="every") is True
    assert "not the newest" in poke(newest="2026-11-21", retrain="every", obeys_every=False)


@pytest.mark.parametrize("under_way", [0, 3])
def test_a_run_by_hand_always_goes_on(poke, fake_nightjar, under_way):
    assert poke(newest="2026-11-21", under_way=under_way, run_type="manual", weekdays=["sun"]) is True
    assert fake_nightjar.calls == []


def test_only_some_weekdays_are_trained_for(poke):
    assert "2026-11-20 is a fri; this runs on sun" in poke(weekdays=["sun"])
    assert poke(weekdays=["fri", "sun"]) is True
    assert poke(weekdays=["sun"], retrain="every") is True


def test_nobody_trains_on_too_few_days(poke, monkeypatch):
    monkeypatch.setenv("FAKE_OUTPUT", f'{{"newest_passed": "{DAY}", "has_window": false}}')
    assert "too few validated days before 2026-11-20" in poke()
    assert poke(obeys_every=False) is True


@pytest.mark.parametrize(
    ("states", "goes_on"),
    [
        ({}, True),
        ({"validate": None}, False),
        ({"validate": "up_for_retry", "wait_for_start": "success"}, False),
        ({"validate": "success"}, True),
        ({"validate": "upstream_failed"}, True),
        ({"validate": None, "wait_for_start": "up_for_reschedule"}, True),
    ],
    ids=["none", "loading", "trying again", "through", "failed", "waiting for its time"],
)
@pytest.mark.parametrize("is_running", [True, False], ids=["running", "queued"])
def test_lists_wait_for_the_data_that_is_on_its_way(sensors, states, goes_on, is_running):
    found = {"own": {"validate": None}} | ({"other": states} if states else {})

    def count(dag_id, run_ids, states):
        assert (dag_id, run_ids, states) == ("shop__nightly", ["other"], ["running"])
        return int(is_running)

    task = sensors.OtherNights(task_id="x", nightly="shop__nightly")
    ti = SimpleNamespace(get_task_states=lambda dag_id, task_ids: found, get_dr_count=count)
    assert task.poke({"run_id": "own", "ti": ti}) is (goes_on or not is_running)
