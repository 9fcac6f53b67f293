"""Score sessions of raw item ids: no user, no training frame, no table needed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from training.baselines.base import Baseline
from training.batch import Batch, gather
from training.bundle import Bundle
from training.lists import encode_histories
from training.models.base import SessionModel
from training.units import reads_users


@torch.inference_mode()
def all_scores(bundle: Bundle, batch: Batch) -> Tensor:
    """(S, I) the score of every item after each session, by code; sessions must not be empty. Code 0 means nothing."""
    recommender = bundle.recommender
    if isinstance(recommender, SessionModel):
        return recommender.session_vectors(batch) @ recommender.item_vectors(bundle.as_of).T
    if isinstance(recommender, Baseline):
        last_S = batch.offsets[1:].numpy() - 1
        return torch.cat([recommender.scores(batch, chunk) for chunk in recommender.chunks(batch, last_S)])
    top = recommender.recommend_last(batch, bundle.vocabulary.num_codes - 1, bundle.as_of)
    scores_SI = torch.full((len(top.codes_RN), bundle.vocabulary.num_codes), -torch.inf)
    return scores_SI.scatter_(1, top.codes_RN, top.scores_RN.float())


def score_sessions(
    bundle: Bundle,
    sessions: Sequence[Sequence[str]],
    top: int,
    told: Mapping[str, Sequence[Sequence[Any]]] | None = None,
) -> list[tuple[list[str], list[float]]]:
    """The best `top` items and scores for each session; empty lists for a session without a known item.

    `told`: what else is known of the events of each session, by column: `occurred_at` (with a zone), `event_type`,
    context columns, and `session`, a number by which events of earlier sessions are told apart. Models read of it what
    they have learnt to read. Raises ValueError where it is not one value an event.
    """
    frame = pl.DataFrame(
        {"user_id": [str(n) for n in range(len(sessions))], "item_ids": sessions, **(told or {})},
        schema_overrides={"item_ids": pl.List(pl.String)},
        strict=False,
    )
    for name in told or {}:
        if (wrong := frame.filter(pl.col(name).list.len() != pl.col("item_ids").list.len())).height:
            first = wrong.row(0, named=True)
            raise ValueError(
                f"{name} has {len(first[name])} values for {len(first['item_ids'])} item ids: {first[name]}"
            )
    as_of = pl.lit(bundle.as_of).cast(pl.Datetime("us", "UTC"))
    by_user = reads_users(bundle.recipe) and "session" in frame.columns
    held = frame.filter(pl.col("item_ids").list.len() > 0).with_columns(last_at=as_of)
    sequences, numbers = encode_histories(held, bundle.vocabulary, by_user)
    lists: list[tuple[list[str], list[float]]] = [([], []) for _ in sessions]
    if not sequences.num_units:
        return lists
    best = bundle.recommender.recommend_last(gather(sequences, np.arange(sequences.num_units)), top, bundle.as_of)
    item_ids = bundle.vocabulary.item_ids()
    for row, number in enumerate(numbers):
        lists[int(number)] = (item_ids.gather(best.codes_RN[row].numpy()).to_list(), best.scores_RN[row].tolist())
    return lists
