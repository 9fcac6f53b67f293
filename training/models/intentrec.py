"""IntentRec: what the next event is for is predicted first, and what is predicted helps to find the item.

Oh, Bhattacharya, Feng and Lamkhede, "IntentRec: Predicting User Session Intent with Hierarchical Multi-Task Learning",
arXiv 2408.05353. For event k of a session:

    F_k = [E[item_k]; a vector for each property of the event; hour; weekday; log gap; log age of the item]
    S_k = Encoder(F_i .. F_k), i the first event at most `short_term_window` before k
    p_k^m = softmax(FC_m(Encoder([F; S])_k))                          an intent: a property of event k + 1, M of them
    Z_k = sum_m softmax_m(FC(Proj_m(p_k^m))) Proj_m(p_k^m)
    state_k = FC(Encoder([F; S; Z])_k)
    score(i) = state_k . E[i] + b_i + sum_m gamma_m log p_k^m(class of i)    over intents that are properties of an item
    L = L_item + lambda * sum_m L_m

    variant         paper   has
    next_item       V0      F
    multitask       V1      F, and heads for the intents on the item's own encoder
    hierarchical    V2      F and Z
    short_term      V3      F, S and Z

Where this differs from the paper, or the paper does not say:
- The item's head is a product with the item table that is also the input, and a bias; theirs is a matrix of its own.
  So one item index serves this model, too.
- Their predictions reach the item's head through Z alone. Here an item is also raised by how likely its own category
  and price band are (gamma_m is learnt): log p is the head's product with a row of its weights, up to a constant of the
  event that no ranking sees: a product with item vectors again. An item without a class counts as the mean of all.
- A sequence is a session, theirs the last n interactions of a user: hence minutes for S, where they take a week.
- Time is told as hour and weekday in the site's zone, as log gap to the event before and as log age of the item, never
  as a date, which no model has seen before it serves. Beside it the place in the session is an embedding; theirs has
  only times for positions.
- Of an item with several categories each one is a label; as in the paper only labels that are there count, none that
  are not: the loss is -log p, a mean over the event's labels, p a softmax as the equations write it. Missing labels
  have no loss.
- Weights by duration are the recipe's (`duration_cap`): a log of clicks tells them by the next click only.
- What the log tells of an event is blanked in a tenth of the training sessions (training/models/context.py).

Shapes: T events · M intents · C classes of an intent · D dimension · F features · R targets · L labels of an event.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from features.intents import MISSING, Definitions
from features.sequences import Integers
from training.batch import Batch
from training.durations import duration_weights
from training.losses import weighted_mean
from training.models.context import ALWAYS, Context, mean_of_classes
from training.models.item_table import SharedItems, with_one
from training.models.transformer import Encoder, group_sessions, place_in
from training.recipes import SequenceRecipe

Variant = Literal["next_item", "multitask", "hierarchical", "short_term"]


OF_ITEMS = ("category", "price_band")
"""Intents that are properties of an item, at any time and for anyone."""


class Reading(NamedTuple):
    """What the model makes of a batch."""

    states_TD: Tensor
    logits: dict[str, Tensor]
    """(T, C) of each intent of the next event."""
    weights_TM: Tensor | None
    """How much each intent weighs in Z; rows add up to 1. None without Z."""


class IntentRec(SharedItems):
    """An encoder for intents under an encoder for items."""

    def __init__(
        self,
        num_codes: int,
        hidden_size: int,
        dropout: float,
        definitions: Definitions | None = None,
        variant: Variant = "short_term",
        intent_weight: float = 0.2,
        window: timedelta = timedelta(minutes=10),
        num_layers: int = 1,
        num_heads: int = 2,
        duration_cap: timedelta | None = None,
    ) -> None:
        super().__init__(num_codes, hidden_size, dropout)
        self.duration_cap = duration_cap
        self.definitions = definitions or Definitions()
        self.variant, self.intent_weight, self.window = variant, intent_weight, window // timedelta(microseconds=1)
        self.told = Context(num_codes, self.definitions, (*self.definitions.classes, *ALWAYS))
        num_features = hidden_size + self.told.width

        def encoder(num_further: int) -> Encoder:
            return Encoder(num_features + num_further, hidden_size, num_layers, num_heads, dropout)

        num_short = hidden_size if variant == "short_term" else 0
        self.short_term = encoder(0) if num_short else None
        is_hierarchical = variant in ("hierarchical", "short_term") and bool(self.definitions.intents)
        self.of_intents = encoder(num_short) if is_hierarchical else None
        self.of_items = encoder(num_short + (hidden_size if is_hierarchical else 0))
        sizes = {name: len(self.definitions.classes[name]) for name in self.definitions.intents}
        sizes = {} if variant == "next_item" else sizes
        self.heads = nn.ModuleDict({name: nn.Linear(hidden_size, size) for name, size in sizes.items()})
        self.projections = nn.ModuleDict(
            {name: nn.Linear(size, hidden_size) for name, size in sizes.items() if is_hierarchical}
        )
        self.attention = nn.Linear(hidden_size, 1) if is_hierarchical else None
        self.gains = nn.ParameterDict(
            {name: nn.Parameter(torch.tensor(0.3)) for name in self.projections if name in OF_ITEMS}
        )
        self.wanted = nn.Linear(hidden_size, hidden_size)
        self.reading: tuple[Batch, Reading] | None = None
        self.draw_items()
        self.told.draw()

    @classmethod
    def of_recipe(cls, recipe: SequenceRecipe, num_codes: int, definitions: Definitions | None = None) -> Self:
        """With the recipe's variant and sizes."""
        return cls(
            num_codes,
            recipe.hidden_size,
            recipe.dropout,
            definitions,
            recipe.variant,
            recipe.intent_weight,
            recipe.short_term_window,
            recipe.num_layers,
            recipe.num_heads,
            recipe.duration_cap,
        )

    def describe_items(self, described: Mapping[str, Integers]) -> None:
        """Keep what the catalogue tells of items."""
        super().describe_items(described)
        self.told.describe_items(described)

    def states(self, batch: Batch) -> Tensor:
        """(T, D + 1) what is wanted after each event, or (T, 2 D + 1) with what the heads read; then a column of 1."""
        reading = self.read(batch)
        if self.training:  # `extra_terms` of this batch comes next; reading it again would double the work
            self.reading = (batch, reading)
        return reading.states_TD

    def item_vectors(self, as_of: int, codes_C: Tensor | None = None) -> Tensor:
        """(I, D + 1) the item table and the bias, or (I, 2 D + 1) with the heads' rows for its classes between."""
        vectors = super().item_vectors(as_of, codes_C)
        if not self.gains:
            return vectors
        rows = torch.zeros_like(vectors)
        for name, gain in self.gains.items():
            rows = rows + gain * self.rows_of_items(name, codes_C)
        return torch.cat([vectors[:, :-1], rows[:, :-1], vectors[:, -1:] + rows[:, -1:]], dim=1)

    def rows_of_items(self, name: str, codes_C: Tensor | None) -> Tensor:
        """(I, D + 1) or (C, D + 1) the rows of an intent's head for the items' classes; of several, their mean."""
        classes_I = getattr(self.told, name)
        if not self.told.has_several(name):
            return self.class_rows(name)[classes_I if codes_C is None else classes_I[codes_C]]
        items_C = torch.arange(len(classes_I), device=classes_I.device) if codes_C is None else codes_C
        return mean_of_classes(self.class_rows(name), self.told.categories(items_C))

    def class_rows(self, name: str) -> Tensor:
        """(1 + C, D + 1) weights and bias of an intent's head; the first row, of no class, is their mean."""
        head = self.heads[name]
        rows = torch.cat([head.weight, head.bias[:, None]], dim=1)
        return torch.cat([rows.mean(0, keepdim=True), rows])

    def extra_terms(self, batch: Batch) -> dict[str, Tensor]:
        """The loss of each intent, weighted: cross-entropy, a mean over the targets that have a label."""
        kept, self.reading = self.reading, None
        reading = kept[1] if kept is not None and kept[0] is batch else self.read(batch)
        weights_R = None if self.duration_cap is None else duration_weights(batch, self.duration_cap)
        terms = {}
        for name, logits_TC in reading.logits.items():
            labels_RL = self.told.labels(name, batch).roll(-1, dims=0)[batch.target_mask]
            loss = label_loss(logits_TC[batch.target_mask], labels_RL, weights_R)
            terms[f"train_intent_{name}"] = self.intent_weight * loss
        return terms

    @torch.inference_mode()
    def intents(self, batch: Batch) -> dict[str, Tensor]:
        """(T, C) the probability of each class of each intent of the next event."""
        return {name: logits_TC.softmax(1) for name, logits_TC in self.read(batch).logits.items()}

    def read(self, batch: Batch) -> Reading:
        """States and intents of a batch."""
        offsets = batch.unit_offsets
        place_T = place_in(offsets)
        whole, logits, weights_TM = group_sessions(offsets), {}, None
        features_TF = torch.cat([self.inputs(batch), self.told(batch)], dim=1)
        if self.short_term is not None:
            recent = group_sessions(offsets, batch.occurred_at, self.window)
            features_TF = torch.cat([features_TF, self.short_term(features_TF, place_T, recent)], dim=1)
        if self.of_intents is not None and self.attention is not None:
            intent_TD = self.of_intents(features_TF, place_T, whole)
            logits = {name: head(intent_TD) for name, head in self.heads.items()}
            projected_TMD = torch.stack([self.projections[n](each.softmax(1)) for n, each in logits.items()], dim=1)
            weights_TM = self.attention(projected_TMD)[:, :, 0].softmax(1)
            features_TF = torch.cat([features_TF, (weights_TM[:, :, None] * projected_TMD).sum(1)], dim=1)
        item_TD = self.of_items(features_TF, place_T, whole)
        if self.of_intents is None:
            logits = {name: head(item_TD) for name, head in self.heads.items()}
        wanted_TD = self.wanted(item_TD)
        states_TD = torch.cat([wanted_TD, intent_TD], dim=1) if self.gains else wanted_TD
        return Reading(with_one(states_TD), logits, weights_TM)


def label_loss(logits_RC: Tensor, labels_RL: Tensor, weights_R: Tensor | None = None) -> Tensor:
    """() cross-entropy, a mean over the events that have a label; of several labels of an event, their mean."""
    is_label_RL = labels_RL != MISSING
    log_RL = logits_RC.log_softmax(1).gather(1, (labels_RL - 1).clamp(min=0))
    of_event_R = (log_RL * is_label_RL).sum(1) / is_label_RL.sum(1).clamp(min=1)
    is_told_R = is_label_RL.any(1).float()
    return weighted_mean(-of_event_R, is_told_R if weights_R is None else is_told_R * weights_R)
