import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from deltalake import DeltaTable

import nightjar
from pipeline.days import read_days
from serving_export.tables import RECOMMENDATIONS

HERE = Path(__file__).parents[1]
EXECUTABLE = Path(sys.executable).with_name("nightjar")
STEPS = ["ingest", "sessionize", "validate", "features", "train", "promote", "refit", "export", "drift"]
CARE = ["rejected", "days", "compact", "vacuum", "forget"]
COMMANDS = [
    *STEPS,
    "run",
    "due",
    "compare",
    "tune",
    "best",
    "recommend",
    "serve",
    "read",
    "send",
    "report",
    "history",
    "lineage",
    *CARE,
    "simulate",
    "rollback",
]


def tables(home: Path) -> set[str]:
    """Tables with rows, other than the one that says whose store it is."""
    found = [path.parent for path in home.rglob("_delta_log")]
    return {path.name for path in found if DeltaTable(str(path)).count() > 0} - {"site"}


# Help


def test_help_answers_within_a_second_and_lists_every_command():
    before = os.times()
    told = subprocess.run([EXECUTABLE, "--help"], capture_output=True, text=True, check=True)
    after = os.times()
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    assert seconds < 1, "does the command line import something heavy?"  # of work: other tests may be running
    assert told.stderr == ""
    assert [line.split()[0] for line in told.stdout.split("Commands:")[1].strip().splitlines()] == COMMANDS


def test_help_needs_nothing_heavy():
    heavy = "torch polars mlflow pytorch_lightning great_expectations faiss deltalake pandas numpy"
    code = f"import sys, nightjar; print([m for m in {heavy.split()} if m in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=HERE)
    assert told.stdout == "[]\n"


def test_every_command_has_help(command, tmp_path):
    for name in COMMANDS:
        code, _, _ = command(tmp_path, name, "--help")
        assert code == 0, name


# What people get wrong: exit code 2, one sentence, nothing written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --date D, or --from A and --to B"),
        (["--date", ""], "give --date D, or --from A and --to B"),
        (["--date", "None"], "'None' is no date; write YYYY-MM-DD"),
        (["--date", "2026-02-30"], "'2026-02-30' is no date"),
        (["--date", "x; echo hi"], "'x; echo hi' is no date"),
        (["--date", "2026-03-01T00:00:00"], "'2026-03-01T00:00:00' is no date"),
        (["--date", "20260301"], "'20260301' is no date"),
        (["--date", "٢٠٢٦-03-01"], "is no date"),
        (["--from", "2026-03-02", "--to", "2026-03-01"], "--from 2026-03-02 is after --to 2026-03-01"),
        (["--from", "2026-03-02"], "give --date D, or --from A and --to B"),
        (["--date", "2026-03-02", "--to", "2026-03-02"], "give --date D, or --from A and --to B"),
    ],
)
def test_days_that_are_none(command, write_site, tmp_path, arguments, message):
    shop = write_site(tmp_path)
    for name in ("ingest", "run"):
        code, out, err = command(tmp_path, name, "--site", shop.file, *arguments)
        assert (code, out) == (2, "")
        assert one_sentence(err).startswith("nightjar: ")
        assert message in err
    assert not (tmp_path / "store").exists()


def one_sentence(err: str) -> str:
    """What was said, which is no traceback."""
    assert "Traceback" not in err
    assert err.count("nightjar: ") == 1, err
    return err[err.index("nightjar: ") :]


def test_usage_that_the_parser_refuses_exits_2(command, tmp_path):
    for arguments in (
        ["ingest"],
        ["no-such-step"],
        ["ingest", "--sit", "x"],
        ["recommend", "--site", "x", "--top", "0"],
    ):
        code, out, err = command(tmp_path, *arguments)
        assert (code, out) == (2, ""), arguments
        assert "Usage:" in err


def test_a_missing_site_file(command, tmp_path):
    code, _, err = command(tmp_path, "ingest", "--site", tmp_path / "none.yaml", "--date", "2026-03-01")
    assert code == 2
    assert f"cannot read the site file {tmp_path}/none.yaml" in one_sentence(err)


def test_a_misspelt_key_is_named_with_the_nearest(command, write_site, tmp_path):
    good = write_site(tmp_path)
    good.file.write_text(good.file.read_text().replace("length: 4d", "lenght: 4d"))
    code, _, err = command(tmp_path, "ingest", "--site", good.file, "--date", "2026-03-01")
    assert code == 2
    assert "window.lenght: unknown key; did you mean `length`?" in one_sentence(err)
    assert str(good.file) in err


