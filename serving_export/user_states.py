"""The state that a model carries of each user: what an online recommender goes on from, one step an event.

Reads   `sessions` of the window that ends with the day, `user_states` as they were
Writes  `user_states`: one row a user, of the version that is served

A state belongs to one version of the model and one history: the sessions, in order, that it may read of the user.
Where both are as they were, and sessions came behind, only those are read; where anything else changed (another
version, a session that grew, one that left the window or the newest `max_sessions`), or where a row is not what was
written by its checksum, all are read again. Either way the state is the same.

Shapes: U users · C width of what a model carries.
"""

import hashlib
from datetime import date
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from features.build import training_rows
from features.histories import listed_user
from features.sequences import Sequences, read_in_order
from features.vocabulary import Vocabulary
from features.window import window_days
from pipeline.checksums import DAMAGED_PARQUET
from pipeline.forgotten import check_nobody_forgotten
from pipeline.ids import stable_id
from pipeline.publish import Store
from pipeline.sessions import trim_sessions
from pipeline.tables import sessions_table
from pipeline.terminal import log
from serving_export.tables import USER_STATES
from training.bundle import Bundle
from training.models.base import SessionModel
from training.recipes import SequenceRecipe
from training.settings import TrainingSite

USERS_AT_ONCE = 4096


def update_user_states(site: TrainingSite, store: Store, bundle: Bundle, version: int, day: date) -> dict[str, Any]:
    """Bring the states to the end of `day`; return how many users there are, and how many sessions were read."""
    store = store.pinned()
    users = read = 0
    base = store.version(USER_STATES) or 0
    for bucket in range(site.buckets):
        sessions = read_histories(site, store, bundle, day, bucket)
        kept = read_states(store, base, bucket, bundle, version)
        states, num_read = bring_up_to_date(bundle, sessions, kept)
        rows = states.with_columns(user_bucket=pl.lit(bucket, pl.Int64), model_version=pl.lit(version, pl.Int64))
        rows = rows.with_columns(checksum=checksums(rows, bundle))
        check_nobody_forgotten(store)
        store.replace(USER_STATES, rows, {"user_bucket": [bucket]}, {"data_through": day}, base=base)
        users, read = users + states.height, read + num_read
    log.info("states of %d users: %d sessions were read", users, read)
    return {"users_with_state": users, "sessions_read": read}


def read_states(store: Store, base: int, bucket: int, bundle: Bundle, version: int) -> pl.DataFrame:
    """A bucket's states of a model version that are what was written; none where their file cannot be read."""
    try:
        rows = store.scan(USER_STATES, base).filter(user_bucket=bucket, model_version=version).collect()
    except (*DAMAGED_PARQUET, FileNotFoundError) as error:
        log.warning("the states of bucket %d are damaged and are made again: %s", bucket, " ".join(str(error).split()))
        return USER_STATES.empty()
    sound = rows.filter((rows["checksum"] == checksums(rows, bundle)).fill_null(False))
    if sound.height < rows.height:
        log.warning("%d of %d states of bucket %d are made again", rows.height - sound.height, rows.height, bucket)
    return sound


def checksums(rows: pl.DataFrame, bundle: Bundle) -> pl.Series:
    """A digest of each row: whose state it is, of which model and history, and its numbers."""
    model = pl.lit(bundle.sha256 or "no checksum")
    owners = rows.select(stable_id(pl.col("visitor"), model, pl.col("model_version"), pl.col("history"))).to_series()
    carry: Any = rows["carry"].to_arrow()
    numbers, offsets = carry.values.to_numpy(zero_copy_only=False), carry.offsets.to_numpy()
    digests = [
        hashlib.sha256(owner.encode() + numbers[first:last].tobytes()).hexdigest()[:32]
        for owner, (first, last) in zip(owners, pairwise(offsets), strict=True)
    ]
    return pl.Series("checksum", digests, dtype=pl.String)


def read_histories(site: TrainingSite, store: Store, bundle: Bundle, day: date, bucket: int) -> pl.DataFrame:
    """The newest sessions of a bucket's users as known item codes, by user and time; `history` tells all up to each."""
    assert isinstance(bundle.recipe, SequenceRecipe)
    scanned = store.scan(sessions_table(site.source.context)).filter(
        pl.col("session_date").is_in(window_days(site, store, day)), pl.col("user_bucket") == bucket
    )
    sessions = trim_sessions(scanned, day, site).filter(listed_user(site).is_not_null()).collect()
    return known_histories(sessions, bundle.vocabulary, bundle.recipe.max_sessions, day)


