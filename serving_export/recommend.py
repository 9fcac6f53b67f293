"""Score one session of raw item ids with the model that serves, or fall back to popular items and say so."""

from typing import Any

import numpy as np
import polars as pl

from features.sequences import Integers, Sequences
from pipeline.errors import ConfigurationError
from pipeline.publish import Store
from serving_export.popular import EVERYONE
from serving_export.tables import POPULAR_ITEMS
from training.bundle import Bundle
from training.reasons import leave_one_out
from training.score import count_unknown, score_sessions
from training.settings import TrainingSite
from training.tracking import Tracking, number

NUM_REASONS = 3


def recommend(
    site: TrainingSite, store: Store, sessions: list[list[str]], top: int, explain: bool = False
) -> list[dict[str, Any]]:
    """The best `top` items after each session (oldest item first): items, how many were unknown, and the source.

    With `explain` each item says `because` of which events of the session. Raises ConfigurationError if there is
    neither a model nor a list of popular items.
    """
    tracking = Tracking(site)
    version = tracking.by_alias("serving")
    is_shown = (pl.col("channel") == next(iter(site.export.channels))) & (pl.col("segment") == EVERYONE)
    shown = store.scan(POPULAR_ITEMS).filter(is_shown).sort("rank").head(top)
    popular = shown.select("rank", "item_id", "score").collect()
    if version is None and popular.is_empty():
        raise ConfigurationError(
            f"{site.name} has neither a serving model nor popular items yet. Run a night first: `nightjar run --site …`"
        )
    if version is None:
        return [fall_back(session, len(session), popular) for session in sessions]
    bundle = tracking.load(version)
    answers = []
    for session, (ids, scores) in zip(sessions, score_sessions(bundle, sessions, top), strict=True):
        num_unknown = count_unknown(bundle, session)
        if not ids:
            answers.append(fall_back(session, num_unknown, popular))
            continue
        items = [{"rank": n, "item_id": i, "score": s} for n, (i, s) in enumerate(zip(ids, scores, strict=True), 1)]
        if explain:
            items = with_reasons(bundle, session, items)
        told = {"model_version": number(version), "num_items": len(session), "num_unknown": num_unknown}
        answers.append({"source": "model", **told, "items": items})
    return answers


def fall_back(session: list[str], num_unknown: int, popular: pl.DataFrame) -> dict[str, Any]:
    """Popular items, said to be such."""
    return {"source": "popular", "num_items": len(session), "num_unknown": num_unknown, "items": popular.to_dicts()}


def with_reasons(bundle: Bundle, session: list[str], items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Items with `because`: what each score would lose without an event, those that matter most first.

    An event is told by its item and its place in the session, from 1; one of an unknown item matters to nothing.
    """
    known, places = encode_session(bundle, session)
    wanted_1N = bundle.vocabulary.encode(pl.DataFrame(items).select("item_id"))["item_code"].to_numpy()[None]
    influence_TN = leave_one_out(bundle, known, wanted_1N)
    return [
        item
        | {
            "because": [
                {"item_id": session[places[t]], "place": int(places[t]) + 1, "influence": float(of_events[t])}
                for t in np.argsort(-abs(of_events), kind="stable")[:NUM_REASONS]
                if of_events[t]
            ]
        }
        for item, of_events in zip(items, influence_TN.T, strict=True)
    ]


def encode_session(bundle: Bundle, session: list[str]) -> tuple[Sequences, Integers]:
    """The known items of a session, and their places in it."""
    rows = pl.DataFrame({"item_id": session}, schema={"item_id": pl.String})
    codes = bundle.vocabulary.encode(rows)["item_code"].to_numpy()
    places = np.flatnonzero(codes > 0)
    times = np.full(len(places), bundle.as_of)
    return Sequences(codes[places], np.array([0, len(places)]), times, pl.Series([""])), places


def with_titles(items: list[dict[str, Any]], catalogue: pl.DataFrame) -> list[dict[str, Any]]:
    """Items with `title` and `category`, where the catalogue knows them."""
    named = catalogue.select("item_id", "title", "category").filter(
        pl.col("item_id").is_in([item["item_id"] for item in items])
    )
    known = {row["item_id"]: row for row in named.iter_rows(named=True)}
    return [item | {k: known.get(item["item_id"], {}).get(k) for k in ("title", "category")} for item in items]
