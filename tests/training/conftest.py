from collections.abc import Callable
from datetime import date

import numpy as np
import polars as pl
import pytest
import torch

from features.vocabulary import learn_vocabulary
from training.baselines.popularity import Popularity
from training.batch import Batch
from training.bundle import Bundle
from training.models.base import Recommender, TopItems, top_of_scores
from training.outcomes import Outcomes
from training.recipes import PopularityRecipe


class Scripted(Recommender):
    """Scores that follow from the last item alone: row = its code, column = the scored code."""

    def __init__(self, scores_II: list[list[float]]) -> None:
        super().__init__()
        self.scores_II = torch.tensor(scores_II, dtype=torch.float32)

    def recommend(self, batch: Batch, n: int, as_of: int) -> TopItems:
        return top_of_scores(self.scores_II[batch.item_codes].clone(), n)


@pytest.fixture(scope="session")
def scripted() -> Callable[..., Bundle]:
    """A bundle that knows the items a, b, c, … and scores them as told."""

    def bundle(scores_II: list[list[float]]) -> Bundle:
        ids = [chr(ord("a") + n) for n in range(len(scores_II) - 1)]
        vocabulary = learn_vocabulary(pl.DataFrame({"item_ids": [ids]}), 1)
        return Bundle(Scripted(scores_II), vocabulary, "scripted", PopularityRecipe(), date(2026, 3, 1), 0)

    return bundle


@pytest.fixture(scope="session")
def popularity_bundle(sessions_of) -> Callable[[list[list[str]]], Bundle]:
    """Popularity over the given sessions."""

    def bundle(items: list[list[str]]) -> Bundle:
        from features.sequences import encode_sessions

        sessions = sessions_of(items)
        vocabulary = learn_vocabulary(sessions, 1)
        popularity = Popularity(vocabulary.num_codes, PopularityRecipe())
        popularity.fit(encode_sessions(sessions, vocabulary), 0)
        return Bundle(popularity, vocabulary, "popularity", PopularityRecipe(), date(2026, 3, 1), 0)

    return bundle


@pytest.fixture(scope="session")
def walk() -> Callable[..., list[list[str]]]:
    """Sessions over items i0 … i39: each next item follows from the one before with the given chance, else is drawn."""

    def sessions(num_sessions: int, follows: float, seed: int) -> list[list[str]]:
        random = np.random.default_rng(seed)
        num_items = 40
        rows = []
        for length in random.integers(3, 9, num_sessions):
            items = [int(random.integers(num_items))]
            while len(items) < length:
                is_next = random.random() < follows
                items.append((7 * items[-1] + 3) % num_items if is_next else int(random.integers(num_items)))
            rows.append([f"i{n}" for n in items])
        return rows

    return sessions


@pytest.fixture(scope="session")
def random_outcomes() -> Callable[..., Outcomes]:
    """Outcomes of the protocol `all` in one metric, next_recall_at_20: each target is a hit with the given chance."""

    def outcomes(num_visitors: int, seed: int, recall: float = 0.3) -> Outcomes:
        random = np.random.default_rng(seed)
        num_targets = random.integers(1, 6, num_visitors)
        rows = pl.DataFrame(
            {
                "visitor": [f"v{n}" for n in range(num_visitors)],
                "num_targets": num_targets,
                "num_cold": np.zeros(num_visitors, dtype=np.int64),
                "next_recall_at_20": random.binomial(num_targets, recall).astype(float),
                "protocol": "all",
            }
        )
        return Outcomes(rows, ("next_recall_at_20",))

    return outcomes
