"""Read the exported tables; for downstream jobs. Needs polars, pyarrow and deltalake, and nothing else of nightjar.

    from serving_export.reader import Recommendations
    lists = Recommendations("home/store/demo")
    lists.user("u00042")

An object stands for one release: whatever is published later, all its answers belong together. A store of hashed user
ids is asked with ids of the log, too; the secret is given, or NIGHTJAR_USER_ID_SECRET has it.
"""

import hashlib
import hmac
import json
import os
import re
import warnings
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import polars as pl
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

if TYPE_CHECKING:
    import pyarrow.dataset
    import pyarrow.fs

RECOMMENDATIONS = "recommendations"
SHOWN = ("model_version", "run_id", "data_through", "generated_at", "valid_until")
"""Facts of a release that stand beside its rows."""
COMPANIONS = (
    *("popular_items_version", "related_items_version", "triggers_version", "session_intents_version"),
    *("items_version", "sessions_version"),
)
MADE_BY = ("nightjar", "code_commit", "site_file_sha256", "days_version", "files_version")
"""What a release was made by and from, for `nightjar lineage`."""
IN_JSON = ("quality", "metrics")
IS_RELEASE = "valid_until"
"""Metadata that every commit of a release has, and no other commit."""
ROLLED_BACK_TO = "rolled_back_to"
"""Metadata of a commit that shows an earlier release again: the version that this release has."""
SECRET_FROM = "NIGHTJAR_USER_ID_SECRET"
SECRET_CONSTANT = b"nightjar user id secret"
ANONYMOUS = " session:"
"""Begins the user_id of an anonymous visitor's list: the rule of pipeline.ids. No user id begins with a space."""
ITEM = ("item_id", "score", "source", "because")
WhenStale = Literal["warn", "raise", "ignore"]


class StaleError(LookupError):
    """The release is past its `valid_until`."""


class StaleWarning(UserWarning):
    """The release is past its `valid_until`."""


class Recommendations:
    """The lists of one release: the newest, or that of a version of the table.

    Raises LookupError where there is no release, or none of that version any more; StaleError for one that is past
    its `valid_until` if `when_stale` is `raise`.
    """

    def __init__(
        self, store: str, version: int | None = None, *, when_stale: WhenStale = "warn", secret: str | None = None
    ) -> None:
        if re.search(r"://[^@]*:[^@]*@", store):  # messages and warnings name the address
            raise LookupError("the address of the store holds a password; give it by the environment instead")
        self.store = store.rstrip("/")
        self.table = open_table(self.store, version)
        self.facts = facts_of(self.table)
        self.site = pl.read_delta(f"{self.store}/site").row(0, named=True)
        self.secret = secret or os.environ.get(SECRET_FROM, "")
        tell_stale(f"{self.store}/{RECOMMENDATIONS}", self.facts, when_stale)

    def rows(self) -> pl.LazyFrame:
        """All rows with the release's facts as columns; in the order of the files: user_id, channel, rank."""
        lists = pl.scan_delta(self.table).drop("user_bucket")
        return lists.with_columns(**{name: pl.lit(self.facts[name]) for name in SHOWN})

    def channel(self, name: str) -> pl.LazyFrame:
        """All rows of a channel. Raises LookupError for one that the release does not have."""
        known = self.facts["quality"] or {name: None}
        if name not in known:
            raise LookupError(
                f"{self.store} has no lists for the channel {name!r}; there are {', '.join(sorted(known))}"
            )
        return self.rows().filter(pl.col("channel") == name)

    def user(self, user_id: str) -> pl.DataFrame:
        """A user's lists, best first; no rows for a user who has none."""
        return self.users([user_id])

    def users(self, user_ids: Iterable[str]) -> pl.DataFrame:
        """The lists of some users, each best first; never those of an anonymous visitor."""
        return self.listed_as([self.known_as(user) for user in user_ids if not user.startswith(ANONYMOUS)])

    def session(self, session_id: str) -> pl.DataFrame:
        """The lists of an anonymous visitor, by the session id of the log, best first.

        Only a site whose log has no user ids makes such lists.
        """
        return self.listed_as([ANONYMOUS + session_id])

    def listed_as(self, listed: list[str]) -> pl.DataFrame:
        """The lists of those whom the table names so."""
        buckets = sorted({bucket_of(user, int(self.site["buckets"])) for user in listed})
        here = pl.scan_delta(self.table).filter(pl.col("user_bucket").is_in(buckets), pl.col("user_id").is_in(listed))
        told = {name: pl.lit(self.facts[name]) for name in SHOWN}
        return here.drop("user_bucket").with_columns(**told).sort("user_id", "channel", "rank").collect()

    def popular(self, channel: str) -> pl.DataFrame:
        """What to show in a channel to someone without a list: rows of `popular_items` as of this release."""
        version = int(self.facts["popular_items_version"])
        return (
            pl.scan_delta(f"{self.store}/popular_items", version=version).filter(pl.col("channel") == channel).collect()
        )

    def dataset(self) -> "pyarrow.dataset.Dataset":
        """The rows as a pyarrow dataset, as DuckDB and pandas take it; with `user_bucket`, which prunes files."""
        return self.table.to_pyarrow_dataset()

    def known_as(self, user_id: str) -> str:
        """A user id of the log as the tables know it: the rule of pipeline.privacy, with the standard library alone."""
        if self.site["user_id_secret"] is None:
            return user_id
        key = self.secret.encode()
        if hmac.digest(key, SECRET_CONSTANT, "sha256").hex() != self.site["user_id_secret"]:
            what = "another secret was given" if self.secret else "no secret was given"
            raise LookupError(
                f"{self.store} holds hashed user ids and {what}. Set {SECRET_FROM} to the one that the site's steps "
                "use, or pass `secret`"
            )
        return hmac.digest(key, user_id.strip().encode(), "sha256").hex()


