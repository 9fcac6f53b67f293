"""Where a user's lists come from: release, model, runs, days with their verdicts, raw files, code, site file.

Reads   the release and its commit, MLflow, `days` and `files` as they were when it was published, `events`

What a release or a run did not record, because it is older than the record, is None, and said to be.
"""

from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, date, datetime
from typing import Any

import polars as pl
from deltalake.exceptions import DeltaError
from mlflow.exceptions import MlflowException
from polars.exceptions import PolarsError

from features.histories import first_day, listed_user
from features.window import data_digest
from pipeline.code_version import code_version
from pipeline.dates import days_between
from pipeline.days import passed_days, present_content
from pipeline.errors import ConfigurationError, RetryableError
from pipeline.forgotten import REASON, hash_of
from pipeline.ids import ANONYMOUS
from pipeline.publish import Store
from pipeline.tables import DAYS, FILES, FORGOTTEN, REJECTED, Table, events_table
from serving_export.reader import Recommendations, bucket_of
from training.settings import TrainingSite
from training.tracking import Tracking

Facts = dict[str, Any]
CODE = ("nightjar", "code_commit", "site_file_sha256")


def lineage(site: TrainingSite, store: Store, name: str, channel: str | None, version: int | None) -> Facts:
    """All that made a visitor's lists in a release, by default the one that readers see, in a channel or in all.

    `name` is how the tables know the visitor. Of one who was forgotten, the model versions that may have learnt from
    them.

    Raises ConfigurationError where there is no such release or channel, or the user has no list in it.
    """
    store = store.pinned()
    forgotten = store.scan(FORGOTTEN).collect()
    themselves = forgotten.filter(pl.col("user") == hash_of(pl.lit(name)))
    told: Facts = {"site": site.name, "user_id": name, "is_forgotten": not themselves.is_empty()}
    if told["is_forgotten"]:
        return told | {"models": versions_that_learnt(Tracking(site), store, themselves)}
    try:
        lists = Recommendations(store.root, version, when_stale="ignore")
        rows = listed_rows(lists, name, channel)
    except LookupError as error:
        raise ConfigurationError(str(error)) from error
    if rows.is_empty():
        raise ConfigurationError(
            f"{site.name}: {name.removeprefix(ANONYMOUS)!r} has no list in version {lists.facts['table_version']}"
            f"{f', channel {channel}' if channel else ''}. `nightjar history` lists the versions"
        )
    told |= {"rows": rows.to_dicts(), "release": lists.facts}
    model = model_of(site, store, lists.facts, forgotten)
    days = used_days(site, lists.facts, model)
    return told | {
        "model": model,
        "days": day_rows(store, lists.facts, days),
        "files": file_rows(site, store, lists.facts, days, name),
        "data_is_unchanged": is_unchanged(site, store, model),
        "now": code_version() | {"site_file_sha256": site.file_sha256 or None},
    }


def listed_rows(lists: Recommendations, user: str, channel: str | None) -> pl.DataFrame:
    """The user's rows, of one channel or of all; LookupError for a channel that the release does not have."""
    if channel is not None:
        lists.channel(channel)
    bucket = bucket_of(user, int(lists.site["buckets"]))
    here = pl.scan_delta(lists.table).filter(pl.col("user_bucket") == bucket, pl.col("user_id") == user)
    wanted = here if channel is None else here.filter(pl.col("channel") == channel)
    columns = ("channel", "rank", "item_id", "score", "source", "because", "session_id")
    return wanted.select(columns).sort("channel", "rank").collect()


def model_of(site: TrainingSite, store: Store, release: Mapping[str, Any], forgotten: pl.DataFrame) -> Facts | None:
    """The version that made a release, its run, and of a refit its champion; None for a release of popular lists."""
    if release["model_version"] in (None, "none"):
        return None
    tracking = Tracking(site)

    def facts_of(version: str) -> Facts:
        facts = version_facts(tracking, version)
        return facts | {"forgotten_since": forgotten_since(store, facts, forgotten)}

    model = facts_of(str(release["model_version"]))
    parent = model.get("tags", {}).get("parent_version")
    return model | {"champion": facts_of(parent) if parent else None}


def versions_that_learnt(tracking: Tracking, store: Store, themselves: pl.DataFrame) -> list[Facts]:
    """The registered versions that may have learnt from a forgotten visitor, newest first; each with its window."""
    found = [version_facts(tracking, str(version.version)) for version in tracking.versions(withdrawn=True)]
    wanted = ("version", "name", "run_id", "window")
    return [
        {name: facts.get(name) for name in wanted} for facts in found if forgotten_since(store, facts, themselves) != 0
    ]


def forgotten_since(store: Store, facts: Facts, forgotten: pl.DataFrame) -> int | None:
    """How many of the forgotten visitors a version may have learnt from; None where MLflow does not tell its run.

    The list of the forgotten holds no ids and no days. A version may have learnt from those who were forgotten after
    its run began, or whose rows are still being removed, if days of its window hold rows that were blanked as theirs:
    never fewer than it has learnt from.
    """
    if "began" not in facts:
        return None
    later = forgotten.filter((pl.col("requested_at") > facts["began"]) | (pl.col("open_days").list.len() > 0))
    first, last = (facts["window"][name] for name in ("first_day", "last_day"))
    if later.is_empty() or not (first and last):
        return later.height
    blanked = store.scan(REJECTED).filter(
        pl.col("event_date").is_between(date.fromisoformat(first), date.fromisoformat(last)), pl.col("reason") == REASON
    )
    return 0 if blanked.head(1).collect().is_empty() else later.height


