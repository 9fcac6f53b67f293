"""Why an item is in a list: which events of the session brought it there.

Leave-one-event-out, for any recommender: the influence of event t on item i is

    score(i | session) - score(i | session without event t)

in the recommender's own scores, signed; one more pass over the sessions with each event left out in turn. It says what
would change, and nothing about why people behave so. Events that say the same hide each other: no one is missed alone.

Integrated gradients (Sundararajan et al., "Axiomatic Attribution for Deep Networks", ICML 2017), for session models,
from a session of zero vectors: sum over events = score(i | session) - score(i | zeros), but for the steps of the
integral.

Shapes: S sessions · T events · N items of each session's list · I item codes · D dimension.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from features.sequences import Integers, Sequences
from training.baselines.base import Baseline
from training.batch import Batch, gather
from training.bundle import Bundle
from training.models.base import SessionModel
from training.score import all_scores

Floats = NDArray[np.float64]
EVENTS_AT_ONCE = 2**17
"""Events that are read in one pass, those left out not counted."""
STEPS = 64


def leave_one_out(bundle: Bundle, sequences: Sequences, codes_SN: Integers) -> Floats:
    """(T, N) the influence of each event on each item of its session's list; item codes may be any.

    Sessions must not be empty and hold known items only. The only event of a session is given the whole score. Where
    sessions are grouped, S are users, and events of earlier sessions are left out in the same way; a user whose newest
    session has but one event is without it scored as after the session before.
    """
    parts = []
    for units in few_at_a_time(sequences.unit_lengths**2):
        some = sequences.take_units(units)
        of_event = unit_of_event(some)
        scores_SN = score_items(bundle, some, codes_SN[units])
        scores_TN = np.zeros((len(of_event), codes_SN.shape[1]))
        shortened = without_each(some)
        left = np.flatnonzero(shortened.unit_lengths)
        if len(left):
            scores_TN[left] = score_items(bundle, shortened.take_units(left), codes_SN[units][of_event[left]])
        parts.append(scores_SN[of_event] - scores_TN)
    return np.concatenate(parts) if parts else np.zeros((0, codes_SN.shape[1]))


def few_at_a_time(work_S: Integers, most: int | None = None) -> Iterator[Integers]:
    """Neighbouring sessions whose work stays within `most`, EVENTS_AT_ONCE if not told, at least one at a time."""
    cuts = np.flatnonzero(np.diff(np.cumsum(work_S) // (most or EVENTS_AT_ONCE))) + 1
    yield from (part for part in np.split(np.arange(len(work_S)), cuts) if len(part))


def without_each(sequences: Sequences) -> Sequences:
    """T units: the t-th one is the session, or user, of event t without that event; it may be empty."""
    of_event = unit_of_event(sequences)
    left_out = np.repeat(np.arange(len(of_event)), sequences.unit_lengths[of_event])
    shortened = sequences.take_units(of_event).only(sequences.events_of_units(of_event) != left_out)
    return shortened if sequences.user_offsets is None else shortened.at_least(1)


def unit_of_event(sequences: Sequences) -> Integers:
    """(T) the number of the session, or of the user where sessions are grouped, that an event belongs to."""
    return np.repeat(np.arange(sequences.num_units), sequences.unit_lengths)


def score_items(bundle: Bundle, sequences: Sequences, codes_SN: Integers) -> Floats:
    """(S, N) scores of the given items after each session. Sessions must not be empty."""
    model, wanted_SN = bundle.recommender, torch.from_numpy(codes_SN)
    batch = gather(sequences, np.arange(sequences.num_units))
    with torch.inference_mode():
        if isinstance(model, SessionModel):  # no need for the scores of all other items
            vectors_ID = model.item_vectors(bundle.as_of)
            scores_SN = torch.einsum("sd,snd->sn", model.session_vectors(batch), vectors_ID[wanted_SN])
        elif isinstance(model, Baseline):  # a row of all items for every session would fill the memory
            parts, start = [], 0
            for ends_R in model.chunks(batch, batch.offsets[1:].numpy() - 1):
                wanted_RN = wanted_SN[start : start + len(ends_R)]
                parts.append(model.scores(batch, ends_R).gather(1, wanted_RN))
                start += len(ends_R)
            scores_SN = torch.cat(parts)
        else:
            scores_SN = all_scores(bundle, batch).gather(1, wanted_SN)
    found: Floats = scores_SN.double().numpy()
    return found


def integrated_gradients(bundle: Bundle, sequences: Sequences, codes_S: Integers, steps: int = STEPS) -> Floats:
    """(T) what each event adds to the score of its session's (or user's) item, from zero vectors instead of items.

    Raises TypeError for a recommender without an item table (`items`) to take gradients of.
    """
    model, table = bundle.recommender, item_table(bundle.recommender)
    batch = gather(sequences, np.arange(sequences.num_units))
    with torch.no_grad():
        vectors_SD = model.item_vectors(bundle.as_of)[torch.from_numpy(codes_S)]  # type: ignore[operator]
        inputs_TD = table(batch.item_codes)
    gradients_TD = torch.zeros_like(inputs_TD)
    for step in range(steps):
        gradients_TD += gradients_at(model, table, batch, inputs_TD * ((step + 0.5) / steps), vectors_SD)
    found: Floats = (inputs_TD * gradients_TD / steps).sum(1).double().numpy()
    return found


def gradients_at(model: Any, table: nn.Module, batch: Batch, inputs_TD: Tensor, vectors_SD: Tensor) -> Tensor:
    """(T, D) how the scores change with what is read in place of the items."""
    inputs_TD = inputs_TD.detach().requires_grad_()
    with reading(table, inputs_TD):
        score = (model.session_vectors(batch) * vectors_SD).sum()
    (gradients_TD,) = torch.autograd.grad(score, inputs_TD)
    return gradients_TD


@contextmanager
def reading(table: nn.Module, inputs_TD: Tensor) -> Iterator[None]:
    """A model reads these vectors instead of its items'."""
    hook = table.register_forward_hook(lambda *_: inputs_TD)
    try:
        yield
    finally:
        hook.remove()


def item_table(recommender: nn.Module) -> nn.Module:
    """The table that turns items into input."""
    inner = getattr(recommender, "model", recommender)  # a prior stands around its model
    if not isinstance(recommender, SessionModel) or not isinstance(getattr(inner, "items", None), nn.Embedding):
        raise TypeError(f"{type(recommender).__name__} has no item table to take gradients of")
    table: nn.Module = inner.items
    return table
