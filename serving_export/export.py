"""Fill and publish the lists of every active user.

Reads   the newest version that has seen nothing after the day, `events`, `sessions`, `items`
Writes  the item index, `popular_items`, `related_items`, `triggers`, `recommendations` (one commit, made last)

Users that the model cannot serve, and lists that it cannot fill, get popular items, marked `popular` in `source`. So
does everyone where no model has been promoted yet. An export that is killed goes on at the bucket where it stopped.
"""

import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import polars as pl
from mlflow.entities.model_registry import ModelVersion

from features.intents import tell_of_gone_columns
from features.window import check_passed, data_digest
from pipeline.catalogue import latest_items
from pipeline.code_version import code_version
from pipeline.dates import ONE_DAY, day_end
from pipeline.days import passed_days
from pipeline.durations import format_duration
from pipeline.errors import ConfigurationError, ContractError, OvertakenError
from pipeline.forgotten import check_nobody_forgotten
from pipeline.publish import StagedFile, Store
from pipeline.side_by_side import side_by_side
from pipeline.tables import DAYS, FILES, FORGOTTEN, ITEMS, Table, sessions_table
from pipeline.terminal import log, track
from serving_export.assortment import Assortment, make_assortment
from serving_export.because import Budget, find_because
from serving_export.bucket_users import BucketUsers, read_bucket
from serving_export.item_index import EXACT, ItemIndex, choose_index, factory_of, save_index
from serving_export.list_maker import USERS_IN_SLAB, ListMaker, Slab, plan_channels
from serving_export.popular import popular_items
from serving_export.quality import check_release
from serving_export.reader import ROLLED_BACK_TO, facts_of, read_commit
from serving_export.related import relate
from serving_export.scoring import Vectors, item_vectors, session_vectors
from serving_export.session_intents import find_intents, tells_intents
from serving_export.staged_buckets import Progress, StagedBucket
from serving_export.tables import POPULAR_ITEMS, RECOMMENDATIONS, RELATED_ITEMS, SESSION_INTENTS, TRIGGERS
from serving_export.triggers import find_triggers
from serving_export.user_states import update_user_states
from training.bundle import Bundle
from training.cold_items import offer_new
from training.settings import TrainingSite
from training.tracking import Tracking, data_through, number
from training.units import carries_users, reads_users

NUM_QUERIES = 1000
"""Users whose exact lists an approximate index is measured by."""
NO_MODEL = "none"
OTHER_STORES = ". The models of other stores of this site name in MLflow are not this store's"
LISTS_MADE_BY = 1
"""Raised when the same inputs give other lists: what an older version staged is then not gone on with."""


@dataclass(frozen=True)
class Served:
    """The model of a release."""

    bundle: Bundle
    version: int
    run_id: str
    metrics: dict[str, float]


def export(site: TrainingSite, store: Store, day: date) -> dict[str, Any]:
    """Publish the lists of the evening of `day`; return users, rows and the table's version.

    Where readers see lists of a later day nothing is published, so that days may be run again in any order.
    Raises ContractError for a day that has not passed, or without a single active user; ConfigurationError where
    readers were rolled back to another release while the lists were made: a rollback is not overwritten by a retry.
    """
    store = store.pinned()
    check_passed(site, store, day)
    base = store.version(RECOMMENDATIONS) or 0
    if (shown := day_shown(store)) is not None and shown > day:
        log.info("readers see the lists of %s, which stay: those of %s are not published", shown, day)
        return {"published": False, "shown": str(shown)}
    served = served_model(site, day)
    popular = popular_items(site, store, day)
    offering = None if served is None else replace(served, bundle=offer_new(site, store, served.bundle, day))
    maker = plan_lists(site, store, day, offering, popular)
    progress = Progress(store, inputs(site, store, day, offering))
    made = make_lists(site, store, day, maker, progress)
    counts = total(part.counts for part in made)
    if not counts["users"]:
        raise ContractError(
            f"{site.name}: no user was active within {site.export.active_within} before the end of {day}, so there is "
            "nobody to make lists for. Nothing was published; the lists of before are as they were"
        )
    staged = [file for part in made for file in part.files[RECOMMENDATIONS.name]]
    try:
        quality = check_release(site, store, staged, day, has_model=served is not None)
    except ContractError:
        progress.clear()  # what broke its contract is not gone on with
        raise
    check_nobody_forgotten(store)
    metadata = {
        **release_facts(site, store, day, served),
        **publish_companions(site, store, day, maker, made),
        "users": counts["users"],
        "rows": counts["rows"],
        "quality": json.dumps(quality),
        "metrics": json.dumps({} if served is None else served.metrics),
    }
    replaced = {"user_bucket": list(range(site.buckets))}
    check_nobody_forgotten(store)
    try:
        table_version = store.commit(RECOMMENDATIONS, staged, replaced, metadata, base=base)
    except OvertakenError as error:
        raise refuse_after_rollback(store, base) or error from error
    progress.clear()
    log.info("exported %d users, %d rows", counts["users"], counts["rows"])
    tell_of_unexplained(site, counts)
    model_version = None if served is None else served.version
    told = {"published": True, **counts, "model_version": model_version, "table_version": table_version}
    if served is None or not carries_users(served.bundle.recipe):
        return told
    return told | update_user_states(site, store, served.bundle, served.version, day)


