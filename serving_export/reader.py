"""Read the exported tables; for downstream jobs. Needs polars, pyarrow and deltalake, and nothing else of nightjar.

from serving_export.reader import read_user, release
read_user("store/demo", "u00042")
"""

import hashlib
from datetime import UTC, datetime
from typing import Any

import polars as pl
from deltalake import DeltaTable

METADATA = ("model_version", "run_id", "data_through", "generated_at", "valid_until")
COMPANIONS = ("popular_items_version", "items_version", "sessions_version")


def release(store: str) -> dict[str, Any]:
    """What the newest release was made from, and whether it has expired. Raises LookupError if there is none."""
    return facts_of(recommendations(store))


def read_user(store: str, user_id: str) -> pl.DataFrame:
    """A user's lists, best first, with the release's facts as columns; no rows for an unknown user."""
    table = recommendations(store)
    facts = facts_of(table)
    rows = pl.scan_delta(table.table_uri, version=table.version()).filter(
        pl.col("user_bucket") == bucket_of(user_id, num_buckets(store)), pl.col("user_id") == user_id
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


def num_buckets(store: str) -> int:
    """How many parts the store splits its visitors into."""
    return int(pl.read_delta(f"{store.rstrip('/')}/site")["buckets"].item())


def bucket_of(user_id: str, buckets: int) -> int:
    """The part that a user's rows lie in: the rule of pipeline.ids, in plain Python."""
    return int(hashlib.sha256(user_id.encode()).hexdigest()[:8], 16) % buckets