def test_no_input_for_the_day(command, write_site, tmp_path):
    shop = write_site(tmp_path)
    code, out, err = command(tmp_path, "ingest", "--site", shop.file, "--date", "2026-03-01")
    assert (code, out) == (2, "")
    assert "no input for 2026-03-01" in one_sentence(err)
    assert tables(tmp_path) == set()


def test_a_missing_column_is_named_and_nothing_is_half_written(command, write_site, raw_shop, tmp_path):
    shop = write_site(tmp_path)
    raw = (raw_shop.home / "raw/events-2026-03-01.csv").read_text()
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/events-2026-03-01.csv").write_text(raw.replace("item_id", "item", 1))
    code, out, err = command(tmp_path, "ingest", "--site", shop.file, "--date", "2026-03-01")
    assert (code, out) == (2, "")
    assert "events-2026-03-01.csv has no column 'item_id' (did you mean 'item'?)" in one_sentence(err)
    assert tables(tmp_path) == set()


def test_a_store_of_another_site(command, write_site, loaded_shop, tmp_path):
    other = write_site(tmp_path, name="other", store=str(loaded_shop.home / "store"))
    code, _, err = command(tmp_path, "ingest", "--site", other.file, "--date", "2026-03-01")
    assert code == 2
    assert "was made by the site 'small', not by 'other'" in one_sentence(err)


def test_training_before_features(command, copy_shop):
    shop = copy_shop()
    code, out, err = command(shop.home, "train", "--site", shop.file, "--date", "2026-03-04", "--recipe", "popularity")
    assert (code, out) == (2, "")
    assert "no features for 2026-03-04" in one_sentence(err)
    assert "Run `nightjar features`" in err


def test_an_unknown_recipe(command, copy_shop):
    shop = copy_shop()
    code, _, err = command(shop.home, "train", "--site", shop.file, "--date", "2026-03-04", "--recipe", "popularty")
    assert code == 2
    assert "no recipe 'popularty'; did you mean 'popularity'" in one_sentence(err)


def test_a_step_before_what_it_needs(command, copy_shop):
    shop = copy_shop()
    code, out, err = command(shop.home, "promote", "--site", shop.file, "--date", "2026-03-04")
    assert (code, out) == (2, "")
    assert "no version was trained for 2026-03-04" in one_sentence(err)
    assert not tables(shop.home) & {"recommendations", "popular_items"}


@pytest.mark.parametrize("options", [[], ["--nightly"]], ids=["by hand", "nightly"])
def test_without_a_champion_there_is_nothing_to_refit(command, copy_shop, caplog, options):
    shop = copy_shop()
    code, out, _ = command(shop.home, "refit", "--site", shop.file, "--date", "2026-03-04", *options)
    assert code == 0
    assert json.loads(out)["model_version"] is None
    assert "there is no champion for 2026-03-04" in caplog.text


@pytest.mark.parametrize(
    ("day", "is_newest", "has_window"),
    [("2026-03-06", True, True), ("2026-03-05", False, True), ("2026-03-02", False, False)],
)
def test_a_day_is_due_if_it_is_the_newest_and_has_days_before_it(command, loaded_shop, day, is_newest, has_window):
    code, out, _ = command(loaded_shop.home, "due", "--site", loaded_shop.file, "--date", day)
    told = json.loads(out)
    assert (code, told["newest_passed"]) == (0, "2026-03-06")
    assert (told["is_newest"], told["has_window"]) == (is_newest, has_window)


def test_too_few_days_for_features(command, copy_shop):
    shop = copy_shop()
    code, _, err = command(shop.home, "features", "--site", shop.file, "--date", "2026-03-02")
    assert code == 2
    assert "window.min_days asks for 2" in one_sentence(err)
    assert "vocabulary" not in tables(shop.home)


@pytest.mark.parametrize(
    "arguments",
    [
        ["ingest", "--date", "2026-03-01"],
        ["features", "--date", "2026-03-04"],
        ["simulate", "--from", "2026-03-01", "--to", "2026-03-01"],
    ],
)
def test_a_home_that_cannot_be_written(command, write_site, tmp_path, arguments):
    shop = write_site(tmp_path)
    (tmp_path / "file").write_text("")
    name, *rest = arguments
    code, out, err = command(tmp_path / "file/home", name, "--site", shop.file, *rest)
    assert (code, out) == (2, "")
    assert "cannot write" in one_sentence(err)