def tell_of_unexplained(site: TrainingSite, counts: Mapping[str, int]) -> None:
    """Say how many users the time for reasons did not suffice for."""
    if counts["users_out_of_time"]:
        log.warning(
            "%d of %d users were not explained within export.reasons_within = %s: their `because` is their last item",
            counts["users_out_of_time"],
            counts["users_out_of_time"] + counts["users_explained"],
            format_duration(site.export.reasons_within),
        )


def refuse_after_rollback(store: Store, base: int) -> ConfigurationError | None:
    """Why lists made from version `base` are not published, if readers were rolled back since; else None."""
    uri, newest = store.table_uri(RECOMMENDATIONS.name), store.newest_version(RECOMMENDATIONS) or base
    for version in range(newest, base, -1):
        commit = read_commit(uri, version) or {}
        if ROLLED_BACK_TO in commit:
            return ConfigurationError(
                f"readers were rolled back to version {commit[ROLLED_BACK_TO]} of {uri} while the lists were made. "
                "Nothing was published; run `nightjar export` again if new lists are to replace that release"
            )
    return None


def day_shown(store: Store) -> date | None:
    """The day of the lists that readers see; None where there is no release."""
    table = store.open(RECOMMENDATIONS)
    if table is None:
        return None
    try:
        return date.fromisoformat(str(facts_of(table)["data_through"]))
    except LookupError:
        return None


def served_model(site: TrainingSite, day: date) -> Served | None:
    """The model whose lists are exported; None, and a warning, where there is none yet."""
    tracking = Tracking(site)
    version = served_version(tracking, day)
    if version is None:
        log.warning(
            "%s: no model has been promoted for %s, so every list holds popular items. Run `nightjar train`, "
            "`nightjar promote` and `nightjar refit`, then `nightjar export` again%s",
            *(site.name, day, OTHER_STORES if tracking.is_shared else ""),
        )
        return None
    metrics = champion_metrics(tracking, version)
    return Served(tracking.load(version), number(version), str(version.run_id), metrics)


def served_version(tracking: Tracking, day: date) -> ModelVersion | None:
    """The newest refit, else champion, that has seen nothing after `day`; found by tags, never by alias."""
    versions = [v for v in tracking.versions() if v.tags["kind"] == "refit" or v.tags.get("promoted")]
    fitting = [v for v in versions if data_through(v) <= day]
    return max(fitting, key=lambda v: (data_through(v), v.tags["night"], number(v)), default=None)


def champion_metrics(tracking: Tracking, version: ModelVersion) -> dict[str, float]:
    """What the served model, or the one that it is a refit of, was measured to do."""
    parent = version.tags.get("parent_version")
    trained = tracking.client.get_model_version(version.name, parent) if parent else version
    found = tracking.client.get_run(trained.run_id).data.metrics
    k = max(tracking.site.training.metric_ks)
    told = (tracking.site.training.champion_metric, f"all/next_recall_at_{k}", f"list/any_recall_at_{k}")
    return {name: round(found[name], 6) for name in dict.fromkeys(told) if name in found}


def plan_lists(site: TrainingSite, store: Store, day: date, served: Served | None, popular: pl.DataFrame) -> ListMaker:
    """All that is the same for every user: items, rules, indexes, popular and related items."""
    bundle = None if served is None else served.bundle
    vocabulary = None if bundle is None else bundle.vocabulary
    catalogue = latest_items(store, day)
    assortment = make_assortment(vocabulary, catalogue)
    if vocabulary is not None:
        tell_of_gone_items(assortment, catalogue)
    vectors_ID = None if bundle is None else item_vectors(bundle)
    indexes: dict[bytes, ItemIndex] = {}
    if served is not None and vectors_ID is not None:
        indexes = make_indexes(site, store, day, served, assortment, vectors_ID)
    plans = plan_channels(site, assortment, indexes, dict.fromkeys(site.export.all_channels(), popular))
    related = relate(site, store, day, assortment, vectors_ID)
    return ListMaker(plans, assortment, bundle, vectors_ID, related)


