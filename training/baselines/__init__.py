"""What every model has to beat, one file each; a new one adds a line here and a recipe."""

from typing import Any

from training.baselines.base import Baseline
from training.baselines.item_knn import ItemKnn
from training.baselines.markov import Markov
from training.baselines.popularity import Popularity
from training.baselines.sequential_rules import SequentialRules
from training.baselines.session_popularity import SessionPopularity
from training.baselines.stan import Stan
from training.baselines.vs_knn import VsKnn
from training.recipes import (
    ItemKnnRecipe,
    MarkovRecipe,
    PopularityRecipe,
    SequentialRulesRecipe,
    SessionPopularityRecipe,
    StanRecipe,
    VsKnnRecipe,
)

BASELINES: dict[type, Any] = {
    PopularityRecipe: Popularity,
    SessionPopularityRecipe: SessionPopularity,
    MarkovRecipe: Markov,
    SequentialRulesRecipe: SequentialRules,
    ItemKnnRecipe: ItemKnn,
    VsKnnRecipe: VsKnn,
    StanRecipe: Stan,
}
"""Recipe -> the baseline that it makes: called with the number of codes and the recipe."""

__all__ = ["BASELINES", "Baseline"]