def test_data_that_breaks_its_contract_exits_3(command, released, judge):
    judge(released.store, released.days[4], "failed")
    code, out, err = command(released.home, "export", "--site", released.file, "--date", "2026-03-05")
    assert (code, out) == (3, "")
    assert "2026-03-05 has not passed validation" in one_sentence(err)


# What a step says


def test_a_step_ends_with_one_json_line_on_stdout(command, write_site, raw_shop, tmp_path):
    shop = write_site(
        tmp_path,
        source=json.loads(raw_shop.site.source.model_dump_json())
        | {"events": f"{raw_shop.home}/raw/events-{{date}}.csv"},
        items=None,
    )
    days = ["--from", "2026-03-01", "--to", "2026-03-02"]
    code, out, _ = command(tmp_path, "ingest", "--site", shop.file, *days)
    assert code == 0
    lines = [json.loads(line) for line in out.splitlines()]
    assert [(line["step"], line["site"], line["date"]) for line in lines] == [
        ("ingest", "small", "2026-03-01"),
        ("ingest", "small", "2026-03-02"),
    ]
    for line in lines:
        assert line["rows_read"] == line["events"] + line["duplicates"] + sum(line["rejected"].values())
        assert line["seconds"] >= 0


def test_thresholds_are_suggested_as_a_table_or_a_json_line_and_nothing_is_written(
    command, write_site, raw_shop, tmp_path
):
    told = json.loads(raw_shop.site.source.model_dump_json(exclude_none=True))
    shop = write_site(tmp_path, source=told | {"events": f"{raw_shop.home}/raw/events-{{date}}.csv"}, items=None)
    asked = ("ingest", "--site", shop.file, "--date", "2026-03-01", "--suggest-thresholds")
    code, table, err = command(shop.home, *asked)
    assert code == 0, err
    assert table.split()[:8] == ["measure", "quantile", "limit", "visitors", "cut", "events", "cut", "events_per_day"]
    code, line, err = command(shop.home, *asked, "--json")
    assert code == 0, err
    assert json.loads(line)["thresholds"][5]["visitors"] == 0, "nobody lies over the largest value"
    assert not list(shop.home.rglob("*.parquet"))


def test_a_second_runner_of_the_same_work_is_kept_out(command, copy_shop):
    shop = copy_shop()
    with nightjar.lock(shop.site, "sessionize", shop.days[0]):
        code, out, err = command(shop.home, "sessionize", "--site", shop.file, "--date", "2026-03-01")
        assert (code, out) == (1, "")
        assert "sessionize of small for 2026-03-01 is already running" in one_sentence(err)
        code, _, _ = command(shop.home, "sessionize", "--site", shop.file, "--date", "2026-03-02")
        assert code == 0, "another day is other work"
    code, _, _ = command(shop.home, "sessionize", "--site", shop.file, "--date", "2026-03-01")
    assert code == 0


def test_a_lock_is_let_go_when_the_step_ends_or_fails(copy_shop):
    shop = copy_shop()
    held = []  # kept, so that only `with` can have let go
    for _ in range(2):
        held.append(nightjar.lock(shop.site, "ingest", shop.days[0]))
        with held[-1]:
            pass


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux is asked")
def test_a_command_dies_with_its_parent_when_asked_to():
    child = "import os, time, nightjar; nightjar.die_with_parent(); print(os.getpid(), flush=True); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    environment = os.environ | {"NIGHTJAR_DIE_WITH_PARENT": "1"}
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, env=environment, cwd=HERE)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    for _ in range(50):
        if not is_running(pid):
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the child outlived its parent")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


# Asking for lists


@pytest.fixture
def known(popular_shop):
    """Three items that the serving model knows."""
    from training.tracking import Tracking

    tracking = Tracking(popular_shop.site)
    return tracking.load(tracking.by_alias("serving")).vocabulary.item_ids()[1:4].to_list()


def test_recommend_scores_raw_items_and_counts_unknown_ones(command, popular_shop, known):
    odd = ['a,"b', "c'd", "[e]"]
    items = [argument for item in (*odd, *known) for argument in ("--item", item)]
    code, out, err = command(
        popular_shop.home, "recommend", "--site", popular_shop.file, "--top", "3", "--json", *items
    )
    assert code == 0, err
    answer = json.loads(out)
    assert (answer["source"], answer["num_items"], answer["num_unknown"]) == ("model", 6, 3)
    assert answer["model_version"] == 2
    assert [item["rank"] for item in answer["items"]] == [1, 2, 3]
    assert all(item["title"] and item["category"] for item in answer["items"])


