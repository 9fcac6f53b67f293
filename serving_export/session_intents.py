"""What the next event of each active user is for, as the served model of intents expects it.

Shapes: R users at a time · C classes of all intents, side by side.
"""

from typing import Any

import numpy as np
import polars as pl
import torch

from features.sequences import Integers, Sequences
from serving_export.bucket_users import BucketUsers
from serving_export.scoring import USERS_AT_ONCE, Vectors, serve_each
from serving_export.tables import SESSION_INTENTS
from training.batch import gather
from training.bundle import Bundle
from training.intent_quality import intent_model
from training.units import reads_users

MOST_CLASSES = 10


def tells_intents(bundle: Bundle | None) -> bool:
    """Whether a model predicts intents."""
    model = None if bundle is None else intent_model(bundle.recommender)
    return model is not None and len(model.heads) > 0


def find_intents(bundle: Bundle, users: BucketUsers, num_known: int) -> pl.DataFrame:
    """Rows of `session_intents` but `user_bucket`: of each intent the most probable classes of each user.

    Users without a known item, and those that the model fails on, have no rows.
    """
    model = intent_model(bundle.recommender)
    assert model is not None, "this model predicts no intents"
    classes = {name: np.array(model.definitions.classes[name]) for name in model.heads}
    sequences = users.sequences(0, users.size, num_known, reads_users(bundle.recipe))

    @torch.inference_mode()
    def of_some(users_R: Integers) -> Vectors:
        batch = gather(sequences, users_R)
        found: Vectors = torch.cat([each[batch.last_events] for each in model.intents(batch).values()], dim=1).numpy()
        return found

    served = np.flatnonzero(sequences.unit_lengths)
    width = sum(map(len, classes.values()))
    parts = [np.zeros((0, width), np.float32)]
    for start in range(0, len(served), USERS_AT_ONCE):
        parts.append(serve_each(of_some, served[start : start + USERS_AT_ONCE], width))
    told_RC = np.concatenate(parts)
    is_told = np.isfinite(told_RC).all(1)
    told_RC, table = told_RC[is_told], users.table.select("user_id", "session_id")[served[is_told]]
    rows, first = [SESSION_INTENTS.empty().drop("user_bucket")], 0
    for name, names in classes.items():
        rows.append(most_probable(table, name, names, told_RC[:, first : first + len(names)]))
        first += len(names)
    return pl.concat(rows).sort("user_id", "intent", "rank")


@torch.inference_mode()
def intents_of(bundle: Bundle, sequences: Sequences, units: Integers) -> dict[int, dict[str, Any]]:
    """What the next event of some units is for, by unit; nothing for a model without intents.

    `intents`: of each intent the most probable classes; `intent_weights`: how much each weighs in what the item's part
    of the model reads, a diagnostic and no cause.
    """
    model = intent_model(bundle.recommender)
    if model is None or not model.heads or not len(units):
        return {}
    batch = gather(sequences, units)
    reading, last = model.read(batch), batch.last_events
    found: dict[int, dict[str, Any]] = {int(unit): {"intents": {}} for unit in units}
    for name, logits_TC in reading.logits.items():
        classes = model.definitions.classes[name]
        best = logits_TC[last].softmax(1).topk(min(MOST_CLASSES, len(classes)), dim=1)
        for unit, codes, shares in zip(units, best.indices.tolist(), best.values.tolist(), strict=True):
            told = zip(codes, shares, strict=True)
            found[int(unit)]["intents"][name] = [{"value": classes[code], "probability": share} for code, share in told]
    if reading.weights_TM is not None:
        for unit, weights in zip(units, reading.weights_TM[last].tolist(), strict=True):
            found[int(unit)]["intent_weights"] = dict(zip(model.heads, weights, strict=True))
    return found


def most_probable(users: pl.DataFrame, intent: str, names: np.ndarray, told_RC: Vectors) -> pl.DataFrame:
    """The classes of one intent, the most probable first."""
    best_RN = np.argsort(-told_RC, axis=1, kind="stable")[:, :MOST_CLASSES]
    num_users, num_classes = best_RN.shape
    return users[np.repeat(np.arange(num_users), num_classes)].select(
        "user_id",
        intent=pl.lit(intent),
        rank=pl.Series(np.tile(np.arange(1, num_classes + 1), num_users)),
        label=pl.Series(names[best_RN].ravel().tolist(), dtype=pl.String),
        probability=pl.Series(np.take_along_axis(told_RC, best_RN, axis=1).ravel().astype(np.float64)),
        session_id="session_id",
    )