def tell_of_gone_items(assortment: Assortment, catalogue: pl.DataFrame) -> None:
    """Warn where half of the items are not the model's any more: it is too old, or another site's."""
    num_items = catalogue["item_id"].n_unique()
    num_known = catalogue.filter(
        pl.col("item_id").is_in(assortment.item_ids.slice(1, assortment.num_known - 1).implode())
    )["item_id"].n_unique()
    if num_known * 2 < num_items:
        log.warning(
            "the model knows %d of %d items; the others stand in lists as popular ones only. Train it again, or lower "
            "window.min_item_count",
            *(num_known, num_items),
        )


def make_indexes(
    site: TrainingSite, store: Store, day: date, served: Served, assortment: Assortment, vectors_ID: Vectors
) -> dict[bytes, ItemIndex]:
    """An index for each set of items that channels allow, by its mask; and the saved one of all items."""
    channels = site.export.all_channels().values()
    everything = np.arange(assortment.num_known) > 0
    masks = [everything, *(assortment.allowed(channel)[: assortment.num_known] for channel in channels)]
    longest = max(channel.top_n or 0 for channel in channels)
    dimension = vectors_ID.shape[1]
    is_exact = all(factory_of(site.export.index, int(mask.sum()), dimension) == EXACT for mask in masks)
    queries_RD = vectors_ID[:0] if is_exact else some_vectors(site, store, day, served.bundle, assortment, vectors_ID)
    indexes = {}
    for mask in masks:
        codes = np.flatnonzero(mask)
        if mask.tobytes() not in indexes and len(codes):
            wanted, least = site.export.index, site.export.index_recall
            indexes[mask.tobytes()] = choose_index(vectors_ID, codes, wanted, least, queries_RD, longest)
    saved = save_index(indexes[everything.tobytes()], served.bundle, served.version, store)
    return indexes | {everything.tobytes(): saved}


def some_vectors(
    site: TrainingSite, store: Store, day: date, bundle: Bundle, assortment: Assortment, vectors_ID: Vectors
) -> Vectors:
    """(R, D) of some users, of the first buckets that have any."""
    parts: list[Vectors] = []
    for bucket in range(site.buckets):
        users = read_bucket(site, store, day, bucket, assortment, [], bundle.vocabulary.definitions)
        sequences = users.sequences(0, min(users.size, NUM_QUERIES), assortment.num_known, reads_users(bundle.recipe))
        vectors_UD = session_vectors(bundle, sequences, vectors_ID.shape[1])
        parts.append(vectors_UD[np.isfinite(vectors_UD).all(1)])
        if sum(map(len, parts)) >= NUM_QUERIES:
            break
    return np.concatenate(parts)[:NUM_QUERIES]


@dataclass(frozen=True)
class FilledBucket:
    """A bucket whose lists are made, and nowhere written."""

    users: BucketUsers
    slabs: list[Slab]
    explained: dict[str, int]
    """Users of channels that ask for influence, by whether they were in time; empty where none asks."""


def explain_slabs(maker: ListMaker, users: BucketUsers, slabs: list[Slab], budget: Budget) -> dict[str, int]:
    """Find what led to the model's items of a bucket, in the channels that ask, within its share of the time."""
    asking = [place for place, plan in enumerate(maker.channels) if plan.by_influence]
    if not asking or maker.bundle is None:
        return {}
    of_bucket = Budget(budget.next_deadline() - time.monotonic(), len(slabs))
    counts: Counter[str] = Counter(users_explained=0, users_out_of_time=0)
    start = 0
    for slab in slabs:
        sequences, lists = maker.read(users, start, start + slab.num_users), [slab.lists[place] for place in asking]
        if sequences is not None:
            counts.update(find_because(maker.bundle, sequences, lists, of_bucket.next_deadline()))
        of_bucket.part_done()
        start += slab.num_users
    budget.part_done()
    return dict(counts)


def make_lists(site: TrainingSite, store: Store, day: date, maker: ListMaker, progress: Progress) -> list[StagedBucket]:
    """Stage every bucket that no killed export has staged; while one is written, the next one is filled."""
    tables: list[Table] = [RECOMMENDATIONS, *([TRIGGERS] if site.export.triggers.names() else [])]
    tables += [SESSION_INTENTS] if tells_intents(maker.bundle) else []
    done = {bucket: progress.read(bucket, tables) for bucket in range(site.buckets)}
    left = [bucket for bucket, staged in done.items() if staged is None]
    if len(left) < site.buckets:
        log.info("%d of %d buckets were staged by an export that did not end", site.buckets - len(left), site.buckets)
    rules = {plan.seen for plan in maker.channels}
    definitions = None if maker.bundle is None else maker.bundle.vocabulary.definitions
    tell_of_gone_columns(site, definitions)
    budget = Budget(site.export.reasons_within.total_seconds(), len(left))

    def fill(bucket: int) -> FilledBucket:
        users = read_bucket(site, store, day, bucket, maker.assortment, rules, definitions)
        slabs = list(maker.slabs(users))
        return FilledBucket(users, slabs, explain_slabs(maker, users, slabs, budget))

    filled = track(side_by_side(fill, left, workers=1), "filling lists", len(left))
    for bucket, lists in zip(left, filled, strict=True):
        done[bucket] = finish_bucket(site, store, day, bucket, lists, maker, progress)
    return [staged for staged in done.values() if staged is not None]