def test_recommend_as_a_table(command, popular_shop, known):
    code, out, _ = command(
        popular_shop.home, "recommend", "--site", popular_shop.file, "--top", "2", "--item", known[0]
    )
    assert code == 0
    told, heads, *rows = out.splitlines()
    assert told == "model version 2; 0 of 1 items are unknown"
    assert heads.split() == ["rank", "item_id", "score", "title", "category"]
    assert [row.split()[0] for row in rows] == ["1", "2"]


def test_tune_tries_recipes_and_best_writes_the_site_file(command, copy_shop):
    shop = copy_shop(training={"recipes": {"popularity": None, "recent_popularity": {"half_life": "1h"}}})
    shop.file.write_text("# ours\n" + shop.file.read_text())
    site = ["--site", shop.file]
    code, out, _ = command(shop.home, "best", *site)
    assert (code, out.strip()) == (0, "no recipe was tuned yet; run `nightjar tune`")
    code, out, err = command(shop.home, "tune", *site, "--date", "2026-03-05", "--all", "--trials", "4")
    assert code == 0, err
    heads, *rows, told = out.splitlines()
    assert heads.split()[:2] == ["recipe", "night"]
    assert [row.split()[0] for row in rows] == ["popularity", "recent_popularity"]
    assert told == "all/next_mrr_at_20 on the day before the night"
    code, out, _ = command(shop.home, "best", *site, "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert [(each["recipe"], each["num_trials"]) for each in found] == [("popularity", 1), ("recent_popularity", 4)]
    old, change = shop.file.read_text(), ["best", *site, "--recipe", "recent_popularity"]
    code, out, _ = command(shop.home, *change)
    assert code == 0
    assert shop.file.read_text() == old
    assert f"-      half_life: 1h\n+      half_life: {found[1]['fields']['half_life']}\n" in out + "\n"
    assert command(shop.home, *change, "--write")[0] == 0
    assert shop.file.read_text() == old.replace("half_life: 1h", f"half_life: {found[1]['fields']['half_life']}")
    code, out, _ = command(shop.home, *change, "--write")
    assert (code, out.strip()) == (0, f"{shop.file} says so already")
    assert [file.name for file in shop.home.glob(".*")] == []
    for wrong, told in (
        (["best", *site, "--recipe", "gru"], "no trial of 'gru' is known. Run `nightjar tune --recipe gru` first"),
        (["tune", *site, "--date", "2026-03-05"], "give --recipe R, or --all"),
        (["tune", *site, "--date", "2026-03-05", "--recipe", "gruu"], "there is no recipe 'gruu'; did you mean 'gru'?"),
    ):
        code, out, err = command(shop.home, *wrong)
        assert (code, out) == (2, "")
        assert told in one_sentence(err)


def test_recommend_takes_times_types_a_user_and_a_channel(command, popular_shop, known):
    site = ["recommend", "--site", popular_shop.file, "--top", "3", "--explain"]
    rows = popular_shop.store.scan(RECOMMENDATIONS).sort("user_id", "rank").collect()
    before = ["--user", rows["user_id"][0], "--channel", "home"]
    code, out, err = command(popular_shop.home, *site, *before, "--json")
    assert code == 0, err
    answer = json.loads(out)
    assert [item["item_id"] for item in answer["items"]] == rows["item_id"][:3].to_list(), "the exported list"
    assert answer["num_history"] > 0
    now = ["--item", known[0], "--at", "2026-03-07T10:04:00", "--event-type", "view"]
    code, out, err = command(popular_shop.home, *site, *now)
    assert code == 0, err
    assert re.search(rf"you viewed .+ just now: {known[0]} \+\d+\.\d\d", out), out
    for wrong, told in (
        (["--item", "a", "--at", "x"], "'x' is no time"),
        (["--item", "a", "--at", "2026-03-01", "--at", "2026-03-02"], "--at is given 2 times for 1 items"),
        (["--item", "a", "--channel", "tv"], "no channel 'tv'; there are home"),
    ):
        code, out, err = command(popular_shop.home, *site, *wrong)
        assert (code, out) == (2, "")
        assert told in one_sentence(err)


def test_recommend_says_when_it_falls_back_to_popular_items(command, popular_shop):
    site = ["recommend", "--site", popular_shop.file, "--top", "2", "--item", "never, seen"]
    code, out, _ = command(popular_shop.home, *site, "--json")
    assert code == 0
    answer = json.loads(out)
    assert (answer["source"], answer["num_unknown"], len(answer["items"])) == ("popular", 1, 2)
    _, out, _ = command(popular_shop.home, *site)
    assert out.startswith("popular items, because 1 of 1 items are unknown")


def test_recommend_reads_sessions_of_a_file(command, popular_shop, known, tmp_path):
    file = tmp_path / "sessions.jsonl"
    file.write_text(f'{json.dumps(known)}\n\n{json.dumps({"item_ids": [known[0], "a,b"]})}\n["x"]\n')
    code, out, _ = command(popular_shop.home, "recommend", "--site", popular_shop.file, "--items-from", file, "--json")
    assert code == 0
    answers = [json.loads(line) for line in out.splitlines()]
    assert [(a["source"], a["num_items"], a["num_unknown"]) for a in answers] == [
        ("model", 3, 0),
        ("model", 2, 1),
        ("popular", 1, 1),
    ]


@pytest.mark.parametrize("line", ["{", '"a"', "7", '{"things": ["a"]}', "[[1]]", "null"])
def test_a_line_that_is_no_session_is_named(command, popular_shop, tmp_path, line):
    file = tmp_path / "sessions.jsonl"
    file.write_text(f'["a"]\n{line}\n')
    code, out, err = command(popular_shop.home, "recommend", "--site", popular_shop.file, "--items-from", file)
    assert (code, out) == (2, "")
    assert f"{file}, line 2: " in one_sentence(err)


def test_recommend_without_a_session_or_with_a_missing_file(command, popular_shop, tmp_path):
    code, _, err = command(popular_shop.home, "recommend", "--site", popular_shop.file)
    assert (code, "give a session" in one_sentence(err)) == (2, True)
    code, _, err = command(
        popular_shop.home, "recommend", "--site", popular_shop.file, "--items-from", tmp_path / "none"
    )
    assert (code, f"cannot read {tmp_path}/none" in one_sentence(err)) == (2, True)


def test_recommend_before_the_first_night(command, copy_shop):
    shop = copy_shop()
    code, _, err = command(shop.home, "recommend", "--site", shop.file, "--item", "a")
    assert code == 2
    assert "neither a serving model nor popular items yet. Run a night first" in one_sentence(err)


def test_read_a_users_lists(command, popular_shop):
    from serving_export.tables import RECOMMENDATIONS

    user = popular_shop.store.scan(RECOMMENDATIONS).select("user_id").collect()["user_id"][0]
    code, out, _ = command(popular_shop.home, "read", "--site", popular_shop.file, "--user", user, "--json")
    assert code == 0
    answer = json.loads(out)
    assert (answer["user_id"], answer["data_through"], len(answer["items"])) == (user, "2026-03-04", 10)
    assert {"model_version", "run_id", "generated_at", "valid_until", "is_expired"} <= set(answer)
    _, out, _ = command(popular_shop.home, "read", "--site", popular_shop.file, "--user", user)
    told, heads, *rows = out.splitlines()
    assert "by model version 2, data through 2026-03-04, valid until 2026-03-06" in told
    assert heads.split()[:4] == ["channel", "rank", "item_id", "score"]
    assert len(rows) == 10


def test_read_a_user_nobody_knows(command, popular_shop):
    code, out, _ = command(popular_shop.home, "read", "--site", popular_shop.file, "--user", "no,'body")
    assert code == 0
    assert out.startswith('"no,\'body" has no list')
    code, out, _ = command(popular_shop.home, "read", "--site", popular_shop.file, "--user", "nobody", "--json")
    assert json.loads(out)["items"] == []


def test_read_before_the_first_export(command, copy_shop):
    shop = copy_shop()
    code, _, err = command(shop.home, "read", "--site", shop.file, "--user", "u")
    assert code == 2
    assert "nothing was exported" in one_sentence(err)


@pytest.mark.parametrize("question", [("read", "--user", "u"), ("recommend", "--item", "i")])
def test_asking_where_nothing_is_says_so_and_makes_no_store(command, raw_shop, tmp_path, question):
    name, *options = question
    code, out, error = command(tmp_path / "elsewhere", name, "--site", raw_shop.file, *options)
    assert (code, out) == (2, "")
    assert "there is no store at" in error
    assert str(tmp_path / "elsewhere") in error
    assert not (tmp_path / "elsewhere" / "store").exists()


# Care of the store


def test_rejected_rows_are_shown_by_reason_and_handed_back(command, copy_shop):
    shop = copy_shop()
    options = ["rejected", "--site", shop.file, "--date", "2026-03-01"]
    code, out, err = command(shop.home, *options)
    assert (code, err) == (0, "")
    head, *_ = out.splitlines()
    assert head.split() == ["reason", "rows"]
    assert "bad_time" in out
    code, out, _ = command(shop.home, *options, "--reason", "bad_time", "--as", "jsonl")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert {line["nightjar"]["reason"] for line in lines} == {"bad_time"}
    code, out, _ = command(shop.home, *options, "--reason", "bad_time", "--as", "csv")
    assert out.splitlines()[0].startswith("user_id,session_id,item_id")
    assert len(out.splitlines()) == len(lines) + 1
    code, out, err = command(shop.home, *options, "--reason", "bad")
    assert (code, out) == (2, "")
    assert "bad_time" in one_sentence(err)


def test_days_are_a_table_or_json_lines(command, copy_shop):
    shop = copy_shop()
    code, out, err = command(shop.home, "days", "--site", shop.file)
    assert (code, err) == (0, "")
    head, *rows = out.splitlines()
    assert head.split() == ["event_date", "files", "events", "duplicates", "rejected", "sessions", "verdict", "state"]
    assert len(rows) == len(shop.days)
    assert all("passed as it is now" in row for row in rows[:-1])
    days = ["--from", "2026-03-02", "--to", "2026-03-03"]
    code, out, _ = command(shop.home, "days", "--site", shop.file, *days, "--json")
    told = [json.loads(line) for line in out.splitlines()]
    assert [line["event_date"] for line in told] == ["2026-03-02", "2026-03-03"]
    assert all(line["events"] > 0 for line in told)


def test_compact_and_vacuum_say_what_they_did(command, copy_shop):
    shop = copy_shop()
    found = []
    for _ in range(2):
        code, out, err = command(shop.home, "compact", "--site", shop.file)
        assert (code, err) == (0, "")
        (told,) = map(json.loads, out.splitlines())
        found.append([table["table"] for table in told["tables"]])
    assert found == [["events"], []], "late rows lie in files of their own"
    code, out, err = command(shop.home, "vacuum", "--site", shop.file, "--dry-run")
    (told,) = map(json.loads, out.splitlines())
    assert (told["files"], told["kept_for"], told["dry_run"]) == (0, "30d", True)


def test_forget_tells_what_was_removed_and_never_names_the_user(command, released, caplog):
    user = released.store.scan(RECOMMENDATIONS).collect()["user_id"][0]
    code, out, err = command(released.home, "forget", "--site", released.file, "--user", user)
    assert code == 0, err
    (told,) = map(json.loads, out.splitlines())
    assert told["removed"]["events"] > 0
    assert told["removed"]["recommendations"] == 10
    assert told["stale_days"]
    assert user not in out + err + caplog.text
    assert "out of reach" in caplog.text
    code, out, _ = command(released.home, "read", "--site", released.file, "--user", user, "--json")
    assert (code, json.loads(out)["items"]) == (0, [])


def test_users_of_a_file_are_forgotten_together(command, released):
    users = released.store.scan(RECOMMENDATIONS).collect()["user_id"].unique().sort()[:2].to_list()
    listed = released.home / "users.txt"
    listed.write_text(f"\ufeff{users[0]}\r\n\n{users[1]}\n", encoding="utf-8")
    code, out, err = command(released.home, "forget", "--site", released.file, "--users", listed)
    assert code == 0, err
    told = json.loads(out)
    assert (told["visitors"], told["removed"]["recommendations"]) == (2, 20)
    code, out, err = command(released.home, "forget", "--site", released.file, "--users", listed.with_name("none"))
    assert (code, out) == (2, "")
    assert "Give a text file in UTF-8 with an id a line" in one_sentence(err)
    code, out, err = command(released.home, "forget", "--site", released.file)
    assert (code, out) == (2, "")
    assert "--session ID" in one_sentence(err)


def test_who_is_read_is_a_user_or_an_anonymous_session(command, released):
    user = released.store.scan(RECOMMENDATIONS).collect()["user_id"][0]
    code, out, err = command(released.home, "read", "--site", released.file, "--session", user, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert (told["session_id"], told["items"]) == (user, [])
    for step in ("read", "lineage"):
        for whose in ([], ["--user", "u", "--session", "s"]):
            code, out, err = command(released.home, step, "--site", released.file, *whose)
            assert (code, out) == (2, "")
            assert "--session ID" in one_sentence(err)


def test_nobody_is_forgotten_while_a_step_is_running(command, released):
    with nightjar.lock(released.site, "features", released.days[3]):
        code, out, err = command(released.home, "forget", "--site", released.file, "--user", "u")
    assert (code, out) == (1, "")
    assert "features-2026-03-04 is running" in one_sentence(err)


def test_care_needs_a_store(command, write_site, tmp_path):
    shop = write_site(tmp_path)
    for arguments in (
        ["days"],
        ["compact"],
        ["vacuum"],
        ["forget", "--user", "u"],
        ["rejected", "--date", "2026-03-01"],
    ):
        code, out, err = command(tmp_path, arguments[0], "--site", shop.file, *arguments[1:])
        assert (code, out) == (2, ""), arguments
        assert "there is no store at" in one_sentence(err)


def test_what_the_library_of_a_store_says_is_shown_without_passwords(command, write_site, tmp_path, monkeypatch):
    shop = write_site(tmp_path, store="s3://bucket/shop")
    variables = {"AWS_ENDPOINT_URL": "http://me:hush@127.0.0.1:1", "AWS_ALLOW_HTTP": "true", "AWS_REGION": "x"}
    for name, value in (variables | {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}).items():
        monkeypatch.setenv(name, value)
    code, out, err = command(tmp_path, "days", "--site", shop.file)
    assert (code, out) == (1, "")
    assert "@127.0.0.1:1/bucket/shop" in err
    assert "hush" not in err


def test_a_line_of_the_log_and_its_traceback_are_shown_without_passwords(tmp_path):
    code = """
import logging, nightjar, sys
sys.argv = ["nightjar", "--no-such-option"]
try:
    nightjar.main()
except SystemExit:
    pass
try:
    raise OSError("no answer from redis://:hush@cache")
except OSError:
    logging.getLogger("library").exception("cannot reach %s", "https://me:hush@host/x")
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=HERE)
    assert "OSError: no answer from redis://…@cache" in told.stderr
    assert "cannot reach https://…@host/x" in told.stderr


# What nobody expected: a sentence, and the traceback in a file


DAY_COMMANDS = [*STEPS[:4], "promote", "refit", "export", "drift", "run", "report", "due", "compare", "rejected"]


@pytest.mark.parametrize("day", ["0001-01-01", "1899-12-31", "2200-01-01", "9999-12-31"])
def test_a_day_out_of_the_calendar_is_refused_by_every_command(command, write_site, tmp_path, day):
    shop = write_site(tmp_path)
    more = {"train": ["--recipe", "gru"], "tune": ["--recipe", "gru"], "vacuum": []}
    for name in (*DAY_COMMANDS, *more):
        code, out, err = command(tmp_path, name, "--site", shop.file, "--date", day, *more.get(name, []))
        assert (name, code, out) == (name, 2, "")
        assert "nightjar takes days from 1900-01-01 to 2199-12-31" in one_sentence(err) or "no store" in err, name
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("name", ["simulate", "ingest", "run"])
def test_a_range_that_would_never_end_is_refused(command, write_site, tmp_path, name):
    shop = write_site(tmp_path)
    code, out, err = command(tmp_path, name, "--site", shop.file, "--from", "2026-03-01", "--to", "2199-12-31")
    assert (code, out) == (2, "")
    assert "are 63,493 days; give at most 3,660 at once" in one_sentence(err)
    assert not (tmp_path / "raw").exists()


@pytest.mark.parametrize("name", [name for name in STEPS if name not in ("ingest", "train")])
def test_no_step_but_ingest_makes_a_store(command, write_site, tmp_path, name):
    shop = write_site(tmp_path)
    code, out, err = command(tmp_path, name, "--site", shop.file, "--date", "2026-03-01")
    assert (code, out) == (2, "")
    assert f"there is no store at {tmp_path}/store" in one_sentence(err)
    assert not (tmp_path / "store").exists()


def test_a_mistyped_day_leaves_no_trace(command, copy_shop):
    shop = copy_shop()
    before = read_days(shop.store)
    for name in ("sessionize", "validate"):
        code, out, err = command(shop.home, name, "--site", shop.file, "--date", "2062-03-01")
        assert (code, out) == (2, "")
        assert "2062-03-01" in one_sentence(err)
    assert read_days(shop.store).equals(before)


def test_a_missing_file_of_the_store_is_named_with_its_table(command, released):
    gone = next((released.home / "store/recommendations").glob("user_bucket=*/*.parquet"))
    for file in (released.home / "store/recommendations").glob("user_bucket=*/*.parquet"):
        file.unlink()
    for arguments in (["read", "--user", "u00001"], ["send", "--to", str(released.home / "lists.csv")]):
        code, out, err = command(released.home, arguments[0], "--site", released.file, *arguments[1:])
        assert (code, out) == (2, "")
        said = one_sentence(err)
        assert "the table `recommendations`" in said
        assert f"{gone.parent.name[:-1]}" in said
        assert ".parquet is missing" in said


def test_a_file_that_was_cut_short_is_named_although_polars_panics(released):
    for file in (released.home / "store/sessions").glob("*/*/*.parquet"):
        file.write_bytes(file.read_bytes()[:100])
    environment = os.environ | {"NIGHTJAR_HOME": str(released.home), "RUST_BACKTRACE": "0"}
    arguments = ["features", "--site", str(released.file), "--date", "2026-03-04"]
    told = subprocess.run([EXECUTABLE, *arguments], capture_output=True, text=True, env=environment, check=False)
    assert (told.returncode, told.stdout) == (2, "")
    assert re.search(r"the table `sessions` of .* is damaged: .*\.parquet holds 100 bytes", one_sentence(told.stderr))


@pytest.mark.parametrize("content", [b"hello", None], ids=["no database", "cut short"])
def test_a_damaged_database_of_mlflow_is_named(command, released, content):
    file = released.home / "mlflow.db"
    file.write_bytes(file.read_bytes()[:20_000] if content is None else content)
    code, out, err = command(released.home, "compare", "--site", released.file, "--date", "2026-03-04")
    assert (code, out) == (2, "")
    assert f"SQLite says of {file}" in one_sentence(err)


def test_an_exception_nobody_expected_is_one_sentence_and_a_log(command, write_site, tmp_path, monkeypatch):
    shop = write_site(tmp_path)

    def fail(*_: object) -> None:
        raise KeyError("postgresql://me:secret@host")

    monkeypatch.setattr(nightjar, "load_site", fail)
    code, out, err = command(tmp_path, "days", "--site", shop.file)
    assert (code, out) == (1, "")
    log = tmp_path / "logs/errors.log"
    assert re.fullmatch(rf"nightjar: unexpected KeyError in \S+, line \d+\. The traceback is in {log}.*\n", err)
    assert "Traceback" in log.read_text()
    assert log.stat().st_mode & 0o777 == 0o600
    log.unlink()
    log.mkdir()
    _, _, err = command(tmp_path, "days", "--site", shop.file)
    assert f"The traceback could not be written to {log}: Is a directory" in err


def test_an_interrupted_command_says_so(write_site, tmp_path):
    shop = write_site(tmp_path)
    arguments = ["simulate", "--site", str(shop.file), "--from", "2026-03-01", "--to", "2029-03-01"]
    environment = os.environ | {"NIGHTJAR_HOME": str(tmp_path)}
    process = subprocess.Popen([EXECUTABLE, *arguments], stderr=subprocess.PIPE, text=True, env=environment)
    until = time.monotonic() + 60
    while not list((tmp_path / "raw").glob("events-*")) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert one_sentence(err).startswith("nightjar: interrupted")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_result_that_cannot_be_written_is_said_so(released):
    environment = os.environ | {"NIGHTJAR_HOME": str(released.home)}
    arguments = ["days", "--site", str(released.file)]
    with Path("/dev/full").open("wb") as full:
        told = subprocess.run(
            [EXECUTABLE, *arguments], stdout=full, stderr=subprocess.PIPE, env=environment, check=False
        )
    assert told.returncode == 1
    assert "cannot write to standard output: No space left on device" in one_sentence(told.stderr.decode())


@pytest.fixture
def full_disk(tmp_path):
    """A small file system of its own; call with the bytes to leave free."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")

    def leave(num_bytes: int) -> None:
        told = os.statvfs(disk)
        with (disk / "ballast").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, told.f_bavail * told.f_frsize - num_bytes)

    yield disk, leave
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize("num_bytes", [0, 4_096, 40_960])
def test_a_full_disk_is_tried_again_whatever_step_meets_it(
    command, copy_shop, write_site, raw_shop, full_disk, num_bytes
):
    disk, leave = full_disk
    shop = copy_shop()
    shutil.copytree(shop.home, disk / "home")
    shutil.copytree(raw_shop.home / "raw", disk / "home/raw")
    site = write_site(disk / "home", sessions={"gap": "20m"})
    with (disk / "home/raw/events-2026-03-05.csv").open("a") as log:
        log.write("u1,s-1,sku-00001,view,2026-03-05T10:00:00Z,phone,1.00\n")
    leave(num_bytes)
    for name in ("ingest", "sessionize", "features"):
        code, out, err = command(disk / "home", name, "--site", site.file, "--date", "2026-03-05")
        assert (name, code, out) == (name, 1, "")
        assert "no space left on device" in one_sentence(err).lower()
