"""How good a model is on sessions that began after its training ended.

Full ranking over all items the model knows; every event after the first of a session is a target; ties count
against us. Three protocols, named in the metric:

    all/next_*    an item that the model does not know is a miss, and so is a target without a known event before it
    warm/next_*   unknown items are taken out of the sessions first, as the authors of GRU4Rec do
    list/any_*    the list that would have been published the evening before, against all a user did on the day
"""

from collections.abc import Sequence

import numpy as np
import polars as pl
import torch

from features.sequences import Integers, Sequences, encode_sessions
from features.vocabulary import PADDING
from training.batch import Batch, all_batches
from training.bundle import Bundle
from training.lists import fill_lists
from training.models.base import TopItems
from training.outcomes import Outcomes, merge

SESSIONS_AT_ONCE = 512
MISS = 0  # a rank outside the list


def evaluate_next(bundle: Bundle, sessions: pl.DataFrame, ks: Sequence[int]) -> Outcomes:
    """Outcomes of the protocols `all` and `warm` on sessions (rows of the `sessions` table)."""
    raw = encode_sessions(sessions, bundle.vocabulary).at_least(2)
    is_known = raw.item_codes != PADDING
    is_first = np.isin(np.arange(len(raw.item_codes)), raw.offsets[:-1])
    num_known = np.cumsum(is_known) - is_known  # known events before this one, over all sessions
    num_known_in_session = num_known - num_known[raw.offsets[:-1]][raw.session_of_event()]
    is_ranked = is_known & (num_known_in_session > 0)
    ranks = np.full(len(raw.item_codes), MISS)
    ranks[is_ranked] = rank_next_events(bundle, raw.known_only(), max(ks))
    targets = pl.DataFrame({"rank": ranks, "is_first": is_first, "is_warm": is_ranked, "is_cold": ~is_known})
    targets = targets.with_columns(visitor=raw.visitors.gather(raw.session_of_event()))
    every = sum_by_visitor(targets.filter(~pl.col("is_first")), "all", ks)
    warm = sum_by_visitor(targets.filter("is_warm"), "warm", ks)
    return merge([Outcomes(every, next_metrics(ks)), Outcomes(warm, next_metrics(ks))])


def rank_next_events(bundle: Bundle, known: Sequences, n: int) -> Integers:
    """The rank of each event that follows another one in its session, in order; MISS outside the best `n`."""
    ranks = [
        rank_targets(bundle.recommender.recommend(batch, n, bundle.as_of), batch)
        for _, batch in all_batches(known.at_least(2), SESSIONS_AT_ONCE)
    ]
    return np.concatenate([np.empty(0, dtype=np.int64), *ranks])


def rank_targets(top: TopItems, batch: Batch) -> Integers:
    """The rank of each target among the best items after the event before it: the worst one that its ties allow."""
    codes_RN, scores_RN = top.codes_RN[batch.target_mask], top.scores_RN[batch.target_mask]
    if scores_RN.isnan().any():
        raise ValueError("a model gave a score that is no number; nothing can be ranked")
    is_hit_RN = codes_RN == batch.targets()[:, None]
    score_R1 = torch.where(is_hit_RN, scores_RN, -torch.inf).amax(1, keepdim=True)
    rank_R = (scores_RN >= score_R1).sum(1)
    rank_R += torch.where(score_R1[:, 0] == scores_RN[:, -1], top.ties_R[batch.target_mask], 0)
    is_within_R = is_hit_RN.any(1) & (rank_R <= scores_RN.shape[1])
    return torch.where(is_within_R, rank_R, MISS).numpy()


def next_metrics(ks: Sequence[int]) -> tuple[str, ...]:
    """Names of the next-item metrics."""
    return tuple(f"next_{name}_at_{k}" for name in ("recall", "mrr", "ndcg") for k in ks)


def sum_by_visitor(targets: pl.DataFrame, protocol: str, ks: Sequence[int]) -> pl.DataFrame:
    """Sums of recall, mrr and ndcg over each visitor's targets."""
    rank = pl.col("rank")
    sums = {}
    for k in ks:
        is_hit = (rank > MISS) & (rank <= k)
        sums[f"next_recall_at_{k}"] = is_hit.sum().cast(pl.Float64)
        sums[f"next_mrr_at_{k}"] = pl.when(is_hit).then(1 / rank).otherwise(0.0).sum()
        sums[f"next_ndcg_at_{k}"] = pl.when(is_hit).then(1 / (rank + 1).log(2)).otherwise(0.0).sum()
    told = targets.group_by("visitor").agg(num_targets=pl.len(), num_cold=pl.col("is_cold").sum(), **sums)
    return told.sort("visitor").select(
        "visitor", "num_targets", "num_cold", *next_metrics(ks), protocol=pl.lit(protocol)
    )


def evaluate_lists(
    bundle: Bundle, histories: pl.DataFrame, seen: pl.DataFrame, truths: pl.DataFrame, ks: Sequence[int]
) -> Outcomes:
    """Outcomes of the protocol `list`.

    `truths` (user_id, item_id, distinct) holds what users with a history did on the day. A user whose list could
    not be made counts as zero. recall = items of the day in the list / items of the day, a mean over users.
    """
    active = histories.join(truths, on="user_id", how="semi")
    lists = fill_lists(bundle.recommender, bundle.as_of, bundle.vocabulary, active, seen, max(ks))
    coded = bundle.vocabulary.encode(truths.join(histories, on="user_id", how="semi"))
    listed = pl.concat(
        [pl.DataFrame(schema={"user_id": pl.String, "rank": pl.Int64, "item_code": pl.Int64})]
        + [rows.select("user_id", "rank", "item_code") for rows in lists]
    )
    found = coded.join(listed, on=["user_id", "item_code"], how="left")
    recalls = {f"any_recall_at_{k}": (pl.col("rank") <= k).sum() / pl.len() for k in ks}
    rows = (
        found.group_by(visitor="user_id")
        .agg(**recalls)
        .sort("visitor")
        .with_columns(num_targets=pl.lit(1, pl.UInt32), num_cold=pl.lit(0, pl.UInt32), protocol=pl.lit("list"))
    )
    return Outcomes(rows, tuple(recalls))
