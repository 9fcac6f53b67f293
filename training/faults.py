"""What can go wrong while a model learns, as sentences that say what to do."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import ConfigurationError
from training.recipes import SequenceRecipe

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
"""How torch says it: on an accelerator, on Linux, on Windows."""


def diverged(recipe: SequenceRecipe, epoch: int, step: int, last_loss: float) -> ConfigurationError:
    """A loss, or a weight after it, that is no number; epochs and steps are counted from 0 here, from 1 there."""
    ways = [f"Lower learning_rate (now {recipe.learning_rate:g})"]
    if recipe.momentum:
        ways.append(f"lower momentum (now {recipe.momentum:g})")
    if recipe.loss == "bpr_max" and not recipe.elu:
        ways.append("set elu, 0.5 for example")
    before = "from the start" if math.isnan(last_loss) else f"the last one was {last_loss:.4f}"
    return ConfigurationError(
        f"the training of encoder {recipe.encoder} came apart in epoch {epoch + 1} at step {step + 1}: the loss is no "
        f"number, {before}. {', or '.join(ways)} in the site file's training.recipes"
    )


@contextmanager
def explained(recipe: SequenceRecipe) -> Iterator[None]:
    """Say of a training that runs out of memory which settings bound it; raises ConfigurationError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(words in str(error).lower() for words in OUT_OF_MEMORY):
            raise
        raise ConfigurationError(
            f"the training of encoder {recipe.encoder} ran out of memory ({str(error).partition(chr(10))[0]}). "
            f"What a step holds is bounded by {', '.join(bounds(recipe))}: lower one of them in the site file's "
            "training.recipes"
        ) from error


def bounds(recipe: SequenceRecipe) -> list[str]:
    """The fields that bound the memory of a step, the strongest first, with their values."""
    batches = ["batch_size"] + (["batch_events"] if recipe.order != "session_parallel" else [])
    scores = "num_negatives" if recipe.num_negatives else "score_memory_mb"
    return [f"{name} (now {getattr(recipe, name)})" for name in (scores, *batches, "hidden_size")]