def version_facts(tracking: Tracking, version: str) -> Facts:
    """A version with its tags and its run's parameters and tags; what MLflow no longer has is left out."""
    found: Facts = {"version": int(version), "name": tracking.model_name}
    with suppress(MlflowException):
        model = tracking.client.get_model_version(tracking.model_name, version)
        found |= {"run_id": model.run_id, "tags": dict(model.tags)}
        whole = tracking.client.get_run(model.run_id)
        run = whole.data
        found |= {"began": datetime.fromtimestamp(whole.info.start_time / 1000, UTC)}
        window = {name: run.params.get(f"window_{name}") for name in ("first_day", "last_day")}
        found |= {"window": window, "code": {name: run.tags.get(name) for name in CODE}}
        found["data_digest"] = run.tags.get("data_digest")
    return found


def stages(model: Facts | None) -> list[tuple[str, Facts]]:
    """What a model was made in, the last one first: a refit and the training of its champion, or one training."""
    if model is None:
        return []
    champion = model.get("champion")
    return [("refit", model), ("training", champion)] if champion else [("training", model)]


def used_days(site: TrainingSite, release: Mapping[str, Any], model: Facts | None) -> dict[date, list[str]]:
    """Each day that had a part in the lists, and in what."""
    last = date.fromisoformat(str(release["data_through"]))
    spans = {"lists": (first_day(site, last, site.export.active_within), last)}
    for stage, facts in stages(model):
        first, end = (facts.get("window", {}).get(name) for name in ("first_day", "last_day"))
        if first and end:
            spans[stage] = (date.fromisoformat(first), date.fromisoformat(end))
    found: dict[date, list[str]] = {}
    for use, (first, end) in spans.items():
        for day in days_between(first, end):
            found.setdefault(day, []).append(use)
    return found


def as_published(store: Store, table: Table, version: Any, wanted: pl.Expr) -> tuple[pl.DataFrame, bool]:
    """Rows of a table as it was when a release was published, and whether it still is there so; else as it is now."""
    if version is not None:
        with suppress(DeltaError, PolarsError, OSError, RetryableError):
            return store.scan(table, int(version)).filter(wanted).collect(), True
    return store.scan(table).filter(wanted).collect(), False


def day_rows(store: Store, release: Mapping[str, Any], days: Mapping[date, list[str]]) -> list[Facts]:
    """The verdict and the counts of each known day; `is_as_published`: as they were then."""
    is_wanted = pl.col("event_date").is_in(list(days))
    rows, is_then = as_published(store, DAYS, release["days_version"], is_wanted)
    is_about = (pl.col("validated_content") == present_content()).fill_null(False)
    shown = rows.sort("event_date").select(
        "event_date",
        pl.when(is_about).then("verdict").otherwise(pl.lit("outdated")).alias("verdict"),
        *("num_warnings", "num_events", "num_sessions", "validated_content"),
    )
    return [
        row | {"used_in": days[row["event_date"]], "is_as_published": is_then} for row in shown.iter_rows(named=True)
    ]


def file_rows(
    site: TrainingSite, store: Store, release: Mapping[str, Any], days: Mapping[date, list[str]], user: str
) -> list[Facts]:
    """The raw files that hold these days, with sha256, and how many of the user's events each one told."""
    wanted = pl.col("event_date").is_in(list(days))
    rows, is_then = as_published(store, FILES, release["files_version"], wanted)
    events = store.scan(events_table(site.source.context)).filter(
        pl.col("event_date").is_in(list(days)),
        pl.col("user_bucket") == bucket_of(user, site.buckets),
        listed_user(site) == user,
    )
    theirs = events.group_by(path="source_file").agg(events_of_user=pl.len().cast(pl.Int64)).collect()
    files = rows.group_by("path", "sha256", "size", "delivery_date").agg(
        pl.col("events").sum(), first_day=pl.col("event_date").min(), last_day=pl.col("event_date").max()
    )
    joined = files.join(theirs, on="path", how="left").with_columns(pl.col("events_of_user").fill_null(0))
    ordered = joined.sort("delivery_date", "path", nulls_last=True)
    return [row | {"is_as_published": is_then} for row in ordered.iter_rows(named=True)]


def is_unchanged(site: TrainingSite, store: Store, model: Facts | None) -> dict[str, bool | None]:
    """By stage whether the days that it learnt from are still what they were; None where that is not known."""
    found: dict[str, bool | None] = {}
    for stage, facts in stages(model):
        first, last = (facts.get("window", {}).get(name) for name in ("first_day", "last_day"))
        told = facts.get("data_digest")
        if not (first and last and told):
            found[stage] = None
            continue
        days = passed_days(store, date.fromisoformat(first), date.fromisoformat(last))
        found[stage] = data_digest(store, days, site.window.min_item_count) == told
    return found
