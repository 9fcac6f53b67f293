import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture
def run(step_operator, fake_nightjar, monkeypatch):
    """Runs one step; gives its report."""

    def run(step="ingest", date="2026-11-20", options=None, context=None, **environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        task = step_operator.StepOperator(
            task_id=step, step=step, site_file="conf/shop.yaml", date=date, options=options
        )
        return task.execute(context or {})

    return run


@pytest.fixture
def failures():
    from airflow.sdk.exceptions import AirflowException, AirflowFailException

    return {"again": AirflowException, "at_once": AirflowFailException}


def test_a_step_is_a_list_of_arguments_and_its_report_the_result(run, fake_nightjar):
    report = run("train", options={"recipe": "gru"})
    assert report == {"step": "train", "date": "2026-11-20", "users": 42, "metrics": {"mrr": None}}
    (call,) = fake_nightjar.calls
    assert call["argv"] == ["train", "--site", "conf/shop.yaml", "--date", "2026-11-20", "--recipe", "gru"]


def test_a_step_has_no_stdin_and_its_own_group_and_dies_with_its_task(run, fake_nightjar):
    run()
    (call,) = fake_nightjar.calls
    assert call["stdin"] == "/dev/null"
    assert call["leads_its_group"]
    assert call["dies_with_parent"] == "1"


@pytest.mark.parametrize(("code", "kind"), [("1", "again"), ("2", "at_once"), ("3", "at_once"), ("9", "again")])
def test_exit_codes_decide_about_a_retry(run, failures, code, kind):
    with pytest.raises(failures["again"]) as caught:
        run("validate", FAKE_EXIT_validate=code, NIGHTJAR_HOME="/the home")
    assert isinstance(caught.value, failures["at_once"]) == (kind == "at_once")
    text = str(caught.value)
    assert f"exit code {code}" in text
    assert "validate: something is wrong" in text
    assert "Reproduce: NIGHTJAR_HOME='/the home' " in text
    assert text.endswith("nightjar validate --site conf/shop.yaml --date 2026-11-20")
    assert caught.value.command.endswith("nightjar validate --site conf/shop.yaml --date 2026-11-20")
    assert caught.value.sentence.endswith("): validate: something is wrong")


@pytest.mark.parametrize(
    "date",
    [
        "None",
        "",
        None,
        "2026-11-31",
        "20261120",
        "2026-W47-5",
        "2026-11-20; echo x",
        "$(id)",
        "--help",
        "２０２６-11-20",
    ],
)
def test_what_is_no_day_is_refused_before_anything_runs(run, fake_nightjar, failures, date):
    with pytest.raises(failures["at_once"], match="is no date"):
        run(date=date)
    assert fake_nightjar.calls == []


def test_stderr_goes_to_the_log_line_by_line(step_operator, fake_nightjar, monkeypatch):
    lines = []
    log = SimpleNamespace(info=lambda text, *args: lines.append(text % args), warning=print)
    monkeypatch.setattr(step_operator.StepOperator, "log", log)
    step_operator.StepOperator(task_id="x", step="ingest", site_file="a b.yaml", date="2026-11-20").execute({})
    assert lines == [f"$ {fake_nightjar.command} ingest --site 'a b.yaml' --date 2026-11-20", "ingest: at work"]


def test_a_program_that_is_no_nightjar_is_found_out(run, failures):
    with pytest.raises(failures["at_once"], match="no JSON object: 'hello'"):
        run(FAKE_OUTPUT="hello")


def test_a_missing_program_is_named(run, failures):
    with pytest.raises(failures["at_once"], match="cannot start /nowhere/nightjar: No such file"):
        run(NIGHTJAR_COMMAND="/nowhere/nightjar")


def test_the_command_is_beside_the_interpreter_unless_set(step_operator, monkeypatch):
    from dags.step_command import program

    monkeypatch.delenv("NIGHTJAR_COMMAND", raising=False)
    assert program() == [str(Path(sys.executable).parent / "nightjar")]
    monkeypatch.setenv("NIGHTJAR_COMMAND", "'/my models/python' -m nightjar")
    assert program() == ["/my models/python", "-m", "nightjar"]


def test_a_release_that_was_not_published_is_told_to_nobody(run, fake_nightjar):
    from airflow.sdk.exceptions import AirflowSkipException

    kept = {}
    context = {"ti": SimpleNamespace(xcom_push=kept.__setitem__)}
    with pytest.raises(AirflowSkipException, match="published nothing for 2026-11-20"):
        run("export", context=context, FAKE_OUTPUT='{"published": false, "shown": "2026-11-21"}')
    assert kept["return_value"]["shown"] == "2026-11-21"


def test_killing_the_task_ends_the_step_and_its_helpers(step_operator, fake_nightjar, monkeypatch, failures):
    monkeypatch.setenv("FAKE_FOREVER_train", "yes")
    task = step_operator.StepOperator(task_id="train", step="train", site_file="x.yaml", date="2026-11-20")
    caught = []

    def execute():
        try:
            task.execute({})
        except failures["again"] as error:
            caught.append(str(error))

    thread = threading.Thread(target=execute)
    thread.start()
    wait_for(lambda: fake_nightjar.calls)
    (call,) = fake_nightjar.calls
    task.on_kill()
    thread.join(120)
    assert f"signal {signal.SIGTERM:d} ended it" in caught[0]
    wait_for(lambda: not is_running(call["pid"]) and not is_running(call["helper"]))


def test_an_exception_in_the_task_leaves_nothing_running(step_operator, fake_nightjar, monkeypatch):
    """As when Airflow's time limit strikes: a signal handler raises while the task waits."""
    monkeypatch.setenv("FAKE_FOREVER_train", "yes")
    task = step_operator.StepOperator(task_id="train", step="train", site_file="x.yaml", date="2026-11-20")

    def strike(*_):
        if not fake_nightjar.calls:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            return
        raise TimeoutError("time is up")

    before = signal.signal(signal.SIGALRM, strike)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(TimeoutError):
            task.execute({})
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    (call,) = fake_nightjar.calls
    wait_for(lambda: not is_running(call["pid"]) and not is_running(call["helper"]))


def is_running(pid):
    """Whether a process runs; a zombie that nobody has reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)
