"""Who is told what; the notifiers are real ones, their outcome is read from files."""

import asyncio
import json
from datetime import UTC, date, datetime, timedelta
from types import SimpleNamespace

import pytest


@pytest.fixture
def alerts(step_operator):
    import dags.alerts as module

    return module


@pytest.fixture
def box(tmp_path):
    """A site's only notifier, and what it was told."""
    file = tmp_path / "alerts" / "box.jsonl"
    wanted = [{"notifier": "dags.alerts.FileNotifier", "arguments": {"path": str(file)}}]

    def told():
        return [json.loads(line)["text"] for line in file.read_text().splitlines()] if file.exists() else []

    return SimpleNamespace(wanted=wanted, told=told)


def context(**more):
    task = SimpleNamespace(dag_id="shop__nightly", task_id="validate", map_index=-1, log_url="http://airflow/log")
    return {"ti": task, "partition_key": "2026-11-20", "run_id": "r", **more}


def test_a_failed_step_is_one_sentence_a_command_and_a_link(alerts, box, step_operator, fake_nightjar, monkeypatch):
    monkeypatch.setenv("FAKE_EXIT_validate", "3")
    task = step_operator.StepOperator(task_id="validate", step="validate", site_file="shop.yaml", date="2026-11-20")
    with pytest.raises(Exception, match="exit code 3") as caught:
        task.execute({})
    alerts.Notifiers(box.wanted)(context(exception=caught.value))
    [text] = box.told()
    assert text.splitlines() == [
        "shop__nightly of 2026-11-20 failed at validate: `nightjar validate` failed (exit code 3: the data broke its "
        "contract): validate: something is wrong. Readers keep the lists that they have.",
        f"{fake_nightjar.command} validate --site shop.yaml --date 2026-11-20",
        "http://airflow/log",
    ]


def test_a_task_whose_worker_was_killed_is_told_of_as_well(alerts, box):
    alerts.Notifiers(box.wanted)(context())
    assert "ended without a word: its worker was killed" in box.told()[0]


def test_what_a_step_found_is_told_and_the_task_stays_green(alerts, box, step_operator, fake_nightjar, monkeypatch):
    monkeypatch.setenv("FAKE_OUTPUT", '{"step": "drift", "alerts": ["items moved: {{ 1 + 1 }}", "sessions grew"]}')
    task = step_operator.StepOperator(
        task_id="drift",
        step="drift",
        site_file="shop.yaml",
        date="2026-11-20",
        notifiers=alerts.Notifiers(box.wanted),
    )
    assert task.execute(context())["step"] == "drift"
    first, second = box.told()
    assert first.startswith("shop__nightly of 2026-11-20: items moved: {{ 1 + 1 }}\n")  # data is never a template
    assert "nightjar drift --site shop.yaml --date 2026-11-20" in second


def test_a_notifier_that_cannot_tell_hinders_neither_the_task_nor_the_others(alerts, box, caplog):
    bad = {"notifier": "dags.alerts.FileNotifier", "arguments": {"path": "/proc/nowhere/x"}}
    missing = {"notifier": "no.such.Notifier", "arguments": {}}
    alerts.Notifiers([bad, missing, *box.wanted])(context())
    assert len(box.told()) == 1
    assert "no.such.Notifier could not tell" in caplog.text


def test_why_a_notifier_failed_is_logged_without_the_password_of_its_address(alerts, box, caplog, monkeypatch):
    def fail(_notifier, _context):
        raise OSError("no answer from https://me:hush@chat/hook")

    monkeypatch.setattr(alerts.FileNotifier, "notify", fail)
    box.wanted[0]["arguments"]["path"] = "https://me:hush@chat/hook"
    alerts.Notifiers(box.wanted[:1])(context())
    assert "could not tell" in caplog.text
    assert "(OSError: no answer from https://" in caplog.text
    assert "hush" not in caplog.text


@pytest.mark.parametrize("ways", ["both", "only at once"])
def test_late_tables_are_told_of_by_the_triggerer(alerts, box, monkeypatch, ways):
    from airflow.sdk import BaseNotifier

    if ways == "only at once":
        monkeypatch.setattr(alerts.FileNotifier, "async_notify", BaseNotifier.async_notify)
    run = {"dag_id": "shop__nightly", "dag_run_id": "a b", "partition_key": "2026-11-20", "conf": None}
    asyncio.run(alerts.tables_are_late(box.wanted, "shop.yaml", "06:00", {"dag_run": run}))
    [text] = box.told()
    assert "shop__nightly of 2026-11-20 has not ended by 06:00. Readers keep" in text
    assert "nightjar history --site shop.yaml" in text
    assert text.endswith("/dags/shop__nightly/runs/a%20b")


@pytest.fixture
def look(alerts, box, fake_nightjar, monkeypatch):
    """Asks at an hour whether there is new data; the newest day that passed is the 19th, if any."""
    from dags.freshness import FreshnessOperator

    def look(hour, newest='"2026-11-19"'):
        monkeypatch.setenv("FAKE_OUTPUT", f'{{"site": "shop", "newest_passed": {newest}}}')
        task = FreshnessOperator(
            task_id="freshness",
            site_file="shop.yaml",
            time_zone="Europe/Berlin",
            fresh_within=timedelta(hours=30),
            notifiers=alerts.Notifiers(box.wanted),
        )
        after = datetime(2026, 11, 19, 23, tzinfo=UTC) + timedelta(hours=hour)  # the 19th ends at 23:00 UTC
        return task.execute(context(dag_run=SimpleNamespace(run_after=after)))

    return look


def test_no_new_data_is_told_once_and_then_once_a_day(look, box):
    told = []
    for hour in (0, 29, 30, 31, 53, 54, 55):
        report = look(hour)
        assert report["is_late"] == (hour >= 30)
        if len(box.told()) > len(told):
            told = [*told, hour]
    assert told == [30, 54]
    assert box.told()[0].startswith("shop: no new data since 2026-11-19, which ended 30 h ago.\nnightjar days --site")


def test_a_site_without_any_good_day_is_told_of(look, box):
    assert look(1, newest="null") == look(0, newest="null") == {"newest_passed": None, "is_late": True}
    [text] = box.told()  # at midnight, once a day
    assert "shop: no day has passed validation yet" in text


def test_an_hour_counts_also_when_clocks_change(alerts):
    from dags.freshness import end_of

    days = [date(2026, 3, 28), date(2026, 3, 29), date(2026, 10, 25)]
    ends = [end_of(day, "Europe/Berlin") for day in days]
    assert ends[1] - ends[0] == timedelta(hours=23)
    assert ends[2] == datetime(2026, 10, 25, 23, tzinfo=UTC)
