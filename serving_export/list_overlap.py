"""How much of each user's list stood in the list of the release before."""

import polars as pl

from pipeline.terminal import track
from serving_export.reader import Recommendations


def list_overlap(now: Recommendations, before: Recommendations) -> dict[str, float]:
    """By channel: the share of the longer list that both have, a mean over the users who have both."""
    parts = [
        overlap_of_bucket(now, before, bucket) for bucket in track(range(int(now.site["buckets"])), "comparing lists")
    ]
    totals = pl.concat(parts).group_by("channel").agg(pl.col("shares").sum(), pl.col("users").sum()).sort("channel")
    return {row["channel"]: row["shares"] / row["users"] for row in totals.iter_rows(named=True)}


def overlap_of_bucket(now: Recommendations, before: Recommendations, bucket: int) -> pl.DataFrame:
    """Of a bucket's users with two lists, by channel: the sum of their shares, and how many they are.

    Users and items go by 64-bit hashes, which take a fraction of the memory of their names.
    """
    key = ["channel", "user"]
    one, other = (
        pl.scan_delta(lists.table)
        .filter(pl.col("user_bucket") == bucket)
        .select("channel", user=pl.col("user_id").hash(), item=pl.col("item_id").hash())
        for lists in (now, before)
    )
    lengths = one.group_by(key).len("now").join(other.group_by(key).len("before"), on=key)
    shared = one.join(other, on=[*key, "item"]).group_by(key).len("shared")
    longer = pl.max_horizontal("now", "before")
    shares = lengths.join(shared, on=key, how="left").select("channel", share=pl.col("shared").fill_null(0) / longer)
    return (
        shares.group_by("channel")
        .agg(shares=pl.col("share").sum(), users=pl.len().cast(pl.Int64))
        .collect(engine="streaming")
    )
