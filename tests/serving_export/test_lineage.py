"""From a row back to the raw files: the chain of a small shop, link by link."""

import hashlib
import json
from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest

from pipeline.errors import ConfigurationError
from pipeline.forget import forget, remember
from pipeline.tables import DAYS, FILES, REJECTED, UTC_MICROSECONDS, events_table
from serving_export.lineage import forgotten_since, lineage
from serving_export.lineage_text import as_text
from serving_export.tables import RECOMMENDATIONS
from training.tracking import Tracking


def some_user(shop) -> str:
    return shop.store.scan(RECOMMENDATIONS).select(pl.col("user_id").min()).collect().item()


@pytest.fixture(scope="module")
def told(served_shop):
    return lineage(served_shop.site, served_shop.store, some_user(served_shop), None, None)


def test_every_link_of_the_chain_is_told(told, served_shop):
    day, before = served_shop.days[4], served_shop.days[3]
    results = served_shop.told[day]
    rows = served_shop.store.scan(RECOMMENDATIONS).filter(pl.col("user_id") == told["user_id"]).collect()
    assert [row["item_id"] for row in told["rows"]] == rows.sort("rank")["item_id"].to_list()
    assert told["release"]["table_version"] == results["export"]["table_version"]
    model = told["model"]
    assert model["version"] == results["refit"]["model_version"]
    assert model["run_id"] == results["refit"]["run_id"]
    assert model["window"] == {"first_day": "2026-03-02", "last_day": "2026-03-05"}
    champion = model["champion"]
    assert champion["version"] == results["refit"]["parent_version"]
    promoted = champion["tags"]["promoted"]
    assert champion["window"]["last_day"] == {str(day): "2026-03-04", str(before): "2026-03-03"}[promoted]
    assert "gate.reason" in champion["tags"]
    assert told["data_is_unchanged"] == {"refit": True, "training": True}


def test_days_have_verdicts_and_say_what_they_were_used_in(told, served_shop):
    days = {row["event_date"]: row for row in told["days"]}
    assert list(days) == served_shop.days[:5], "lists look 30 days back"
    assert {row["verdict"] for row in days.values()} == {"passed"}
    assert "refit" in days[served_shop.days[4]]["used_in"]
    assert "training" not in days[served_shop.days[4]]["used_in"]
    assert days[served_shop.days[0]]["used_in"][0] == "lists"
    assert all(row["is_as_published"] for row in told["days"] + told["files"])


def test_files_are_those_on_the_disk(told, served_shop, raw_shop):
    assert [file["path"].rsplit("/", 1)[1] for file in told["files"]] == [
        f"events-{day}.csv" for day in served_shop.days
    ], "the last one tells late rows"
    for file in told["files"]:
        content = (raw_shop.home / "raw" / file["path"].rsplit("/", 1)[1]).read_bytes()
        assert file["sha256"] == hashlib.sha256(content).hexdigest()
    events = served_shop.store.scan(events_table([])).filter(
        pl.col("user_id") == told["user_id"], pl.col("event_date") <= served_shop.days[4]
    )
    assert sum(file["events_of_user"] for file in told["files"]) == events.collect().height > 0


def test_code_and_site_file_are_recorded_at_each_stage(told, served_shop):
    digest = hashlib.sha256(served_shop.file.read_bytes()).hexdigest()
    for stage in (told["release"], told["model"]["code"], told["model"]["champion"]["code"], told["now"]):
        assert stage["site_file_sha256"] == digest
        assert stage["nightjar"] == told["now"]["nightjar"]
        assert stage["code_commit"] == told["now"]["code_commit"]


def test_people_read_it_aligned(told):
    lines = as_text(told).splitlines()
    heads = [line.split()[0] for line in lines if line and not line.startswith(" ")]
    assert heads[:5] == ["user", "list", "session", "release", "model"]
    assert {"champion", "code", "site"} <= set(heads)
    assert heads[-2:] == ["days,", "files,"]
    start = lines.index("days, as they were at the release") + 1
    table = lines[start : lines.index("", start)]
    places = {line.rindex("  ") for line in table}
    assert len(places) == 1, "the last column begins in one place"
    assert max(map(len, lines)) < 200


def test_what_was_not_recorded_or_is_gone_is_said(released):
    site, store, user = released.site, released.store, some_user(released)
    rows = store.scan(RECOMMENDATIONS).collect()
    told = {"data_through": "2026-03-04", "valid_until": "2999-01-01T00:00:00+00:00", "generated_at": "then"}
    for model in ("99", "none"):
        store.replace(RECOMMENDATIONS, rows, {"user_bucket": [0, 1]}, told | {"model_version": model, "run_id": "x"})
        text = as_text(lineage(site, store, user, "home", None))
        missing = {"99": "version 99: MLflow has it no more", "none": "no model had been promoted"}[model]
        assert missing in text
        assert "not recorded (release" in text
        assert "days, as they are now" in text


