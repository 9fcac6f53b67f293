"""How well the intents of the next event are predicted, and what that does for the item.

Over the targets of `warm`, for each intent of the model; a target whose event has no label counts nowhere. Of an item
with several categories each is a label, and a guess is right if it is one of them:

    accuracy, macro_f1     of the most probable class; macro_f1 is the mean of F1 over the classes that occur
    calibration_error      how far confidence and accuracy are apart: expected calibration error (Guo et al., ICML 2017)
    same_as_last_…         the same of a guess: the class of the event before
    most_common_…          of another guess: the class that is most frequent among the targets
    next_mrr_at_k_right    of the item, where the most probable class was right; …_wrong where it was not

Shapes: R targets · C classes · L labels of a target, 0 behind them.
"""

from collections.abc import Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.intents import MISSING
from features.sequences import Integers, encode_sessions
from training.batch import all_batches
from training.bundle import Bundle
from training.evaluation import MISS, SESSIONS_AT_ONCE, known_after, rank_targets
from training.models.base import Recommender
from training.models.intentrec import IntentRec
from training.units import reads_users

Floats = NDArray[np.float64]
NUM_BINS = 10


def intent_quality(bundle: Bundle, sessions: pl.DataFrame, earlier: pl.DataFrame, k: int) -> dict[str, float]:
    """Metrics `intent/NAME/…` on sessions (rows of `sessions`); nothing for a model without intents."""
    model = intent_model(bundle.recommender)
    if model is None or not model.heads:
        return {}
    told, before = (encode_sessions(rows, bundle.vocabulary) for rows in (sessions, earlier))
    parts: list[dict[str, dict[str, NDArray[np.generic]]]] = []
    ranks = []
    if reads_users(bundle.recipe):
        units = known_after(bundle, told, before).by_user().with_targets()
    else:
        units = told.known_only().at_least(2)
    for _, batch in all_batches(units, SESSIONS_AT_ONCE):
        targets = batch.target_mask
        top = bundle.recommender.recommend_targets(batch, k, bundle.as_of)
        ranks.append(rank_targets(top, batch.targets().numpy()))
        found = {}
        for name, probabilities_TC in model.intents(batch).items():
            best, labels_TL = probabilities_TC[targets].max(1), model.told.labels(name, batch)
            found[name] = {
                "labels": labels_TL.roll(-1, dims=0)[targets].numpy(),
                "last": labels_TL[targets, 0].numpy(),
                "predicted": best.indices.numpy() + 1,
                "confidence": best.values.double().numpy(),
            }
        parts.append(found)
    if not parts:
        return {}
    metrics: dict[str, float] = {}
    for name in parts[0]:
        columns = {key: np.concatenate([part[name][key] for part in parts]) for key in parts[0][name]}
        numbers = measure_intent(columns, np.concatenate(ranks), k)
        metrics |= {f"intent/{name}/{metric}": value for metric, value in numbers.items()}
    return metrics


def intent_model(recommender: Recommender) -> IntentRec | None:
    """The model of intents that a recommender is, or that a prior stands around."""
    inner = getattr(recommender, "model", recommender)
    return inner if isinstance(inner, IntentRec) else None


def measure_intent(columns: Mapping[str, NDArray[np.generic]], ranks_R: Integers, k: int) -> dict[str, float]:
    """The metrics of one intent, from (R, L) labels and (R) last, predicted and confidence.

    Nothing if no target has a label. A guess is right if it is one of the target's labels.
    """
    is_told_R = (columns["labels"] != MISSING).any(1)
    if not is_told_R.any():
        return {}
    labels_RL, last, predicted = (columns[name][is_told_R].astype(np.int64) for name in ("labels", "last", "predicted"))
    gains = np.where(ranks_R > MISS, 1 / np.maximum(ranks_R, 1), 0.0)[is_told_R]
    is_right = is_label(predicted, labels_RL)
    common = np.full_like(predicted, np.bincount(labels_RL[labels_RL != MISSING]).argmax())
    found: dict[str, float] = {"num_targets": float(len(predicted)), "label_share": float(is_told_R.mean())}
    for prefix, guess in {"": predicted, "same_as_last_": last, "most_common_": common}.items():
        found[f"{prefix}accuracy"] = float(is_label(guess, labels_RL).mean())
        found[f"{prefix}macro_f1"] = macro_f1(labels_RL, guess)
    found["calibration_error"] = calibration_error(columns["confidence"][is_told_R].astype(np.float64), is_right)
    for name, is_part in (("right", is_right), ("wrong", ~is_right)):
        if is_part.any():
            found[f"next_mrr_at_{k}_{name}"] = float(gains[is_part].mean())
    return found


def is_label(guess_R: Integers, labels_RL: Integers) -> NDArray[np.bool_]:
    """(R) whether a guess is one of the labels; a missing value is none."""
    found: NDArray[np.bool_] = ((labels_RL == guess_R[:, None]) & (labels_RL != MISSING)).any(1)
    return found


def macro_f1(labels_RL: Integers, guess_R: Integers) -> float:
    """The mean of F1 = 2 hits / (labels + guesses) over the classes that occur among the labels."""
    size = int(max(labels_RL.max(), guess_R.max())) + 1
    num_labels = np.bincount(labels_RL[labels_RL != MISSING], minlength=size)
    num_guesses = np.bincount(guess_R, minlength=size)
    num_hits = np.bincount(guess_R[is_label(guess_R, labels_RL)], minlength=size)
    occurs = num_labels > 0
    return float((2 * num_hits[occurs] / (num_labels + num_guesses)[occurs]).mean())


def calibration_error(confidences: Floats, is_right: NDArray[np.bool_]) -> float:
    """Mean over the targets of |accuracy - mean confidence| of their bin; ten bins of equal width."""
    bins = np.minimum((confidences * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    gaps = np.bincount(bins, is_right - confidences, NUM_BINS)
    return float(np.abs(gaps).sum() / len(bins))
