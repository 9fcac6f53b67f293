"""Let readers see an earlier release again, or a later one that was rolled back from. Nothing is lost either way."""

from typing import Any

import polars as pl

from pipeline.errors import ConfigurationError
from pipeline.forget import remove_rows
from pipeline.forgotten import forgotten_users, hash_of
from pipeline.publish import Store
from pipeline.terminal import log
from serving_export.history import releases
from serving_export.tables import RECOMMENDATIONS


def rollback_recommendations(store: Store, to: int | None = None) -> dict[str, Any]:
    """Restore a release, by default the one before that which is shown; return from which to which.

    Users who were forgotten since are taken out again. Raises ConfigurationError where there is no such release, where
    it was vacuumed away, or where it is shown already.
    """
    known = releases(store)
    shown = next((release for release in known if release["is_shown"]), None)
    if shown is None:
        raise ConfigurationError(f"nothing was exported to {store.root} yet: there is nothing to roll back from")
    target = choose(known, shown["table_version"], to)
    facts = {"rolled_back_from": shown["table_version"], "rolled_back_to": target["table_version"]}
    version = store.restore(RECOMMENDATIONS, target["table_version"], facts)
    users = forgotten_users(store)
    forgotten = 0
    if not users.is_empty():
        forgotten = remove_rows(store, RECOMMENDATIONS, hash_of(pl.col("user_id")).is_in(users.implode()))
    log.info(
        "readers see version %s again (data through %s, model version %s) instead of version %s (data through %s, "
        "model version %s). To undo this: --to %s. The next export goes on as usual",
        *(target[name] for name in ("table_version", "data_through", "model_version")),
        *(shown[name] for name in ("table_version", "data_through", "model_version")),
        shown["table_version"],
    )
    return {
        "from_version": shown["table_version"],
        "to_version": target["table_version"],
        "table_version": store.version(RECOMMENDATIONS) if forgotten else version,
        "data_through": target["data_through"],
        "model_version": target["model_version"],
        "rows_of_forgotten_users": forgotten,
    }


def choose(known: list[dict[str, Any]], shown: int, to: int | None) -> dict[str, Any]:
    """The release to restore."""
    earlier = [release for release in known if release["table_version"] < shown and release["is_restorable"]]
    if to is None and not earlier:
        raise ConfigurationError(
            f"there is no release before version {shown} that could be restored; `nightjar history` lists all"
        )
    if to is None:
        return earlier[0]
    found = next((release for release in known if release["table_version"] == to), None)
    there = ", ".join(str(release["table_version"]) for release in known if release["is_restorable"])
    if found is None:
        raise ConfigurationError(f"version {to} is no release; there are {there} (`nightjar history`)")
    if to == shown:
        raise ConfigurationError(f"readers see version {to} already; there are {there} (`nightjar history`)")
    if not found["is_restorable"]:
        raise ConfigurationError(
            f"version {to} was vacuumed away: its files are older than keep_versions_for. There are {there}"
        )
    return found
