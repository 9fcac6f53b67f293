"""Fill lists: the best n items after each user's last events, without those the user has seen.

Only seen items are fetched beyond n, so with m of them filtered, n come back whenever n exist.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import polars as pl
import torch

from features.sequences import Integers, Sequences
from features.vocabulary import Vocabulary
from training.batch import gather
from training.models.base import Recommender

USERS_AT_ONCE = 1024


def encode_histories(
    histories: pl.DataFrame, vocabulary: Vocabulary, by_user: bool = False
) -> tuple[Sequences, pl.Series]:
    """Each user's last items (`user_id`, list `item_ids`) as a session of known items; users with none are left out.

    With `by_user` as the sessions that the list `session` tells apart, grouped. Returns the sequences and their users.
    For a model that reads more than items, with what the histories hold of their events.
    """
    definitions = vocabulary.definitions
    told = () if definitions is None else ("occurred_at", *definitions.columns)
    lists = {"item_id": "item_ids"} | ({"session": "session"} if by_user else {})
    lists |= {name: name for name in told if name in histories.columns}
    events = vocabulary.encode(histories.select("user_id", "last_at", **lists).explode(list(lists)))
    known = events.filter(pl.col("item_code") > 0)
    of_session = ["user_id", "session"] if by_user else ["user_id"]
    sessions = known.group_by(of_session, maintain_order=True).agg(pl.len().cast(pl.Int64))
    users = sessions.group_by("user_id", maintain_order=True).agg(pl.len().cast(pl.Int64))
    happened = known["occurred_at" if "occurred_at" in known.columns else "last_at"].dt.epoch("us").to_numpy()
    columns = {} if definitions is None else definitions.encode(known)
    sequences = Sequences(
        known["item_code"].to_numpy(), ends(sessions["len"]), happened, sessions["user_id"], event_columns=columns
    )
    return replace(sequences, user_offsets=ends(users["len"])) if by_user else sequences, users["user_id"]


def ends(lengths: pl.Series) -> Integers:
    """0, and where each of some things in a row ends."""
    return np.concatenate([[0], lengths.to_numpy().cumsum()])


def fill_lists(
    recommender: Recommender,
    as_of: int,
    vocabulary: Vocabulary,
    histories: pl.DataFrame,
    seen: pl.DataFrame,
    n: int,
    by_user: bool = False,
) -> Iterator[pl.DataFrame]:
    """Lists of up to `n` unseen items, a frame of users at a time: user_id, rank (from 1), item_code, score.

    `seen` holds `user_id`, `item_id` pairs to leave out. `by_user` is for models that read a user's sessions. Users
    without any known item get no rows.
    """
    sequences, users = encode_histories(histories, vocabulary, by_user)
    seen_codes = vocabulary.encode(seen).filter(pl.col("item_code") > 0).select("user_id", "item_code")
    num_seen = (
        users.to_frame("user_id")
        .join(seen_codes.group_by("user_id").agg(pl.len()), on="user_id", how="left", maintain_order="left")["len"]
        .fill_null(0)
    )
    by_num_seen = (
        num_seen.arg_sort().to_numpy().astype(np.int64)
    )  # users who need as long a search are searched together
    for start in range(0, len(by_num_seen), USERS_AT_ONCE):
        chosen = by_num_seen[start : start + USERS_AT_ONCE]
        wanted = n + int(num_seen[int(chosen[-1])])
        top = recommender.recommend_last(gather(sequences, chosen), wanted, as_of)
        yield unseen_only(top.codes_RN, top.scores_RN, users.gather(chosen), seen_codes, n)


def unseen_only(
    codes_RN: torch.Tensor, scores_RN: torch.Tensor, users: pl.Series, seen: pl.DataFrame, n: int
) -> pl.DataFrame:
    """Search results as rows, seen items taken out, ranked anew."""
    rows = pl.DataFrame(
        {
            "user_id": np.repeat(users.to_numpy(), codes_RN.shape[1]),
            "item_code": codes_RN.numpy().ravel(),
            "score": scores_RN.numpy().ravel().astype(np.float64),
        },
        schema_overrides={"user_id": pl.String},
    )
    kept = rows.join(seen, on=["user_id", "item_code"], how="anti", maintain_order="left")
    ranked = kept.with_columns(rank=pl.int_range(1, pl.len() + 1, dtype=pl.Int64).over("user_id"))
    return ranked.filter(pl.col("rank") <= n).select("user_id", "rank", "item_code", "score")
