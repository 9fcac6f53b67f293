import hashlib

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.ids import ANONYMOUS, content_digest, sha256, stable_id, trimmed, user_bucket, visitor
from serving_export.reader import bucket_of

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def id_of(*fields: object) -> str:
    return pl.select(stable_id(*map(pl.lit, fields))).item()


def bucket(visitor: str, buckets: int) -> int:
    return pl.select(user_bucket(pl.lit(visitor), buckets)).item()


def test_an_id_is_what_it_was_when_the_first_store_was_made():
    assert id_of("u1", "i1", 1_500_000_000_000_000) == "d8f6165a12ce4a62cfaaea198c4e0a76"
    assert bucket("u1", 1024) == 781


@settings(max_examples=40, deadline=None)
@given(TEXT, TEXT)
def test_no_user_id_is_the_visitor_of_an_anonymous_session(user_id, session_id):
    whose = pl.DataFrame({"user_id": [trimmed(user_id), None], "session_id": [trimmed(session_id)] * 2})
    user, anonymous = whose.select(visitor(pl.col("user_id"), pl.col("session_id"))).to_series()
    assert user == trimmed(user_id), "the visitor of a user is the id"
    assert anonymous == ANONYMOUS + trimmed(session_id)
    assert user != anonymous
    assert trimmed(anonymous) != anonymous, "what ingest would make of it as a user id is another one"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.none() | TEXT, min_size=1, max_size=4))
def test_an_id_is_the_documented_hash(fields):
    joined = "\x1f".join("\x00" if field is None else field for field in fields)
    assert id_of(*fields) == hashlib.sha256(joined.encode()).hexdigest()[:32]


@settings(max_examples=40, deadline=None)
@given(TEXT, st.integers(1, 1024))
def test_a_bucket_is_the_documented_hash_and_the_one_of_the_reader(visitor, buckets):
    expected = int(hashlib.sha256(visitor.encode()).hexdigest()[:8], 16) % buckets
    assert bucket(visitor, buckets) == expected == bucket_of(visitor, buckets)


def test_a_missing_field_is_not_an_empty_one():
    assert id_of("a", None, "b") != id_of("a", "", "b")
    assert id_of("a", "b") != id_of("b", "a")
    assert id_of("ab", "c") != id_of("a", "bc")


def test_a_hash_is_the_same_on_its_own_and_in_a_column():
    texts = ["", "a", "ü", "a" * 1000]
    hashed = pl.DataFrame({"text": texts}).select(sha256(pl.col("text"))).to_series().to_list()
    assert hashed == [hashlib.sha256(text.encode()).hexdigest() for text in texts]


def digest(ids: list[str]) -> str:
    return pl.DataFrame({"id": ids}, schema={"id": pl.String}).select(content_digest(pl.col("id"))).item()


HEX_IDS = st.lists(st.integers(0, 2**128 - 1).map("{:032x}".format), max_size=8, unique=True)


@settings(max_examples=30, deadline=None)
@given(HEX_IDS, st.randoms())
def test_a_digest_of_ids_does_not_depend_on_their_order(ids, random):
    shuffled = random.sample(ids, len(ids))
    assert digest(ids) == digest(shuffled)


@settings(max_examples=30, deadline=None)
@given(HEX_IDS.filter(bool))
def test_a_digest_tells_when_an_id_is_gone(ids):
    assert digest(ids) != digest(ids[1:])


@pytest.mark.parametrize("ids", [[], ["f" * 32]])
def test_a_digest_begins_with_the_number_of_ids(ids):
    assert digest(ids).split("-")[0] == str(len(ids))
