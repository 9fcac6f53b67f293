"""What a recipe learns from: sessions that have a target, or users who have one, with all of their sessions."""

from features.sequences import Sequences
from pipeline.terminal import log
from training.recipes import OF_USERS, EnsembleRecipe, LearntRecipe, Recipe, SequenceRecipe, reads_properties


def reads_users(recipe: Recipe) -> bool:
    """Whether a model of this recipe reads a user's earlier sessions."""
    return isinstance(recipe, LearntRecipe) and recipe.sequence == "user"


def carries_users(recipe: Recipe) -> bool:
    """Whether a model of this recipe carries a state of each user that can be kept, made of items alone."""
    return isinstance(recipe, SequenceRecipe) and recipe.encoder in OF_USERS and not reads_properties(recipe)


def training_units(recipe: Recipe, sequences: Sequences) -> Sequences:
    """The sequences of a window, of known items only, as the recipe reads them.

    A session of one event has no target. Among a user's sessions it stays: it is history of the later ones.
    """
    if isinstance(recipe, EnsembleRecipe):
        return sequences.at_least(1)  # each member takes its own of them
    if not isinstance(recipe, SequenceRecipe) or recipe.sequence == "session":
        return sequences.at_least(2)
    sequences = sequences.at_least(1)
    kept = sequences.newest(recipe.max_sessions)
    if left_out := sequences.num_sessions - kept.num_sessions:
        log.info(
            "%d of %d sessions are left out: their users have more than max_sessions = %d",
            *(left_out, sequences.num_sessions, recipe.max_sessions),
        )
    return kept.by_user().with_targets()
