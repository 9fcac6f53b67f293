"""Hashed user ids: none gets past the door, whatever becomes of its row."""

import hmac
from datetime import date

import polars as pl
import pytest

from pipeline.errors import ConfigurationError
from pipeline.ids import hmac_sha256
from pipeline.ingest import ingest
from pipeline.privacy import known_as
from pipeline.publish import open_store
from pipeline.tables import FILES, SITE
from serving_export import reader

DAY_1 = date(2026, 3, 1)
SECRET = "0123456789abcdef0123456789abcdef"
PLANTED = "planted-user-4711"


@pytest.fixture
def secret(monkeypatch) -> str:
    monkeypatch.setenv("NIGHTJAR_USER_ID_SECRET", SECRET)
    return SECRET


@pytest.fixture
def hashed(make_small, secret):
    return make_small(privacy={"hash_user_ids": True})


def told(small) -> str:
    """All that the tables say."""
    return str(small.tables()) + str(small.store.scan(SITE).collect().rows())


def hashed_by_hand(user: str, secret: str = SECRET) -> str:
    return hmac.new(secret.encode(), user.encode(), "sha256").hexdigest()


# --- the hash


@pytest.mark.parametrize("secret", [SECRET, "s" * 64, "x" * 100, "ü" * 40], ids=["short", "block", "long", "umlauts"])
def test_the_hash_is_hmac_sha256(secret):
    users = ["ann", "ü", "", "a" * 1000, None]
    found = pl.DataFrame({"user": users}).select(hmac_sha256(pl.col("user"), secret.encode())).to_series().to_list()
    assert found == [None if user is None else hashed_by_hand(user, secret) for user in users]


def test_an_id_is_trimmed_before_it_is_hashed(hashed):
    hashed.deliver("2026-03-01", " ann ,,x,2026-03-01T10:00:00Z,view", "ann,,y,2026-03-01T10:01:00Z,view")
    hashed.ingest(DAY_1)
    assert hashed.events["user_id"].to_list() == [hashed_by_hand("ann")] * 2
    assert hashed.events["visitor"].to_list() == [hashed_by_hand("ann")] * 2
    assert known_as(hashed.site, " ann") == hashed_by_hand("ann")


def test_events_come_out_as_they_do_with_raw_ids(hashed, make_small):
    plain = make_small("plain")
    rows = [
        f"{user},{visit},i{n},2026-03-01T10:{n:02}:00Z,view"
        for n, user in enumerate(["a", "b", "", "a", " "])
        for visit in ("v",)
    ]
    for small in (plain, hashed):
        small.deliver("2026-03-01", *rows)
        small.ingest(DAY_1)
        small.sessionize(DAY_1)
    columns = ["item_id", "event_type", "occurred_at", "given_session_id"]
    assert hashed.events.select(columns).sort("occurred_at").equals(plain.events.select(columns).sort("occurred_at"))
    assert sorted(hashed.sessions["num_events"]) == sorted(plain.sessions["num_events"])
    anonymous = hashed.events.filter(pl.col("user_id").is_null())
    assert anonymous["visitor"].to_list() == [" session:v"] * 2, "a session id is no user id"


# --- rows of all kinds


def test_no_table_holds_a_raw_id_whatever_became_of_the_row(make_small, secret):
    small = make_small(
        privacy={"hash_user_ids": True},
        source={"bots": {"events_per_day": 3}, "lateness": "1d", "context": ["session"]},
    )
    small.deliver(
        "2026-03-01",
        f"{PLANTED},s,x,2026-03-01T10:00:00Z,view",
        f"{PLANTED},s,x,2026-03-01T10:00:00Z,view",
        f"{PLANTED},s,,2026-03-01T10:00:00Z,view",
        f"{PLANTED},s,x,yesterday,view",
        f"{PLANTED},s,x,2026-03-01T10:00:00Z,unheard-of",
        f"{PLANTED},s,x,2026-03-05T10:00:00Z,view",
        f"{PLANTED},s,x,2026-01-01T10:00:00Z,view",
        f"{PLANTED},s,x",
        f"{PLANTED},s,x,2026-03-01T10:00:00Z,view,too,many",
        f'"{PLANTED}"x,"s,x,2026-03-01T10:00:00Z,view',
        *(f"bot-{PLANTED},s,i{n},2026-03-01T10:00:00Z,view" for n in range(5)),
    )
    counts = small.ingest(DAY_1)
    assert counts["events"] == 1
    assert counts["duplicates"] == 1
    assert set(counts["rejected"]) == {
        "missing_item",
        "bad_time",
        "unknown_event_type",
        "future_time",
        "too_late",
        "unparsable_row",
        "bot",
    }
    assert PLANTED not in told(small)
    assert hashed_by_hand(PLANTED) in told(small)
    unparsable = small.rejected.filter(pl.col("reason") == "unparsable_row")
    assert unparsable["fields"].is_null().all()
    assert sorted(unparsable["record"])[0] == 8


def test_a_rejected_row_keeps_the_columns_that_the_site_names_and_no_other(hashed):
    hashed.deliver(
        "2026-03-01", f"ann,s,x,never,view,{PLANTED}@example.org", header="user,session,item,time,type,email"
    )
    hashed.ingest(DAY_1)
    (fields,) = hashed.rejected["fields"]
    assert f'"user":"{hashed_by_hand("ann")}"' in fields
    assert "email" not in fields


