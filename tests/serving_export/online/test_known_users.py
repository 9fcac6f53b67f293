"""The id of a stranger costs no read of a table, and puts nobody else out of memory."""

import polars as pl
import pytest
from starlette.testclient import TestClient

from serving_export.online import app as app_module
from serving_export.online.known_users import MOST_TABLES, KnownUsers
from serving_export.online.metrics import Metrics
from serving_export.reader import bucket_of


@pytest.fixture
def reads(endpoint, monkeypatch):
    """The tables that are read while a test asks, by name; nothing is in memory before."""
    told = []

    def watch(module, name):
        read = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given: told.append(name) or read(*given))

    watch(app_module, "read_history")
    watch(app_module, "users_with_history")
    for name in ("exported_lists", "users_with_lists", "exported_intents", "users_with_intents"):
        watch(app_module.lookups, name)
    return told


def test_strangers_cost_one_read_of_each_bucket(endpoint, reads, counted):
    for number in range(60):
        answer = endpoint.client.post("/recommend", json={"user_id": f"stranger-{number}"})
        assert answer.json()["source"] == "popular"
        assert endpoint.client.get(f"/users/stranger-{number}/recommendations").json()["source"] == "popular"
        assert endpoint.client.get(f"/users/stranger-{number}/history").status_code == 404
    assert len(reads) <= 2 * endpoint.site.buckets
    assert not {"read_history", "exported_lists"} & set(reads)
    assert counted("unknown_users") == 180


def test_strangers_do_not_put_out_what_is_known(endpoint, reads, monkeypatch):
    monkeypatch.setattr(app_module, "MOST_HISTORIES", 3)
    user = endpoint.client.get("/users?limit=1").json()["users"][0]["user_id"]
    with TestClient(app_module.create_app(endpoint.versions, Metrics(), 3600)) as client:
        for number in range(20):
            assert client.get(f"/users/{user}/history").json()["num_events"]
            client.post("/recommend", json={"user_id": f"other-{number}"})
    assert reads.count("read_history") == 1


def test_everybody_with_lists_or_a_history_is_known(endpoint):
    from serving_export.recommend import read_history

    versions = endpoint.versions
    lists = versions.serving.lists.rows().select("user_id").unique().collect()["user_id"]
    for user in lists.sort()[:8]:
        assert endpoint.client.get(f"/users/{user}/recommendations").json()["source"] == "export"
        events = read_history(versions.serving.loaded, versions.store, user)
        assert endpoint.client.get(f"/users/{user}/history?limit=1").json()["num_events"] == len(events)


def test_a_user_is_found_among_others_of_the_bucket():
    ids = [f"u{number}" for number in range(1000)]
    known = KnownUsers(4, 60)

    def users_of(bucket):
        return pl.Series([each for each in ids[:500] if bucket_of(each, 4) == bucket])

    assert known.has("lists", "u1") is None
    assert [known.read("lists", user, users_of) for user in ids] == [True] * 500 + [False] * 500
    assert [known.has("lists", user) for user in ids] == [True] * 500 + [False] * 500
    assert known.has("events", "u1") is None


def test_ids_cost_eight_bytes_each_and_only_so_many_tables_are_kept():
    known = KnownUsers(1, 60)
    for table in range(10):
        known.read(table, "u1", lambda _: pl.Series([f"u{number}" for number in range(1000)] * 2))
    assert sum(each.nbytes for each in known.hashes.values()) == MOST_TABLES * 8000


def test_a_bucket_without_users_is_read_once():
    known = KnownUsers(1, 60)
    assert not known.read("lists", "u1", lambda _: pl.Series(dtype=pl.String))
    assert known.has("lists", "u2") is False
