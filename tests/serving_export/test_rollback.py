import json
from datetime import UTC, datetime

import polars as pl
import pytest
from deltalake import DeltaTable

from pipeline.errors import ConfigurationError, RetryableError
from pipeline.forget import remember
from pipeline.publish import Store
from pipeline.tables import SITE
from serving_export.export import export
from serving_export.history import releases
from serving_export.reader import Recommendations, bucket_of
from serving_export.rollback import rollback_recommendations
from serving_export.tables import RECOMMENDATIONS

USERS = ["ann", "bob", "cid"]
VALID = "2999-01-01T00:00:00+00:00"


def publish(store: Store, item: str, model: int) -> int:
    """A release that lists one item to everyone."""
    rows = [
        {
            "user_bucket": bucket_of(user, 2),
            "user_id": user,
            "channel": "home",
            "rank": 1,
            "item_id": item,
            "score": 1.0,
        }
        for user in USERS
    ]
    frame = pl.DataFrame(rows).with_columns(
        source=pl.lit("model"), because=pl.lit(None, pl.String), session_id=pl.lit("s")
    )
    home = {"users": 3, "items": 1, "fallback_share": 0.0}
    facts = {"model_version": model, "run_id": "r", "data_through": f"2026-03-0{model}", "valid_until": VALID}
    told = {"generated_at": "now", "users": 3, "rows": 3, "quality": json.dumps({"home": home})}
    return store.replace(RECOMMENDATIONS, frame, {"user_bucket": [0, 1]}, facts | told | {"metrics": '{"all/x": 0.5}'})


@pytest.fixture
def store(tmp_path) -> Store:
    """Three releases: versions 1 to 3."""
    store = Store(str(tmp_path / "store"))
    site = {"name": "small", "buckets": 2, "user_id_secret": None}
    store.replace(SITE, pl.DataFrame([site], schema=dict(SITE.columns)), {})
    for number, item in enumerate("abc", 1):
        assert publish(store, item, number) == number
    return store


def shown(store: Store) -> tuple[str, str]:
    lists = Recommendations(store.root)
    return lists.user("ann")["item_id"][0], lists.facts["model_version"]


def test_back_to_the_release_before_and_forward_again(store):
    told = rollback_recommendations(store)
    assert shown(store) == ("b", "2")
    assert (told["from_version"], told["to_version"], told["table_version"]) == (3, 2, 4)
    again = rollback_recommendations(store)
    assert (again["to_version"], again["changed"]) == (2, False), "run again it goes no further"
    assert shown(store) == ("b", "2")
    rollback_recommendations(store, 1)
    assert shown(store) == ("a", "1")
    with pytest.raises(ConfigurationError, match="readers see version 1 already, which is older"):
        rollback_recommendations(store)
    assert rollback_recommendations(store, 3)["from_version"] == 1
    assert shown(store) == ("c", "3")
    assert publish(store, "d", 4) == 7
    assert shown(store) == ("d", "4")
    assert rollback_recommendations(store)["to_version"] == 3, "the release before, not the rollback before"


def test_history_tells_releases_and_no_other_commits(store):
    rollback_recommendations(store, 1)
    found = releases(store)
    assert [(r["table_version"], r["is_shown"], r["is_restorable"]) for r in found] == [
        (3, False, True),
        (2, False, True),
        (1, True, True),
    ]
    assert found[0]["quality"]["home"]["users"] == 3
    assert found[0]["metrics"] == {"all/x": 0.5}


def test_what_was_vacuumed_away_is_refused(store):
    DeltaTable(store.table_uri("recommendations")).vacuum(0, dry_run=False, enforce_retention_duration=False)
    assert [r["is_restorable"] for r in releases(store)] == [True, False, False]
    with pytest.raises(ConfigurationError, match=r"version 2 was vacuumed away.*There are 3"):
        rollback_recommendations(store, 2)
    with pytest.raises(ConfigurationError, match="no release before version 3 that could be restored"):
        rollback_recommendations(store)
    assert shown(store) == ("c", "3")


