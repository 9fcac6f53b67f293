"""The loss that a recipe names, over the negatives that it names."""

from torch import Tensor, nn

from training.losses import bpr_max, cross_entropy, gbce, sampled_softmax
from training.models.base import SessionModel
from training.negatives import Negatives
from training.recipes import SequenceRecipe


class NextItem(nn.Module):
    """How wrong the states are about what comes next."""

    def __init__(self, recipe: SequenceRecipe, counts_I: Tensor) -> None:
        super().__init__()
        self.recipe = recipe
        self.num_items = len(counts_I) - 1
        self.negatives = Negatives(counts_I, recipe.num_negatives, recipe.negative_alpha, recipe.in_batch_negatives)

    def forward(
        self,
        model: SessionModel,
        states_RD: Tensor,
        targets_R: Tensor,
        as_of: int,
        weights_R: Tensor | None = None,
    ) -> Tensor:
        """() the mean over the R states; weights are for cross-entropy over all items."""
        recipe = self.recipe
        if recipe.num_negatives == 0:
            return cross_entropy(states_RD, model.item_vectors(as_of), targets_R, recipe.score_memory_mb, weights_R)
        candidates = self.negatives(model, states_RD, targets_R, as_of)
        if recipe.loss == "bpr_max":
            return bpr_max(candidates, recipe.elu, recipe.bpr_regularisation)
        if recipe.loss == "gbce":
            return gbce(candidates, self.num_items, recipe.calibration)
        return sampled_softmax(candidates, recipe.logq)
