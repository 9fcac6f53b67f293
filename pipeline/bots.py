"""Tell visitors that are no people by what they did in one event day.

The rules are constants of the site file (`source.bots`); they look at all events of a visitor's day, exact duplicates
left out, so the verdict does not depend on the order in which files came. The first rule that holds is told:
user_agent, events_per_day, events_per_minute, distinct_items_share.
"""

from typing import Any

import polars as pl

from pipeline.settings import Bots

VISITOR_DAY = ("visitor", "event_date")
TOLD_AGENT = "told_agent"
"""The column of candidates that holds what a visitor's program calls itself."""
RULES = ("user_agent", "events_per_day", "events_per_minute", "distinct_items_share")
MEASURES = RULES[1:]
QUANTILES = {"50 %": 0.5, "90 %": 0.9, "99 %": 0.99, "99.9 %": 0.999, "99.99 %": 0.9999, "max": 1.0}


def find_bots(events: pl.DataFrame, bots: Bots) -> pl.DataFrame:
    """The visitors and days that break a rule: visitor, event_date, detail (the rule and the value that broke it)."""
    found = measure(events, fewest_events(bots)).join(
        self_told(events, bots), on=VISITOR_DAY, how="full", coalesce=True
    )
    details = [pl.when(broken).then(detail) for broken, detail in broken_rules(bots)]
    judged = found.select(*VISITOR_DAY, detail=pl.coalesce(pl.lit(None, pl.String), *details))
    return judged.drop_nulls("detail")


def broken_rules(bots: Bots) -> list[tuple[pl.Expr, pl.Expr]]:
    """Per rule that is on: whether a measured visitor's day breaks it, and how to tell that."""
    told = [(pl.col(TOLD_AGENT).is_not_null(), pl.format("user_agent: {}", TOLD_AGENT))] if bots.user_agent else []
    for name in ("events_per_day", "events_per_minute"):
        if (limit := getattr(bots, name)) is not None:
            told.append((pl.col(name) > limit, pl.format(f"{name}: {{}} > {limit}", name)))
    if (share := bots.distinct_items_share) is not None:
        broken = (pl.col("events_per_day") >= bots.distinct_items_from) & (pl.col("distinct_items_share") >= share)
        value = pl.col("distinct_items_share").round(4)
        detail = pl.format(f"distinct_items_share: {{}} >= {share} in {{}} events", value, "events_per_day")
        told.append((broken, detail))
    return told


def fewest_events(bots: Bots) -> int:
    """With fewer events in a day a visitor breaks no rule, so it needs no measuring."""
    limits = [limit + 1 for limit in (bots.events_per_day, bots.events_per_minute) if limit is not None]
    if bots.distinct_items_share is not None:
        limits.append(bots.distinct_items_from)
    return min(limits, default=2**62)


def measure(events: pl.DataFrame, fewest: int = 1) -> pl.DataFrame:
    """Visitors' days of at least so many events: visitor, event_date and the MEASURES."""
    # A hash of visitors is quick to count by, and tells nearly all of them apart.
    busy = events.filter(pl.len().over(pl.col("visitor").hash()) >= fewest) if fewest > 1 else events
    days = busy.group_by(VISITOR_DAY).agg(events_per_day=pl.len().cast(pl.Int64))
    days = days.filter(pl.col("events_per_day") >= fewest)
    near = busy.join(days, on=VISITOR_DAY, how="semi")
    minute = pl.col("occurred_at").dt.truncate("1m")
    minutes = near.group_by(*VISITOR_DAY, minute=minute).agg(n=pl.len().cast(pl.Int64))
    fastest = minutes.group_by(VISITOR_DAY).agg(events_per_minute=pl.col("n").max())
    distinct = near.group_by(VISITOR_DAY).agg(num_items=pl.col("item_id").n_unique())
    return (
        days.join(fastest, on=VISITOR_DAY)
        .join(distinct, on=VISITOR_DAY)
        .with_columns(distinct_items_share=pl.col("num_items") / pl.col("events_per_day"))
        .drop("num_items")
    )


def self_told(events: pl.DataFrame, bots: Bots) -> pl.DataFrame:
    """Visitors' days with an event whose program calls itself a bot, and the first such name in the alphabet."""
    if bots.user_agent is None:
        return events.select(*VISITOR_DAY, pl.lit(None, pl.String).alias(TOLD_AGENT)).clear()
    names = events.select(pl.col(TOLD_AGENT).unique()).filter(pl.col(TOLD_AGENT).str.contains(bots.user_agent.pattern))
    return events.join(names, on=TOLD_AGENT, how="semi").group_by(VISITOR_DAY).agg(pl.col(TOLD_AGENT).min())


def suggest(days: pl.DataFrame, bots: Bots) -> list[dict[str, Any]]:
    """What a limit at some quantiles of each measure would cut: a row for each measure and quantile.

    `days` are visitors' days, measured. The share of distinct items is told of those with enough events to have one.
    """
    num_events = max(int(days["events_per_day"].sum()), 1)
    told = []
    for name in MEASURES:
        is_share = name == "distinct_items_share"
        judged = days.filter(pl.col("events_per_day") >= bots.distinct_items_from) if is_share else days
        for quantile, share in QUANTILES.items() if judged.height else ():
            limit = judged[name].quantile(share, "higher")
            cut = judged.filter(pl.col(name) >= limit if is_share else pl.col(name) > limit)
            facts = {"measure": name, "quantile": quantile, "limit": limit if is_share else int(limit or 0)}
            told.append(facts | {"visitors": cut.height, "events": int(cut["events_per_day"].sum()) / num_events})
    return told
