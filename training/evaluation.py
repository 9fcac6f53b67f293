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

from features.sequences import Integers, Sequences, encode_sessions, user_order
from features.vocabulary import PADDING, Vocabulary, learn_vocabulary
from training.batch import all_batches
from training.bundle import Bundle
from training.exposure import count_exposures, exposure_figures, gini
from training.lists import fill_lists
from training.models.base import TopItems
from training.outcomes import Outcomes
from training.recipes import LearntRecipe
from training.slices import KINDS, slice_events
from training.units import reads_users

SESSIONS_AT_ONCE = 512
MISS = 0  # a rank outside the list


def evaluate_next(
    bundle: Bundle, sessions: pl.DataFrame, ks: Sequence[int], earlier: pl.DataFrame | None = None
) -> Outcomes:
    """Outcomes of the protocols `all`, with its slices, and `warm` on sessions (rows of the `sessions` table).

    `earlier` are sessions of the same visitors before all of these: history, none of whose events is a target.
    """
    ks = sorted(ks)
    earlier = sessions.clear() if earlier is None else earlier
    every_raw, history = (encode_sessions(rows, bundle.vocabulary) for rows in (sessions, earlier))
    raw, num_earlier_S = every_raw.at_least(2), count_earlier(every_raw, history)[every_raw.lengths >= 2]
    named = encode_sessions(sessions, learn_vocabulary(sessions, 1)).at_least(2)
    is_known = raw.item_codes != PADDING
    is_first = np.isin(np.arange(len(raw.item_codes)), raw.offsets[:-1])
    num_known = np.cumsum(is_known) - is_known  # known events before this one, over all sessions
    num_known_in_session = num_known - num_known[raw.offsets[:-1]][raw.session_of_event()]
    is_ranked = is_known & (num_known_in_session > 0)
    ranks = np.full(len(raw.item_codes), MISS)
    ranks[is_ranked], exposures_KI = (
        rank_after_histories(bundle, every_raw, history, ks)
        if reads_users(bundle.recipe)
        else rank_next_events(bundle, raw.known_only().at_least(2), ks)
    )
    targets = pl.DataFrame({"rank": ranks, "is_first": is_first, "is_warm": is_ranked, "is_cold": ~is_known})
    targets = targets.with_columns(
        slice_events(raw, named, bundle.vocabulary, num_earlier_S), visitor=raw.visitors.gather(raw.session_of_event())
    )
    every = targets.filter(~pl.col("is_first"))
    names, main = next_metrics(ks), (f"next_recall_at_{ks[-1]}", f"next_mrr_at_{ks[-1]}")
    parts = [
        sum_by_visitor(every, pl.lit("all"), names),
        sum_by_visitor(targets.filter("is_warm"), pl.lit("warm"), names),
    ]
    parts += [sum_by_visitor(every, pl.concat_str(pl.lit(f"{kind}/"), kind), main) for kind in KINDS]
    figures = exposure_figures(exposures_KI, ks, bundle.vocabulary)
    whole = {f"all/{name}": value for name, value in figures.items()}
    return Outcomes(pl.concat(parts, how="diagonal"), names, whole)


def count_earlier(sequences: Sequences, history: Sequences) -> Integers:
    """(S) how many sessions a visitor had before each, in the history and among these."""
    visitors = pl.concat([history.visitors, sequences.visitors])
    found = pl.DataFrame({"visitor": visitors}).select(pl.int_range(pl.len(), dtype=pl.Int64).over("visitor"))
    return found.to_series().to_numpy()[history.num_sessions :]


def known_after(bundle: Bundle, sequences: Sequences, history: Sequences) -> Sequences:
    """The known events of some sessions behind as much of their histories as the recipe reads; not grouped."""
    assert isinstance(bundle.recipe, LearntRecipe)
    kept = history.known_only().at_least(1).newest(bundle.recipe.max_sessions)
    return sequences.known_only().at_least(1).after(kept)


def rank_after_histories(
    bundle: Bundle, sequences: Sequences, history: Sequences, ks: Sequence[int]
) -> tuple[Integers, Integers]:
    """As `rank_next_events`, of a model that reads a user's earlier sessions: those before the day, and of the day."""
    known = known_after(bundle, sequences, history)
    ranks, exposures_KI = rank_next_events(bundle, known.by_user().with_targets(), ks)
    sessions, _ = user_order(known.visitors)
    session_of_rank = np.repeat(sessions, known.num_targets[sessions])
    return ranks[np.argsort(session_of_rank, kind="stable")], exposures_KI