def known_histories(sessions: pl.DataFrame, vocabulary: Vocabulary, most: int, day: date) -> pl.DataFrame:
    """Sessions with a known item, the newest `most` of each visitor: with `place` and `history`, a digest so far."""
    rows = training_rows(sessions, vocabulary, day).drop("night").sort("visitor", "started_at", "session_id")
    newest = rows.filter(pl.int_range(pl.len(), 0, -1).over("visitor") <= most)
    placed = newest.with_columns(place=pl.int_range(pl.len(), dtype=pl.Int64).over("visitor"))
    codes = pl.col("item_codes").cast(pl.List(pl.String)).list.join(",")
    digest = stable_id(pl.col("place"), pl.col("session_id"), codes)
    halves = [digest.str.slice(at, 10).str.to_integer(base=16).cum_sum().over("visitor") for at in (0, 10)]
    return placed.with_columns(history=pl.concat_str([half.cast(pl.String) for half in halves], separator="-"))


def bring_up_to_date(bundle: Bundle, sessions: pl.DataFrame, kept: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """A row a visitor, and how many sessions had to be read; `kept` holds states of the same version."""
    model: Any = bundle.recommender
    known = sessions.select("visitor", "history", num_sessions=pl.col("place") + 1)
    valid = kept.join(known, on=["visitor", "num_sessions", "history"], how="semi")
    users = sessions.group_by("visitor", maintain_order=True).agg(
        pl.col("session_id", "started_at", "history").last().name.prefix("last_"),
        num_sessions=pl.len().cast(pl.Int64),
    )
    begun = users.join(
        valid.select("visitor", "carry", num_done="num_sessions"), on="visitor", how="left", maintain_order="left"
    )
    num_done_U = begun["num_done"].fill_null(0).to_numpy()
    new = sessions.filter(pl.Series(sessions["place"].to_numpy() >= np.repeat(num_done_U, begun["num_sessions"])))
    user_offsets = np.concatenate([[0], np.cumsum(begun["num_sessions"].to_numpy() - num_done_U)])
    carry_UC = model.new_carry(users.height)
    is_begun_U = torch.tensor(begun["carry"].is_not_null().to_list(), dtype=torch.bool)
    if is_begun_U.any():
        carry_UC[is_begun_U] = torch.tensor(begun["carry"].drop_nulls().to_list(), dtype=carry_UC.dtype)
    carry_UC = read_on(model, read_in_order(new), user_offsets, carry_UC)
    carry = pl.Series("carry", carry_UC.double().tolist(), dtype=pl.List(pl.Float64))
    return users.rename({"last_history": "history"}).with_columns(carry), new.height


@torch.inference_mode()
def read_on(model: SessionModel, sessions: Sequences, user_offsets: np.ndarray, carry_UC: Tensor) -> Tensor:
    """(U, C) what the model carries after each user's further sessions, an event of many users at a time."""
    parts = []
    for start in range(0, len(carry_UC), USERS_AT_ONCE):
        stop = min(start + USERS_AT_ONCE, len(carry_UC))
        bounds = sessions.offsets[user_offsets[start : stop + 1]]
        is_new_T = np.zeros(len(sessions.item_codes) + 1, dtype=bool)
        is_new_T[sessions.offsets] = True
        lengths = np.diff(bounds)
        order = np.argsort(-lengths, kind="stable")  # whoever has most events, first
        carry_RC = carry_UC[start:stop][torch.from_numpy(order)]
        for step in range(int(lengths.max(initial=0))):
            num_users = int((lengths > step).sum())
            places = bounds[order[:num_users]] + step
            codes, is_new = (torch.from_numpy(values[places]) for values in (sessions.item_codes, is_new_T))
            _, moved = model.advance(codes, carry_RC[:num_users], is_new)
            carry_RC = torch.cat([moved, carry_RC[num_users:]])
        parts.append(torch.empty_like(carry_RC).index_copy(0, torch.from_numpy(order), carry_RC))
    return torch.cat(parts) if parts else carry_UC
