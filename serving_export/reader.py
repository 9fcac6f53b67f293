"""Read the exported tables; for downstream jobs. Needs polars, pyarrow and deltalake, and nothing else of nightjar.

from serving_export.reader import read_user, release
read_user("store/demo", "u00042")

A store of hashed user ids is asked with an id of the log, too; the secret is given, or NIGHTJAR_USER_ID_SECRET has it.
"""

import hashlib
import hmac
import os
from datetime import UTC, datetime
from typing import Any

import polars as pl
from deltalake import DeltaTable

METADATA = ("model_version", "run_id", "data_through", "generated_at", "valid_until")
SECRET_FROM = "NIGHTJAR_USER_ID_SECRET"
SECRET_CONSTANT = b"nightjar user id secret"
COMPANIONS = ("popular_items_version", "items_version", "sessions_version")


def release(store: str) -> dict[str, Any]:
    """What the newest release was made from, and whether it has expired. Raises LookupError if there is none."""
    return facts_of(recommendations(store))


def read_user(store: str, user_id: str, secret: str | None = None) -> pl.DataFrame:
    """A user's lists, best first, with the release's facts as columns; no rows for an unknown user.

    Raises LookupError for a store that holds no release, or hashed user ids under another secret.
    """
    table = recommendations(store)
    facts = facts_of(table)
    owner = site_of(store)
    listed = known_as(store, user_id, owner.get("user_id_secret"), secret or os.environ.get(SECRET_FROM, ""))
    rows = pl.scan_delta(table.table_uri, version=table.version()).filter(
        pl.col("user_bucket") == bucket_of(listed, int(owner["buckets"])), pl.col("user_id") == listed
    )
    told = {name: pl.lit(facts[name]) for name in METADATA}
    return rows.sort("channel", "rank").drop("user_bucket").with_columns(**told).collect()


def facts_of(table: DeltaTable) -> dict[str, Any]:
    """The metadata of the release that a table shows."""
    commit = release_commit(table)
    facts = {name: commit.get(name) for name in (*METADATA, *COMPANIONS)}
    facts["table_version"] = table.version()
    facts["is_expired"] = datetime.now(UTC) > datetime.fromisoformat(str(facts["valid_until"]))
    return facts


def release_commit(table: DeltaTable) -> dict[str, Any]:
    """The commit that made the rows: not a vacuum or the like after it; after a restore, the one it went back to."""
    commits = {commit["version"]: commit for commit in table.history()}
    version = table.version()
    while version in commits and "model_version" not in commits[version]:
        restored = commits[version].get("operationParameters", {}).get("version")
        is_restore = commits[version].get("operation") == "RESTORE" and restored is not None
        version = int(restored) if is_restore else version - 1
    if version not in commits:
        raise LookupError(f"{table.table_uri} holds no release of nightjar. Run `nightjar export` first")
    return commits[version]


def recommendations(store: str) -> DeltaTable:
    """The table of lists."""
    uri = f"{store.rstrip('/')}/recommendations"
    if not DeltaTable.is_deltatable(uri):
        raise LookupError(f"nothing was exported to {store} yet. Run `nightjar export` first")
    return DeltaTable(uri)


def site_of(store: str) -> dict[str, Any]:
    """Whose store it is: name, buckets, and by what a secret is known again."""
    return pl.read_delta(f"{store.rstrip('/')}/site").row(0, named=True)


def known_as(store: str, user_id: str, secret_digest: str | None, secret: str) -> str:
    """A user id of the log as the tables know it: the rule of pipeline.privacy, with the standard library alone."""
    if secret_digest is None:
        return user_id
    key = secret.encode()
    if hmac.digest(key, SECRET_CONSTANT, "sha256").hex() != secret_digest:
        what = "another secret was given" if secret else "no secret was given"
        raise LookupError(
            f"{store} holds hashed user ids and {what}. Set {SECRET_FROM} to the one that the site's steps use, "
            "or pass `secret`"
        )
    return hmac.digest(key, user_id.strip().encode(), "sha256").hex()


def bucket_of(user_id: str, buckets: int) -> int:
    """The part that a user's rows lie in: the rule of pipeline.ids, in plain Python."""
    return int(hashlib.sha256(user_id.encode()).hexdigest()[:8], 16) % buckets
