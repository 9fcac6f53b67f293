"""What a served recommender says of users: vectors to search with, or a score for each item.

Shapes: R users at a time · I the model's item codes · D dimension.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from features.sequences import Integers, Sequences
from pipeline.terminal import log
from training.batch import gather
from training.bundle import Bundle
from training.models.base import SessionModel
from training.score import all_scores

Vectors = NDArray[np.float32]
USERS_AT_ONCE = 1024
NOT_SERVED = np.nan


class Scorer(Protocol):
    """Scores of all items for users of a slab."""

    def scores(self, users_R: Integers) -> Vectors:
        """(R, I) by item code; not a number where a user cannot be served."""


class VectorScorer:
    """A session model: the score of an item is the product of its vector with the user's."""

    def __init__(self, vectors_UD: Vectors, vectors_ID: Vectors) -> None:
        self.vectors_UD, self.vectors_ID = vectors_UD, vectors_ID

    def scores(self, users_R: Integers) -> Vectors:
        """(R, I) all products."""
        return self.vectors_UD[users_R] @ self.vectors_ID.T


class CountScorer:
    """A baseline, which has no vectors."""

    def __init__(self, bundle: Bundle, sequences: Sequences) -> None:
        self.bundle, self.sequences = bundle, sequences

    def scores(self, users_R: Integers) -> Vectors:
        """(R, I) evidence, and below it popularity."""

        def of_some(users: Integers) -> Vectors:
            return score_all(self.bundle, self.sequences, users)

        return serve_each(of_some, users_R, self.bundle.vocabulary.num_codes)


@torch.inference_mode()
def score_all(bundle: Bundle, sequences: Sequences, users_R: Integers) -> Vectors:
    """(R, I) of a recommender without vectors."""
    found: Vectors = all_scores(bundle, gather(sequences, users_R)).float().numpy()
    return found


def item_vectors(bundle: Bundle) -> Vectors | None:
    """(I, D) of a session model at the end of its data; None for a baseline."""
    if not isinstance(bundle.recommender, SessionModel):
        return None
    with torch.inference_mode():
        found: Vectors = np.ascontiguousarray(bundle.recommender.item_vectors(bundle.as_of).float().numpy())
    return found


def session_vectors(bundle: Bundle, sequences: Sequences, dimension: int) -> Vectors:
    """(U, D) of every user; not a number for a user without a known item, or one that the model fails on."""
    model: Any = bundle.recommender

    @torch.inference_mode()
    def of_some(users_R: Integers) -> Vectors:
        found: Vectors = model.session_vectors(gather(sequences, users_R)).float().numpy()
        return found

    vectors_UD = np.full((sequences.num_units, dimension), NOT_SERVED, np.float32)
    served = np.flatnonzero(sequences.unit_lengths)
    for start in range(0, len(served), USERS_AT_ONCE):
        chunk = served[start : start + USERS_AT_ONCE]
        vectors_UD[chunk] = serve_each(of_some, chunk, dimension)
    return vectors_UD


def serve_each(of_some: Callable[[Integers], Vectors], users_R: Integers, width: int) -> Vectors:
    """(R, width) what a model says of users, not a number for single users that it fails on; raises if it serves none.

    What failed is tried again in halves, so that it is found who is at fault.
    """
    parts, errors = [], []
    todo = [users_R]
    while todo:
        users = todo.pop()
        try:
            parts.append((users, of_some(users)))
        except Exception as error:
            errors.append(error)
            if len(users) > 1:
                todo += np.array_split(users, 2)
                continue
            parts.append((users, np.full((1, width), NOT_SERVED, np.float32)))
    if errors and len(users_R) > 1 and all(np.isnan(values).all() for _, values in parts):
        raise errors[0]
    if errors:
        log.warning("the model fails on some users, who get popular items; the first time: %r", errors[-1])
    order = np.argsort(np.concatenate([users for users, _ in parts]), kind="stable")
    found: Vectors = np.concatenate([values for _, values in parts])[order][np.argsort(np.argsort(users_R))]
    return found
