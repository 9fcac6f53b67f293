"""Let readers see an earlier release again, or a later one that was rolled back from. Nothing is lost either way."""

from typing import Any

import polars as pl

from pipeline.errors import ConfigurationError, OvertakenError, RetryableError
from pipeline.forgotten import check_nobody_forgotten, forgotten_users, hash_of
from pipeline.publish import Store
from pipeline.terminal import log
from serving_export.history import releases
from serving_export.reader import ROLLED_BACK_TO
from serving_export.tables import RECOMMENDATIONS

FACTS = ("table_version", "data_through", "model_version")


def rollback_recommendations(store: Store, to: int | None = None) -> dict[str, Any]:
    """Show a release again, by default the one before the newest; return from which to which.

    Users who were forgotten since are left out, in the same commit. Where readers see that release already nothing
    is done (`changed` is false), so that a rollback that was killed can be run again. Raises ConfigurationError
    where there is no such release or it was vacuumed away, and RetryableError where an export came in between.
    """
    store = store.pinned()
    known = releases(store)
    shown = next((release for release in known if release["is_shown"]), None)
    if shown is None:
        raise ConfigurationError(f"nothing was exported to {store.root} yet: there is nothing to roll back from")
    target = choose(known, shown["table_version"], to)
    facts = {
        "from_version": shown["table_version"],
        "to_version": target["table_version"],
        "data_through": target["data_through"],
        "model_version": target["model_version"],
    }
    base = store.version(RECOMMENDATIONS) or 0
    if target is shown:
        log.info("readers see version %s (data through %s, model version %s) already", *(shown[name] for name in FACTS))
        return {**facts, "changed": False, "table_version": base, "rows_of_forgotten_users": 0}
    users = forgotten_users(store)
    is_forgotten = hash_of(pl.col("user_id")).is_in(users.implode())
    staged, left_out = store.stage_version(RECOMMENDATIONS, target["table_version"], is_forgotten)
    check_nobody_forgotten(store)
    buckets = {int(file.partition["user_bucket"]) for file in staged} | {*shown_buckets(store)}
    metadata = {"rolled_back_from": shown["table_version"], ROLLED_BACK_TO: target["table_version"]}
    try:
        version = store.commit(RECOMMENDATIONS, staged, {"user_bucket": sorted(buckets)}, metadata, base)
    except OvertakenError as error:
        raise RetryableError(
            f"{store.table_uri(RECOMMENDATIONS.name)} was changed by an export, a rollback or a forget meanwhile, "
            "and is as that one left it. See `nightjar history`, and roll back again if need be"
        ) from error
    log.info(
        "readers see version %s again (data through %s, model version %s) instead of version %s (data through %s, "
        "model version %s). To undo this: --to %s. The next export goes on as usual",
        *(target[name] for name in FACTS),
        *(shown[name] for name in FACTS),
        shown["table_version"],
    )
    return {**facts, "changed": True, "table_version": version, "rows_of_forgotten_users": left_out}


def shown_buckets(store: Store) -> list[int]:
    """The buckets that have rows in the release that readers see."""
    return store.scan(RECOMMENDATIONS).select(pl.col("user_bucket").unique()).collect().to_series().to_list()


def choose(known: list[dict[str, Any]], shown: int, to: int | None) -> dict[str, Any]:
    """The release to show: that of version `to`, else the one before the newest."""
    if to is None:
        return choose_before_newest(known, shown)
    found = next((release for release in known if release["table_version"] == to), None)
    there = ", ".join(str(release["table_version"]) for release in known if release["is_restorable"])
    if found is None:
        raise ConfigurationError(f"version {to} is no release; there are {there} (`nightjar history`)")
    if to != shown and not found["is_restorable"]:
        raise ConfigurationError(
            f"version {to} was vacuumed away: its files are older than keep_versions_for. There are {there}"
        )
    return found


def choose_before_newest(known: list[dict[str, Any]], shown: int) -> dict[str, Any]:
    """The release before the newest one, whatever is shown now: a second run of the same command goes no further."""
    newest = known[0]["table_version"]
    earlier = [release for release in known[1:] if release["is_restorable"]]
    if not earlier:
        raise ConfigurationError(
            f"there is no release before version {newest} that could be restored; `nightjar history` lists all"
        )
    if shown < earlier[0]["table_version"]:
        raise ConfigurationError(
            f"readers see version {shown} already, which is older than the release before the newest one, "
            f"{earlier[0]['table_version']}. Name the version to show with --to (`nightjar history`)"
        )
    return earlier[0]