def rank_next_events(bundle: Bundle, known: Sequences, ks: Sequence[int]) -> tuple[Integers, Integers]:
    """The rank of each target of some sequences, in order; MISS outside the best of `ks`.

    Also (K, I) how often each item stood in the top k of the lists that these were looked for in.
    """
    ranks = [np.empty(0, dtype=np.int64)]
    exposures_KI = np.zeros((len(ks), bundle.vocabulary.num_codes), dtype=np.int64)
    for _, batch in all_batches(known, SESSIONS_AT_ONCE):
        top = bundle.recommender.recommend_targets(batch, max(ks), bundle.as_of)
        ranks.append(rank_targets(top, batch.targets().numpy()))
        exposures_KI += count_exposures(top.codes_RN, ks, bundle.vocabulary.num_codes)
    return np.concatenate(ranks), exposures_KI


def rank_targets(top: TopItems, targets_R: Integers) -> Integers:
    """The rank of each target in its list: the worst one that its ties allow; MISS if it may be outside."""
    if top.scores_RN.isnan().any():
        raise ValueError("a model gave a score that is no number; nothing can be ranked")
    is_hit_RN = top.codes_RN == torch.from_numpy(targets_R)[:, None]
    score_R1 = torch.where(is_hit_RN, top.scores_RN, -torch.inf).amax(1, keepdim=True)
    rank_R = (top.scores_RN >= score_R1).sum(1)
    rank_R += torch.where(score_R1[:, 0] == top.scores_RN[:, -1], top.ties_R, 0)
    is_within_R = is_hit_RN.any(1) & (rank_R <= top.scores_RN.shape[1])
    return torch.where(is_within_R, rank_R, MISS).numpy()


def next_metrics(ks: Sequence[int]) -> tuple[str, ...]:
    """Names of the next-item metrics."""
    return tuple(f"next_{name}_at_{k}" for name in ("recall", "mrr", "ndcg") for k in ks)


def sum_by_visitor(targets: pl.DataFrame, protocol: pl.Expr, metrics: Sequence[str]) -> pl.DataFrame:
    """Sums of next-item metrics over each visitor's targets, by protocol; rows in order of both."""
    sums = {name: next_metric(name).sum().cast(pl.Float64) for name in metrics}
    counts = {"num_targets": pl.len(), "num_cold": pl.col("is_cold").sum()}
    return targets.group_by("visitor", protocol=protocol).agg(**counts, **sums).sort("protocol", "visitor")


def next_metric(name: str) -> pl.Expr:
    """A target's value by its `rank`: recall 1, mrr 1 / rank, ndcg 1 / log2(1 + rank); 0 outside the top k."""
    kind, k = name.removeprefix("next_").split("_at_")
    rank = pl.col("rank")
    gain = {"recall": pl.lit(1.0), "mrr": 1 / rank, "ndcg": 1 / (rank + 1).log(2)}[kind]
    return pl.when((rank > MISS) & (rank <= int(k))).then(gain).otherwise(0.0)


def evaluate_lists(
    bundle: Bundle, histories: pl.DataFrame, seen: pl.DataFrame, truths: pl.DataFrame, ks: Sequence[int]
) -> Outcomes:
    """Outcomes of the protocol `list`.

    `truths` (user_id, item_id, distinct) holds what users with a history did on the day. A user whose list could
    not be made counts as zero. recall = items of the day in the list / items of the day, a mean over users.
    """
    active = histories.join(truths, on="user_id", how="semi")
    by_user = reads_users(bundle.recipe)
    lists = fill_lists(bundle.recommender, bundle.as_of, bundle.vocabulary, active, seen, max(ks), by_user)
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
    return Outcomes(rows, tuple(recalls), list_figures(listed, active.height, bundle.vocabulary, max(ks)))


def list_figures(listed: pl.DataFrame, num_users: int, vocabulary: Vocabulary, k: int) -> dict[str, float]:
    """What the lists of users show, at their length: different items, Gini, and the share of places left empty."""
    num_places = num_users * min(k, vocabulary.items.height)
    if not num_places:
        return {}
    counts_I = np.bincount(listed["item_code"].to_numpy(), minlength=vocabulary.num_codes)[PADDING + 1 :]
    figures = {
        f"list/num_items_at_{k}": float((counts_I > 0).sum()),
        f"list/fallback_share_at_{k}": 1 - listed.height / num_places,
    }
    return figures | ({f"list/gini_at_{k}": gini(counts_I)} if counts_I.any() else {})
