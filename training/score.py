"""Score sessions of raw item ids: no user, no training frame, no table needed."""

from collections.abc import Sequence

import numpy as np
import polars as pl
import torch
from torch import Tensor

from features.sequences import Sequences
from training.baselines.base import Baseline
from training.batch import Batch, gather
from training.bundle import Bundle
from training.models.base import SessionModel


def count_unknown(bundle: Bundle, item_ids: Sequence[str]) -> int:
    """How many of the items the model does not know."""
    return len(item_ids) - len(known_codes(bundle, item_ids))


def known_codes(bundle: Bundle, item_ids: Sequence[str]) -> list[int]:
    """Codes of the items that the model knows, in order."""
    codes = bundle.vocabulary.encode(pl.DataFrame({"item_id": item_ids}, schema={"item_id": pl.String}))["item_code"]
    return codes.filter(codes > 0).to_list()


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


def score_sessions(bundle: Bundle, sessions: Sequence[Sequence[str]], top: int) -> list[tuple[list[str], list[float]]]:
    """The best `top` items and scores for each session; empty lists for a session without a known item."""
    codes = [known_codes(bundle, session) for session in sessions]
    item_codes = np.array([code for session in codes for code in session], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum([len(session) for session in codes], dtype=np.int64)])
    times = np.full(len(item_codes), bundle.as_of)
    sequences = Sequences(item_codes, offsets, times, pl.Series([""] * len(codes)))
    served = np.flatnonzero(sequences.lengths)
    lists: list[tuple[list[str], list[float]]] = [([], []) for _ in codes]
    if len(served) == 0:
        return lists
    best = bundle.recommender.recommend_last(gather(sequences, served), top, bundle.as_of)
    item_ids = bundle.vocabulary.item_ids()
    for row, session in enumerate(served):
        lists[session] = (item_ids.gather(best.codes_RN[row].numpy()).to_list(), best.scores_RN[row].tolist())
    return lists
