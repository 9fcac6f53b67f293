"""Fill and publish the lists of every active user.

Reads   the newest version that has seen nothing after the day, `events`, `sessions`, `items`
Writes  the item index, `popular_items`, `recommendations` (one commit, made last)

Users that the model cannot serve, and lists that it cannot fill, get popular items, marked `popular` in `source`.
"""

import json
from datetime import UTC, date, datetime
from typing import Any

import polars as pl
from mlflow.entities.model_registry import ModelVersion

from features.histories import active_events, last_events, last_sessions
from features.window import check_passed
from pipeline.dates import ONE_DAY, day_end
from pipeline.errors import ConfigurationError
from pipeline.publish import StagedFile, Store
from pipeline.tables import ITEMS, sessions_table
from pipeline.terminal import log, track
from serving_export.item_index import build_index
from serving_export.popular import popular_items
from serving_export.quality import check_release
from serving_export.tables import POPULAR_ITEMS, RECOMMENDATIONS
from training.bundle import Bundle
from training.lists import fill_lists
from training.measure import seen_before
from training.models.base import Recommender, SessionModel
from training.settings import TrainingSite
from training.tracking import Tracking, data_through, number

CHANNEL = "home"


def export(site: TrainingSite, store: Store, day: date) -> dict[str, Any]:
    """Publish the lists of the evening of `day`; return users, rows and the table's version."""
    tracking = Tracking(site)
    version = served_version(tracking, day)
    check_passed(site, store, day)
    bundle = tracking.load(version)
    recommender: Recommender = bundle.recommender
    if isinstance(recommender, SessionModel):
        recommender = build_index(bundle, number(version), store)
    base = store.version(RECOMMENDATIONS) or 0
    popular = popular_items(site, store, day)
    shown = popular.head(site.export.top_n).with_columns(channel=pl.lit(CHANNEL))
    popular_version = store.replace(POPULAR_ITEMS, shown, {}, {"data_through": day})
    staged: list[StagedFile] = []
    counts = {"users": 0, "users_with_popular_only": 0, "rows": 0}
    for bucket in track(range(site.buckets), "filling lists"):
        rows = lists_of_bucket(site, store, bundle, recommender, popular, day, bucket)
        staged += store.stage(RECOMMENDATIONS, rows)
        by_user = rows.group_by("user_id").agg(is_popular=(pl.col("source") == "popular").all())
        counts["users"] += by_user.height
        counts["users_with_popular_only"] += by_user.filter("is_popular").height
        counts["rows"] += rows.height
    quality = check_release(site, store, staged, day, has_model=True)
    metadata = {
        "model_version": number(version),
        "run_id": version.run_id,
        "data_through": day,
        "generated_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "valid_until": day_end(day + ONE_DAY, site.time_zone).isoformat(timespec="seconds"),
        "popular_items_version": popular_version,
        "items_version": store.version(ITEMS),
        "sessions_version": store.version(sessions_table(site.source.context)),
        "users": counts["users"],
        "rows": counts["rows"],
        "quality": json.dumps(quality),
        "metrics": json.dumps(champion_metrics(tracking, version)),
    }
    table_version = store.commit(RECOMMENDATIONS, staged, {"user_bucket": list(range(site.buckets))}, metadata, base)
    log.info("exported %d users, %d rows", counts["users"], counts["rows"])
    return {**counts, "model_version": number(version), "table_version": table_version}


def served_version(tracking: Tracking, day: date) -> ModelVersion:
    """The newest refit, else champion, that has seen nothing after `day`; found by tags, never by alias."""
    versions = [v for v in tracking.versions() if v.tags["kind"] == "refit" or v.tags.get("promoted")]
    fitting = [v for v in versions if data_through(v) <= day]
    if not fitting:
        raise ConfigurationError(
            f"{tracking.site.name}: no model has been promoted for {day}. "
            "Run `nightjar train`, `nightjar promote` and `nightjar refit` first"
        )
    return max(fitting, key=lambda v: (data_through(v), v.tags["night"], number(v)))


def champion_metrics(tracking: Tracking, version: ModelVersion) -> dict[str, float]:
    """What the served model, or the one that it is a refit of, was measured to do."""
    parent = version.tags.get("parent_version")
    trained = tracking.client.get_model_version(version.name, parent) if parent else version
    found = tracking.client.get_run(trained.run_id).data.metrics
    k = max(tracking.site.training.metric_ks)
    told = (tracking.site.training.champion_metric, f"all/next_recall_at_{k}", f"list/any_recall_at_{k}")
    return {name: round(found[name], 6) for name in dict.fromkeys(told) if name in found}


def lists_of_bucket(
    site: TrainingSite,
    store: Store,
    bundle: Bundle,
    recommender: Recommender,
    popular: pl.DataFrame,
    day: date,
    bucket: int,
) -> pl.DataFrame:
    """Rows of `recommendations` of one bucket."""
    rules = site.export
    events = active_events(site, store, day, rules.active_within, bucket)
    histories = last_events(events, rules.input.last_events)
    seen = seen_before(site, store, day, bucket, histories)
    lists = fill_lists(recommender, bundle.as_of, bundle.vocabulary, histories, seen, rules.top_n)
    ids = bundle.vocabulary.item_ids().to_frame("item_id").with_row_index("item_code").cast({"item_code": pl.Int64})
    empty = pl.DataFrame(schema={"user_id": pl.String, "rank": pl.Int64, "item_code": pl.Int64, "score": pl.Float64})
    modelled = pl.concat([empty, *lists]).join(ids, on="item_code", how="left").drop("item_code")
    filled = pl.concat(
        [modelled.with_columns(source=pl.lit("model")), fill_up(modelled, histories, seen, popular, rules.top_n)]
    )
    because = histories.select("user_id", because=pl.col("item_ids").list.last())
    sessions = last_sessions(site, store, day, rules.active_within, bucket)
    return (
        filled.join(because, on="user_id", how="left")
        .join(histories.select("user_id", "visitor"), on="user_id", how="left")
        .join(sessions, on="visitor", how="left")
        .with_columns(
            user_bucket=pl.lit(bucket, pl.Int64),
            channel=pl.lit(CHANNEL),
            because=pl.when(pl.col("source") == "model").then("because"),
        )
    )


def fill_up(
    modelled: pl.DataFrame, histories: pl.DataFrame, seen: pl.DataFrame, popular: pl.DataFrame, n: int
) -> pl.DataFrame:
    """Popular items behind lists that are shorter than `n`, without what is in the list or was seen."""
    lengths = modelled.group_by("user_id").agg(length=pl.len().cast(pl.Int64))
    known = histories.select("user_id").join(lengths, on="user_id", how="left").fill_null(0)
    short = known.filter(pl.col("length") < n)
    num_seen = seen.join(short, on="user_id", how="semi").group_by("user_id").len().select(pl.col("len").max()).item()
    enough = popular.head(2 * n + (num_seen or 0)).select("item_id", "score", popular_rank="rank")
    offered = short.join(enough, how="cross").join(modelled, on=["user_id", "item_id"], how="anti")
    new = offered.join(seen, on=["user_id", "item_id"], how="anti")
    place = pl.col("popular_rank").rank("ordinal").over("user_id").cast(pl.Int64)
    ranked = new.with_columns(rank=pl.col("length") + place).filter(pl.col("rank") <= n)
    return ranked.select("user_id", "rank", "score", "item_id", source=pl.lit("popular"))
