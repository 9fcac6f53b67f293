"""User ids of sites that keep none: hashed as soon as a row is read, so that no later step can tell one.

A hashed id is HMAC-SHA256 (RFC 2104) of the trimmed id under the site's secret, as 64 hex digits. The secret comes
from the environment and is written nowhere; the store keeps an HMAC of a constant, by which it knows it again.
"""

import hmac
import os
from collections.abc import Sequence

import polars as pl

from pipeline.errors import ConfigurationError
from pipeline.ids import ANONYMOUS, hmac_sha256, trimmed
from pipeline.raw_columns import RAW, raw_name
from pipeline.settings import PipelineSite

SHORTEST_SECRET = 32
CONSTANT = b"nightjar user id secret"
NO_TEXT = ""
"""Stands for the text of a row that could not be read, where it may not be kept."""


def user_id_secret(site: PipelineSite) -> bytes | None:
    """The secret of a site that hashes user ids, None of another; raises ConfigurationError for one that is no use."""
    if not site.privacy.hash_user_ids:
        return None
    name = site.privacy.secret_from
    secret = os.environ.get(name, "")
    if len(secret) < SHORTEST_SECRET:
        found = f"has {len(secret)} characters" if secret else "is not set"
        raise ConfigurationError(
            f"{site.name} hashes user ids with a secret (privacy.hash_user_ids), but the environment variable {name} "
            f"{found}. Set it to at least {SHORTEST_SECRET} characters that nobody can guess, like those of "
            "`openssl rand -hex 32`, and keep it for as long as the store"
        )
    return secret.encode()


def secret_digest(secret: bytes | None) -> str | None:
    """What a store may know of its secret: enough to tell it from another one."""
    return None if secret is None else hmac.digest(secret, CONSTANT, "sha256").hex()


def check_secret(root: str, known: str | None, secret: bytes | None) -> None:
    """Refuse another secret than the store was made with: every user would become two."""
    if known == secret_digest(secret):
        return
    if secret is None:
        raise ConfigurationError(
            f"the store {root} holds hashed user ids, the site file says `hash_user_ids: false`. "
            "Set `privacy: {hash_user_ids: true}`, or make a new store"
        )
    if known is None:
        raise ConfigurationError(
            f"the store {root} holds user ids as they are in the log, the site file says `hash_user_ids: true`. "
            "Give the site a new `store` and ingest its logs again; then remove the old one"
        )
    raise ConfigurationError(
        f"the store {root} was made with another secret for user ids: with this one every user would become two. "
        "Set the environment variable to the secret it was made with, or make a new store"
    )


def hash_user_ids(records: pl.DataFrame, site: PipelineSite) -> pl.DataFrame:
    """Raw records of a site that keeps no user ids, with the ids hashed and nothing else that could hold one.

    Only the columns that the site file names are kept, and no text of a record as a whole.
    """
    secret = user_id_secret(site)
    if secret is None or site.source.columns.user_id is None:
        return records
    column = raw_name(site.source.columns.user_id)
    told = pl.col(column).cast(pl.String).str.strip_chars()
    ids = records.select(told.alias(column)).unique().drop_nulls().filter(pl.col(column) != "")
    hashed = ids.with_columns(hashed=hmac_sha256(pl.col(column), secret))
    named = {raw_name(name) for name in site.source.named_columns}
    no_text = pl.when(pl.col("fault").is_not_null()).then(pl.lit(NO_TEXT))
    return (
        records.select(name for name in records.columns if name in named or not name.startswith(RAW))
        .with_columns(told)
        .join(hashed, on=column, how="left", maintain_order="left")
        .with_columns(pl.col("hashed").alias(column), fields=no_text)
        .drop("hashed")
    )


def known_as(site: PipelineSite, user_id: str) -> str:
    """A user id of the log as the tables of the site know it."""
    secret = user_id_secret(site)
    known = trimmed(user_id)
    return known if secret is None else hmac.digest(secret, known.encode(), "sha256").hex()


def anonymous(session_id: str) -> str:
    """The anonymous visitor of a session id of the log, as the tables know it."""
    return ANONYMOUS + trimmed(session_id)


def named_visitors(site: PipelineSite, users: Sequence[str], sessions: Sequence[str]) -> list[str]:
    """Users and anonymous sessions, by their ids in the log, as the tables know them; each once.

    Raises ConfigurationError where the site has no such ids, or an empty one or none is given.
    """
    columns = site.source.columns
    if users and columns.user_id is None:
        raise ConfigurationError(
            f"{site.name} has no user ids (source.columns.user_id): its visitors are known by their session ids only. "
            "Give --session ID"
        )
    if sessions and columns.session_id is None:
        raise ConfigurationError(
            f"{site.name} has no session ids (source.columns.session_id), so it has no anonymous visitors. "
            "Give --user ID"
        )
    if not (users or sessions) or not all(map(trimmed, [*users, *sessions])):
        raise ConfigurationError(
            "give the id of a user as it stands in the log, --user ID, or that of an anonymous session, --session ID"
        )
    return list(dict.fromkeys([*(known_as(site, user) for user in users), *map(anonymous, sessions)]))


def named_visitor(site: PipelineSite, user: str, session: str) -> str:
    """The one visitor that is asked for, as the tables know it; raises ConfigurationError unless it is one."""
    if user and session:
        raise ConfigurationError("give --user ID or --session ID, not both")
    return named_visitors(site, [user] if user else [], [session] if session else [])[0]
