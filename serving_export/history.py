"""The releases of a store: when, from what, how much, how good, and whether each can still be brought back."""

from typing import Any

from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from pipeline.publish import Store
from serving_export.reader import IS_RELEASE, facts_in, is_whole, read_commit, source_of
from serving_export.tables import RECOMMENDATIONS


def releases(store: Store) -> list[dict[str, Any]]:
    """One entry a release, newest first: the facts of its commit, `is_shown` to readers now, `is_restorable`."""
    table = store.open(RECOMMENDATIONS)
    if table is None:
        return []
    shown = source_of(table.table_uri, table.version())
    commits = {version: read_commit(table.table_uri, version) for version in range(table.version(), -1, -1)}
    return [
        facts_in(commit)
        | {"table_version": version, "is_shown": version == shown, "is_restorable": can_be_read(table, version)}
        for version, commit in commits.items()
        if commit is not None and IS_RELEASE in commit
    ]


def can_be_read(table: DeltaTable, version: int) -> bool:
    """Whether the log and the files of a version are still there."""
    try:
        return is_whole(DeltaTable(table.table_uri, version=version))
    except DeltaError:  # its part of the log was cleaned up
        return False


def as_row(release: dict[str, Any]) -> dict[str, Any]:
    """A release as a line for people."""
    channels = (release["quality"] or {}).values()
    metrics = release["metrics"] or {}
    state = "shown" if release["is_shown"] else "" if release["is_restorable"] else "gone"
    return {
        "version": release["table_version"],
        "data through": release["data_through"],
        "made": release["generated_at"],
        "model": release["model_version"],
        "users": f"{int(release['users'] or 0):,}",
        "rows": f"{int(release['rows'] or 0):,}",
        "items": max((channel["items"] for channel in channels), default=None),
        "fallback": max((channel["fallback_share"] for channel in channels), default=None),
        **dict(list(metrics.items())[:2]),
        "state": state or None,
    }