def finish_bucket(
    site: TrainingSite,
    store: Store,
    day: date,
    bucket: int,
    filled: FilledBucket,
    maker: ListMaker,
    progress: Progress,
) -> StagedBucket:
    """Stage the lists, triggers and intents of a bucket."""
    users, rules = filled.users, site.export.triggers
    in_bucket = pl.lit(bucket, pl.Int64).alias("user_bucket")
    files: dict[str, list[StagedFile]] = {RECOMMENDATIONS.name: []}
    counts = dict.fromkeys(("users", "users_with_popular_only", "rows"), 0)
    for slab in filled.slabs:
        rows = slab.rows
        files[RECOMMENDATIONS.name] += store.stage(RECOMMENDATIONS, rows.with_columns(in_bucket), in_order=True)
        found = (slab.num_users, slab.num_popular_only, rows.height)
        counts = {name: count + more for (name, count), more in zip(counts.items(), found, strict=True)}
    counts |= filled.explained
    if rules.names():
        found_rows = find_triggers(users.events, rules, maker.assortment.allowed(rules), day_end(day, site.time_zone))
        files[TRIGGERS.name] = store.stage(TRIGGERS, found_rows.with_columns(in_bucket))
    if maker.bundle is not None and tells_intents(maker.bundle):
        told = find_intents(maker.bundle, users, maker.assortment.num_known)
        files[SESSION_INTENTS.name] = store.stage(SESSION_INTENTS, told.with_columns(in_bucket))
    return progress.write(bucket, files, counts)


def publish_companions(
    site: TrainingSite, store: Store, day: date, maker: ListMaker, made: list[StagedBucket]
) -> dict[str, int]:
    """Publish what is read beside the lists; return the version of each table."""
    told = {"data_through": day}
    popular = pl.concat(
        [plan.popular.rows(maker.assortment, plan.rules.name, plan.rules.top_n) for plan in maker.channels]
    )
    versions = {POPULAR_ITEMS.name: store.replace(POPULAR_ITEMS, popular, {}, told)}
    if maker.related is not None:
        rows = maker.related.rows(maker.assortment)
        versions[RELATED_ITEMS.name] = store.replace(RELATED_ITEMS, rows, {}, told)
    buckets = {"user_bucket": list(range(site.buckets))}
    is_made = ((TRIGGERS, bool(site.export.triggers.names())), (SESSION_INTENTS, tells_intents(maker.bundle)))
    for table in (table for table, is_so in is_made if is_so):
        files = [file for part in made for file in part.files[table.name]]
        versions[table.name] = store.commit(table, files, buckets, told)
    return {f"{name}_version": version for name, version in versions.items()}


def release_facts(site: TrainingSite, store: Store, day: date, served: Served | None) -> dict[str, Any]:
    """What the commit of a release says of it."""
    return {
        "model_version": NO_MODEL if served is None else served.version,
        "run_id": NO_MODEL if served is None else served.run_id,
        "data_through": day,
        "generated_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "valid_until": day_end(day + ONE_DAY, site.time_zone).isoformat(timespec="seconds"),
        "items_version": store.version(ITEMS),
        "sessions_version": store.version(sessions_table(site.source.context)),
        "days_version": store.version(DAYS),
        "files_version": store.version(FILES),
        "site_file_sha256": site.file_sha256,
        **code_version(),
    }


def inputs(site: TrainingSite, store: Store, day: date, served: Served | None) -> list[object]:
    """All that the staged lists depend on."""
    days = passed_days(store, date.min, day)
    return [
        *(LISTS_MADE_BY, day, None if served is None else (served.version, served.bundle.sha256)),
        None if served is None else served.bundle.vocabulary.digest(),
        *(site.export.model_dump_json(), site.time_zone, site.window.model_dump_json(), site.buckets, USERS_IN_SLAB),
        *(data_digest(store, days), store.version(ITEMS), store.version(FORGOTTEN)),
    ]


def total(counts: Iterable[dict[str, int]]) -> Counter[str]:
    """Counts added up."""
    found: Counter[str] = Counter()
    for part in counts:
        found.update(part)
    return found