def test_data_that_changed_since_is_told(released, judge):
    user, (release, day) = some_user(released), (None, released.days[2])
    days = released.store.scan(DAYS).filter(pl.col("event_date") == day).collect()
    changed = days.with_columns(sessions_content=pl.lit("other"), validated_content=pl.col("events_content") + "/other")
    released.store.replace(DAYS, changed, {"event_date": [day]})
    told = lineage(released.site, released.store, user, None, release)
    assert told["data_is_unchanged"] == {"refit": False, "training": False}
    assert "; changed since" in as_text(told)
    assert next(row for row in told["days"] if row["event_date"] == day)["verdict"] == "passed", "as it was published"
    files = released.store.scan(FILES).collect()
    released.store.replace(FILES, files.clear(), {"delivery_date": files["delivery_date"].unique().to_list()})
    assert len(lineage(released.site, released.store, user, None, release)["files"]) == 5


def test_a_user_who_was_forgotten_is_not_traced(released):
    user = some_user(released)
    remember(released.store, pl.Series([user]), [])
    told = lineage(released.site, released.store, user, None, None)
    assert told == {"site": "small", "user_id": user, "is_forgotten": True, "models": []}
    assert "was forgotten: no table holds rows of this user" in as_text(told)
    assert "no registered model version learnt from their sessions" in as_text(told)


def test_the_versions_that_learnt_from_somebody_forgotten_later_are_told(released, command):
    site, store = released.site, released.store
    days = pl.col("event_date").n_unique()  # somebody who came on every day, and so in every window
    by_days = store.scan(events_table([])).filter(pl.col("user_id").is_not_null()).group_by("user_id").agg(n=days)
    user, other = by_days.sort("n", "user_id", descending=True).collect()["user_id"].head(2)
    before = lineage(site, store, other, None, None)["model"]
    assert (before["forgotten_since"], before["champion"]["forgotten_since"]) == (0, 0)
    forget(site, store, [user], [(RECOMMENDATIONS, "user_id")])
    told = lineage(site, store, other, None, None)
    assert (told["model"]["forgotten_since"], told["model"]["champion"]["forgotten_since"]) == (1, 1)
    assert as_text(told).count("1 visitors since, whom it may have learnt from") == 2
    theirs = lineage(site, store, user, None, None)
    versions = [version.version for version in Tracking(site).versions(withdrawn=True)]
    assert [model["version"] for model in theirs["models"]] == [int(version) for version in versions]
    assert theirs["models"][0]["window"] == before["window"]
    assert f"version {versions[0]} of nightjar-small, window {before['window']['first_day']} to " in as_text(theirs)
    code, out, err = command(released.home, "lineage", "--site", released.file, "--user", user, "--json")
    assert code == 0, err
    assert len(json.loads(out)["models"]) == len(versions)


@pytest.mark.parametrize(("days", "is_told"), [(0, 1), (-1000, 0)], ids=["after", "before"])
def test_a_version_did_not_learn_from_who_was_forgotten_before_its_run(released, days, is_told):
    forgotten = pl.DataFrame(
        {"requested_at": [datetime.now(UTC) + timedelta(days=days)], "open_days": [[]]},
        schema={"requested_at": UTC_MICROSECONDS, "open_days": pl.List(pl.Date)},
    )
    window = {"first_day": "2026-03-01", "last_day": "2026-03-02"}
    facts = {"began": datetime.now(UTC) - timedelta(days=1), "window": window}
    assert forgotten_since(released.store, facts, forgotten) == 0, "no row of those days was blanked"
    blanked = {"event_date": [date(2026, 3, 2)], "reason": ["forgotten"]}
    rows = pl.concat([REJECTED.empty(), pl.DataFrame(blanked)], how="diagonal_relaxed")
    released.store.replace(REJECTED, rows, {"event_date": [date(2026, 3, 2)]})
    assert forgotten_since(released.store, facts, forgotten) == is_told
    unfinished = forgotten.with_columns(open_days=pl.lit([date(2026, 3, 2)], pl.List(pl.Date)))
    assert forgotten_since(released.store, facts, unfinished) == 1, "its rows may still have been there"


@pytest.mark.parametrize(
    ("user", "channel", "version", "message"),
    [
        ("nobody", None, None, "'nobody' has no list in version"),
        (None, "mail", None, "no lists for the channel 'mail'; there are home"),
        (None, None, 999, "has no version 999"),
    ],
    ids=["user", "channel", "version"],
)
def test_what_is_not_there_is_named(served_shop, user, channel, version, message):
    with pytest.raises(ConfigurationError, match=message):
        lineage(served_shop.site, served_shop.store, user or some_user(served_shop), channel, version)


def test_the_command_prints_text_or_json(served_shop, command, tmp_path):
    site, user = ("--site", served_shop.file), ("--user", some_user(served_shop))
    code, out, err = command(served_shop.home, "lineage", *site, *user)
    assert code == 0, err
    assert out.startswith("user ")
    assert "of nightjar-small: refit of version" in out
    code, out, err = command(served_shop.home, "lineage", *site, *user, "--json")
    assert code == 0, err
    assert json.loads(out)["model"]["champion"]["name"] == "nightjar-small"
