"""The faults of a night under a real scheduler: one command of a step is ever at work, and the night ends."""

import time
from contextlib import contextmanager

import psutil
import pytest

import dags.local_stack as local_stack
from dags.airflow_api import AirflowApiError

pytestmark = pytest.mark.slow  # a scheduler takes its time to notice that something has died

DAY = "2026-11-20"
STEPS = ["ingest", "sessionize", "validate", "refit", "export", "drift"]
SITE = "name: shop\nschedule: {retries: 3, retry_delay: 1s, max_retry_delay: 5s}\ntraining: {recipes: {gru: }}\n"
MINUTE = 60.0


@pytest.fixture
def hold(tmp_path, fake_nightjar, monkeypatch):
    """A folder: a step whose name lies in it does not end."""
    folder = tmp_path / "hold"
    folder.mkdir()
    monkeypatch.setenv("FAKE_HOLD", str(folder))
    return folder


@contextmanager
def shop_stack(tmp_path, write_sites):
    conf = write_sites(shop=SITE)
    with local_stack.airflow_stack(tmp_path / "home", conf) as stack:
        stack.wait_for_dag("shop__nightly", time.monotonic() + 60)
        yield stack


def calls_of(fake_nightjar, step, day=DAY):
    return [call for call in fake_nightjar.calls if call["argv"][0] == step and call["argv"][4] == day]


def wait_for(condition, seconds, what="it"):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not come about"
        time.sleep(0.1)
    return found


def wait_until_ended(stack, run_id, dag_id="shop__nightly"):
    return wait_for(
        lambda: (state := stack.airflow.run_state(dag_id, run_id)) in ("success", "failed") and state, 300, "the end"
    )


@pytest.mark.parametrize("victim", ["task", "worker"])
def test_a_night_ends_well_whatever_is_killed_in_each_of_its_tasks(tmp_path, write_sites, fake_nightjar, hold, victim):
    for step in STEPS:
        (hold / step).touch()
    with shop_stack(tmp_path, write_sites) as stack:
        run_id = stack.airflow.start_run("shop__nightly", DAY)
        seconds = {}
        for step in STEPS:
            [call] = wait_for(lambda step=step: calls_of(fake_nightjar, step), MINUTE, step)
            task = psutil.Process(call["parent"])
            (task if victim == "task" else task.parent()).kill()
            killed = time.monotonic()
            wait_for(lambda step=step: len(calls_of(fake_nightjar, step)) > 1, 2 * MINUTE, f"the second {step}")
            seconds[step] = time.monotonic() - killed
            (hold / step).unlink()
        assert wait_until_ended(stack, run_id) == "success"
    assert [call["beside"] for call in fake_nightjar.calls if call["beside"]] == []
    assert max(seconds.values()) < MINUTE, seconds


def test_a_scheduler_that_is_killed_goes_on_once_it_is_back(tmp_path, write_sites, fake_nightjar, hold, monkeypatch):
    real = local_stack.airflow_servers

    def restarting(port):
        servers = real(port)
        again = 'while true; do "$@"; sleep 3; done'
        return servers | {"scheduler": ["sh", "-c", again, "scheduler", *servers["scheduler"]]}

    monkeypatch.setattr(local_stack, "airflow_servers", restarting)
    (hold / "sessionize").touch()
    with shop_stack(tmp_path, write_sites) as stack:
        run_id = stack.airflow.start_run("shop__nightly", DAY)
        [call] = wait_for(lambda: calls_of(fake_nightjar, "sessionize"), MINUTE)
        scheduler_of(call).kill()
        time.sleep(20)
        (hold / "sessionize").unlink()
        assert wait_until_ended(stack, run_id) == "success"
    assert [call["beside"] for call in fake_nightjar.calls if call["beside"]] == []
    assert {call["argv"][0] for call in fake_nightjar.calls} >= set(STEPS)


def scheduler_of(call):
    """The scheduler above a command: the topmost Python whose command line names it."""
    above = psutil.Process(call["parent"]).parents()
    return [each for each in above if "scheduler" in each.cmdline() and each.name() != "sh"][-1]


def test_two_runs_of_a_day_a_bad_day_and_a_site_file_that_is_gone(tmp_path, write_sites, fake_nightjar, hold):
    with shop_stack(tmp_path, write_sites) as stack:
        both = [stack.airflow.start_run("shop__nightly", DAY) for _ in range(2)]
        assert [wait_until_ended(stack, run_id) for run_id in both] == ["success", "success"]
        assert len(calls_of(fake_nightjar, "export")) == 2
        for told in ({"partition_key": "2026-13-45"}, {"conf": {"date": "2026-13-45"}}, {"conf": {"date": "$(id)"}}):
            with pytest.raises(AirflowApiError, match="400"):
                stack.airflow.post("dags/shop__nightly/dagRuns", {"logical_date": None, **told})

        (hold / "sessionize").touch()
        later = "2026-11-21"
        run_id = stack.airflow.start_run("shop__nightly", later)
        wait_for(lambda: calls_of(fake_nightjar, "sessionize", later), MINUTE)
        site_file = tmp_path / "conf" / "shop.yaml"
        site_file.unlink()
        (hold / "sessionize").unlink()
        time.sleep(20)
        assert calls_of(fake_nightjar, "export", later) == []
        site_file.write_text(SITE)
        stack.wait_for_dag("shop__nightly", time.monotonic() + MINUTE)
        if wait_until_ended(stack, run_id) == "failed":
            stack.command("dags", "clear", "shop__nightly", "--partition-key", later, "-y")
            time.sleep(1)
            assert wait_until_ended(stack, run_id) == "success"
        assert len(calls_of(fake_nightjar, "export", later)) == 1
    assert [call["beside"] for call in fake_nightjar.calls if call["beside"]] == []
