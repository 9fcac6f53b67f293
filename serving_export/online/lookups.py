"""Questions that the release answers: who has lists, what somebody was shown, what goes with an item."""

from typing import Any

import numpy as np
import polars as pl

from features.histories import listed_id
from pipeline.ids import ANONYMOUS
from pipeline.publish import Store
from serving_export.filling import SOURCES
from serving_export.loaded import Loaded
from serving_export.online.versions import Edition
from serving_export.reader import bucket_of
from serving_export.tables import SESSION_INTENTS
from training.settings import TrainingSite

HIGHEST = "\U0010ffff"


def find_users(edition: Edition, query: str, limit: int) -> list[str]:
    """Users with a list whose id begins so; on a site that hashes ids, the one whose id this is.

    On a site without user ids these are the session ids of its visitors.
    """
    if edition.lists is None:
        return []
    mark = "" if has_users(edition) else ANONYMOUS
    begin = edition.lists.known_as(query) if is_hashed(edition) and query else mark + query
    if is_hashed(edition) and not query:
        return []
    rows = edition.lists.rows().filter(
        pl.col("rank") == 1, pl.col("user_id") >= begin, pl.col("user_id") < begin + HIGHEST
    )
    first = next(iter(sorted(edition.loaded.plans)))
    found = rows.filter(pl.col("channel") == first).select("user_id").head(limit).collect()["user_id"].to_list()
    return [query] * len(found) if is_hashed(edition) else [name.removeprefix(mark) for name in found]


def has_users(edition: Edition) -> bool:
    """Whether the log has user ids; else lists are those of anonymous visitors, by their session ids."""
    return edition.loaded.site.source.columns.user_id is not None


def is_hashed(edition: Edition) -> bool:
    """Whether the store keeps no user ids."""
    return edition.lists is not None and edition.lists.site["user_id_secret"] is not None


def exported_lists(edition: Edition, user_id: str) -> dict[str, list[dict[str, Any]]]:
    """Last night's lists of a user, by channel; nothing for a user without any."""
    if edition.lists is None:
        return {}
    found = edition.lists.user(user_id) if has_users(edition) else edition.lists.session(user_id)
    rows = found.select("channel", "rank", "item_id", "score", "source", "because")
    return {
        str(name): part.drop("channel").to_dicts() for (name,), part in rows.group_by("channel", maintain_order=True)
    }


def users_with_lists(edition: Edition, bucket: int) -> pl.Series:
    """The users of a bucket, as the tables know them, who have lists."""
    assert edition.lists is not None, "only a release has lists"
    rows = pl.scan_delta(edition.lists.table).filter(pl.col("user_bucket") == bucket, pl.col("rank") == 1)
    return rows.select(pl.col("user_id").unique()).collect()["user_id"]


def exported_intents(
    site: TrainingSite, store: Store, edition: Edition, user_id: str
) -> dict[str, list[dict[str, Any]]]:
    """What a user's next event is for, as of last night, by intent; nothing for a user of whom that is not told."""
    if edition.intents_version is None:
        return {}
    known = listed_id(site, user_id)
    in_bucket = pl.col("user_bucket") == bucket_of(known, site.buckets)
    rows = store.scan(SESSION_INTENTS, edition.intents_version).filter(in_bucket, pl.col("user_id") == known)
    found = rows.sort("intent", "rank").select("intent", "probability", value="label").collect()
    return {
        str(name): part.drop("intent").to_dicts() for (name,), part in found.group_by("intent", maintain_order=True)
    }


def users_with_intents(store: Store, version: int, bucket: int) -> pl.Series:
    """The users of a bucket, as the tables know them, of whom `session_intents` tells something."""
    rows = store.scan(SESSION_INTENTS, version).filter(pl.col("user_bucket") == bucket)
    return rows.select(pl.col("user_id").unique()).collect()["user_id"]


def popular_items(loaded: Loaded, channel: str, n: int) -> list[dict[str, Any]]:
    """What a channel shows to who is not known."""
    rows = loaded.plans[channel].popular.rows(loaded.assortment, channel, n).filter(pl.col("segment") == "all")
    return rows.select("rank", "item_id", "score", source=pl.lit("popular")).to_dicts()


def related_items(edition: Edition, item_id: str, n: int) -> list[dict[str, Any]] | None:
    """What goes with an item, best first; None for an item of which nothing is known."""
    code, related = edition.loaded.codes.get(item_id), edition.related
    if code is None:
        return None
    if related is None:
        return []
    codes = related.codes_AM[code]
    length = min(int((codes > 0).sum()), n)
    ids = edition.loaded.assortment.item_ids.gather(codes[:length].astype(np.int64))
    scores, sources = related.scores_AM[code, :length].tolist(), related.sources_AM[code, :length].tolist()
    return [
        {"rank": rank, "item_id": other, "score": score, "source": SOURCES[source]}
        for rank, (other, score, source) in enumerate(zip(ids, scores, sources, strict=True), 1)
    ]