@pytest.mark.parametrize(
    ("to", "sentence"), [(0, "version 0 is no release; there are 3, 2, 1"), (4, "version 4 is no release")]
)
def test_what_is_no_step_is_refused(store, to, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        rollback_recommendations(store, to)
    assert store.version(RECOMMENDATIONS) == 3


def test_a_store_without_releases_says_so(tmp_path):
    with pytest.raises(ConfigurationError, match="nothing was exported"):
        rollback_recommendations(Store(str(tmp_path)))
    assert releases(Store(str(tmp_path))) == []


def test_a_forgotten_user_does_not_come_back(store):
    remember(store, pl.Series(["bob"]), [])
    told = rollback_recommendations(store)
    assert told["rows_of_forgotten_users"] == 1
    lists = Recommendations(store.root)
    assert set(lists.rows().collect()["user_id"]) == {"ann", "cid"}
    assert lists.facts["model_version"] == "2"
    assert lists.facts["table_version"] == told["table_version"]


def test_no_version_of_a_rollback_shows_a_forgotten_user(store):
    remember(store, pl.Series(["bob"]), [])
    told = rollback_recommendations(store)
    assert told["table_version"] == 4, "one commit"
    assert bob_in(store, 4) == 0


def bob_in(store: Store, version: int) -> int:
    return store.scan(RECOMMENDATIONS, version).filter(pl.col("user_id") == "bob").collect().height


def test_a_rollback_killed_after_its_commit_is_finished_by_running_it_again(store, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("serving_export.rollback.log.info", killed)
        with pytest.raises(Killed):
            rollback_recommendations(store)
    assert rollback_recommendations(store)["changed"] is False
    assert shown(store) == ("b", "2")
    assert rollback_recommendations(store, 2)["changed"] is False, "also with --to"


def test_a_release_made_at_the_same_moment_stays(store, monkeypatch):
    commit = Store.commit

    def overtaken(*arguments, **options):
        monkeypatch.undo()
        publish(Store(store.root), "e", 5)
        return commit(*arguments, **options)

    monkeypatch.setattr(Store, "commit", overtaken)
    with pytest.raises(RetryableError, match="was changed by an export"):
        rollback_recommendations(store)
    assert shown(store) == ("e", "5")


def test_a_user_who_is_forgotten_at_the_same_moment_does_not_come_back(store, monkeypatch):
    stage = Store.stage_version

    def meanwhile(*arguments, **options):
        staged = stage(*arguments, **options)
        remember(Store(store.root), pl.Series(["bob"]), [])
        return staged

    monkeypatch.setattr(Store, "stage_version", meanwhile)
    with pytest.raises(RetryableError, match="somebody was forgotten while this step"):
        rollback_recommendations(store)
    assert shown(store) == ("c", "3")


def test_a_rollback_while_lists_are_made_is_not_overwritten(released, monkeypatch):
    export(released.site, released.store, released.days[3])
    before = releases(released.store)[1]

    def rolled_back(*arguments, **options):
        rollback_recommendations(Store(released.store.root))
        return {}

    monkeypatch.setattr("serving_export.export.check_release", rolled_back)
    with pytest.raises(ConfigurationError, match=f"readers were rolled back to version {before['table_version']} "):
        export(released.site, released.store, released.days[3])
    assert next(r for r in releases(released.store) if r["is_shown"]) == before | {"is_shown": True}


def test_the_commands(store, command, write_site, tmp_path):
    shop = write_site(tmp_path)
    code, out, err = command(tmp_path, "rollback", "recommendations", "--site", shop.file)
    assert (code, json.loads(out)["to_version"]) == (0, 2), err
    code, out, _ = command(tmp_path, "history", "--site", shop.file)
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split() == [
        "version",
        "data",
        "through",
        "made",
        "model",
        "users",
        "rows",
        "items",
        "fallback",
        "all/x",
        "state",
    ]
    assert [line.split()[0] for line in lines[1:]] == ["3", "2", "1"]
    assert lines[2].endswith("shown")
    code, out, _ = command(tmp_path, "history", "--site", shop.file, "--json")
    assert [json.loads(line)["table_version"] for line in out.splitlines()] == [3, 2, 1]
    code, out, err = command(tmp_path, "rollback", "recommendations", "--site", shop.file, "--to", "77")
    assert (code, out) == (2, "")
    assert "version 77 is no release; there are 3, 2, 1" in err


def test_after_a_rollback_the_next_export_goes_on(released):
    first = released.store.version(RECOMMENDATIONS)
    export(released.site, released.store, released.days[3])
    rollback_recommendations(released.store)
    told = export(released.site, released.store, released.days[3])
    assert told["table_version"] == first + 3
    assert datetime.fromisoformat(releases(released.store)[0]["generated_at"]) <= datetime.now(UTC)
    assert releases(released.store)[0]["is_shown"]