def test_json_lines_and_parquet_are_hashed_too(make_small, secret):
    source = {
        "events": "raw/{date}/*",
        "columns": {"user_id": "user", "item_id": "item", "occurred_at": "time"},
        "event_type": {"constant": "view"},
    }
    small = make_small(privacy={"hash_user_ids": True}, source=source)
    folder = small.home / "raw/2026-03-01"
    folder.mkdir()
    (folder / "a.jsonl").write_text(
        f'{{"user": "{PLANTED}", "item": "x", "time": "2026-03-01T10:00:00Z"}}\n["{PLANTED}"]\n{{"user": "{PLANTED}"\n'
    )
    pl.DataFrame({"user": [4711], "item": ["x"], "time": ["2026-03-01T11:00:00Z"]}).write_parquet(folder / "b.parquet")
    small.ingest(DAY_1)
    assert PLANTED not in told(small)
    assert sorted(small.events["user_id"]) == sorted([hashed_by_hand(PLANTED), hashed_by_hand("4711")])


# --- the secret


@pytest.mark.parametrize(("value", "said"), [(None, "is not set"), ("", "is not set"), ("s" * 31, "has 31 characters")])
def test_a_secret_that_is_no_use_is_refused(hashed, monkeypatch, value, said):
    monkeypatch.delenv("NIGHTJAR_USER_ID_SECRET")
    if value is not None:
        monkeypatch.setenv("NIGHTJAR_USER_ID_SECRET", value)
    with pytest.raises(ConfigurationError, match=rf"NIGHTJAR_USER_ID_SECRET {said}\. Set it to at least 32 characters"):
        open_store(hashed.site)
    assert not (hashed.home / "store").exists()


def test_the_site_may_name_another_variable(make_small, monkeypatch):
    monkeypatch.setenv("OUR_SECRET", SECRET)
    small = make_small(privacy={"hash_user_ids": True, "secret_from": "OUR_SECRET"})
    assert known_as(small.site, "ann") == hashed_by_hand("ann")


def test_the_store_knows_its_secret_again_without_keeping_it(hashed, monkeypatch):
    hashed.deliver("2026-03-01", "ann,,x,2026-03-01T10:00:00Z,view")
    hashed.ingest(DAY_1)
    assert SECRET not in told(hashed)
    monkeypatch.setenv("NIGHTJAR_USER_ID_SECRET", SECRET[::-1])
    with pytest.raises(ConfigurationError, match=r"was made with another secret .* every user would become two"):
        open_store(hashed.site)


def test_a_store_of_raw_ids_is_not_hashed_halfway_nor_the_other_way_round(make_small, secret):
    for small in (make_small(), make_small("hashed", privacy={"hash_user_ids": True})):
        open_store(small.site)
    with pytest.raises(ConfigurationError, match="holds user ids as they are in the log"):
        open_store(make_small(privacy={"hash_user_ids": True}).site)
    with pytest.raises(ConfigurationError, match="holds hashed user ids, the site file says `hash_user_ids: false`"):
        open_store(make_small("hashed").site)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"columns": {"session_id": "session", "item_id": "item", "occurred_at": "time"}}, "there is nothing to hash"),
        ({"columns": {"user_id": "a.id", "item_id": "item", "occurred_at": "time"}, "context": ["a"]}, "'a' holds"),
        ({"exclude": [{"reason": "staff", "column": "user", "matches": "^staff"}]}, "which is hashed first"),
    ],
    ids=["no user ids", "part of a kept column", "excluded by id"],
)
def test_a_site_file_that_would_leak_or_hash_nothing_is_refused(make_small, source, said):
    with pytest.raises(ValueError, match=said):
        make_small(privacy={"hash_user_ids": True}, source=source)


# --- the reader of exported tables


def make_reader(user_id_secret: str | None, secret: str) -> reader.Recommendations:
    """A reader of a store that has the digest of a secret, or none, and no release yet."""
    made = object.__new__(reader.Recommendations)
    made.store, made.site, made.secret = "store", {"user_id_secret": user_id_secret}, secret
    return made


def test_the_reader_hashes_what_it_is_given(secret):
    digest = hmac.new(SECRET.encode(), reader.SECRET_CONSTANT, "sha256").hexdigest()
    assert make_reader(digest, SECRET).known_as(" ann") == hashed_by_hand("ann")
    assert make_reader(None, "").known_as(" ann") == " ann"
    with pytest.raises(LookupError, match="no secret was given"):
        make_reader(digest, "").known_as("ann")
    with pytest.raises(LookupError, match="another secret was given"):
        make_reader(digest, "wrong").known_as("ann")


def test_reader_and_store_agree_on_the_digest_of_a_secret(hashed):
    digest = pl.read_delta(f"{hashed.store.root}/site")["user_id_secret"].item()
    assert make_reader(digest, SECRET).known_as("ann") == known_as(hashed.site, "ann")


def test_a_hashed_site_can_be_ingested_again(hashed):
    path = hashed.deliver("2026-03-01", f"{PLANTED},,x,2026-03-01T10:00:00Z,view")
    hashed.ingest(DAY_1)
    hashed.deliver("2026-03-01b", f"{PLANTED},,x,2026-03-01T10:00:00Z,view", f"{PLANTED},,y,2026-03-01T10:00:00Z,view")
    counts = ingest(hashed.site, hashed.store, DAY_1)
    assert (counts["events"], counts["duplicates"]) == (2, 1)
    assert hashed.table(FILES)["path"].to_list()[0] == str(path)