def nested(rows: pl.LazyFrame | pl.DataFrame) -> pl.LazyFrame:
    """Rows of lists as one row a user and channel: user_id, channel, session_id, and `items`, best first."""
    ordered = rows.lazy().sort("user_id", "channel", "rank")
    lists = ordered.group_by("user_id", "channel", maintain_order=True)
    return lists.agg(pl.col("session_id").first(), items=pl.struct(*ITEM))


def open_table(store: str, version: int | None = None) -> DeltaTable:
    """The table of lists, at its newest or a given version."""
    uri = f"{store}/{RECOMMENDATIONS}"
    if not DeltaTable.is_deltatable(uri):
        raise LookupError(f"nothing was exported to {store} yet. Run `nightjar export` first")
    try:
        table = DeltaTable(uri, version=version)
    except (DeltaError, TableNotFoundError) as error:
        raise LookupError(
            f"{uri} has no version {version} (any more): {' '.join(str(error).split())}. `nightjar history` lists "
            "those that it has"
        ) from error
    if version is not None and not is_whole(table):
        raise LookupError(
            f"files of version {version} of {uri} were vacuumed away. `nightjar history` lists those that are there"
        )
    return table


def is_whole(table: DeltaTable) -> bool:
    """Whether all files of a version are still there."""
    paths = pl.DataFrame(table.get_add_actions(flatten=True))["path"].to_list()
    return all(file.is_file for file in files_of(table.table_uri).get_file_info(paths))


def files_of(uri: str) -> "pyarrow.fs.FileSystem":
    """The files of a table, wherever it lies."""
    import pyarrow.fs  # not at the top: it loads more than most readers need
    from deltalake.fs import DeltaStorageHandler

    return pyarrow.fs.PyFileSystem(DeltaStorageHandler(uri))


def facts_of(table: DeltaTable) -> dict[str, Any]:
    """The metadata of the release that a table shows."""
    facts = facts_in(release_commit(table))
    facts["table_version"] = table.version()
    facts["is_expired"] = datetime.now(UTC) > datetime.fromisoformat(str(facts["valid_until"]))
    return facts


def facts_in(commit: dict[str, Any]) -> dict[str, Any]:
    """What a commit says of its release; None for what it does not say."""
    facts = {name: commit.get(name) for name in (*SHOWN, *COMPANIONS, *MADE_BY, "users", "rows", *IN_JSON)}
    return facts | {name: json.loads(commit[name]) for name in IN_JSON if name in commit}


def release_commit(table: DeltaTable) -> dict[str, Any]:
    """The commit that made the rows: not a vacuum or the like after it; after a rollback, the one it went back to."""
    version = source_of(table.table_uri, table.version())
    commit = None if version is None else read_commit(table.table_uri, version)
    if commit is None:
        raise LookupError(f"{table.table_uri} holds no release of nightjar. Run `nightjar export` first")
    return commit


def source_of(uri: str, version: int) -> int | None:
    """The version whose commit made the rows of a version; None where the log does not reach back to it."""
    commit = read_commit(uri, version)
    while commit is not None and IS_RELEASE not in commit:
        restored = commit.get(ROLLED_BACK_TO)
        if commit.get("operation") == "RESTORE":  # by Delta's own means
            restored = commit.get("operationParameters", {}).get("version", restored)
        version = version - 1 if restored is None else int(restored)
        commit = read_commit(uri, version)
    return None if commit is None else version


def read_commit(uri: str, version: int) -> dict[str, Any] | None:
    """What the commit of a version says of itself; None if the log does not have it (any more).

    Read from the log itself: `DeltaTable.history` counts versions back from the one that is open, and is wrong as soon
    as there is a newer one.
    """
    try:
        with files_of(uri).open_input_file(f"_delta_log/{version:020}.json") as file:
            actions = [json.loads(line) for line in file.read().splitlines() if line.strip()]
    except (FileNotFoundError, OverflowError):
        return None
    return next((action["commitInfo"] for action in actions if "commitInfo" in action), {})


def tell_stale(uri: str, facts: dict[str, Any], when_stale: WhenStale) -> None:
    """Warn or raise if a release is past its time."""
    if not facts["is_expired"] or when_stale == "ignore":
        return
    told = (
        f"the lists in {uri} were good until {facts['valid_until']}: made {facts['generated_at']} from data through "
        f"{facts['data_through']}"
    )
    if when_stale == "raise":
        raise StaleError(f"{told}. Is the night late? See `nightjar history`")
    warnings.warn(told, StaleWarning, stacklevel=3)


def bucket_of(user_id: str, buckets: int) -> int:
    """The part that a user's rows lie in: the rule of pipeline.ids, in plain Python."""
    return int(hashlib.sha256(user_id.encode()).hexdigest()[:8], 16) % buckets
