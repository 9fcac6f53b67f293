"""IntentRec: what the next event is for is predicted first, and what is predicted helps to find the item.

Oh, Bhattacharya, Feng and Lamkhede, "IntentRec: Predicting User Session Intent with Hierarchical Multi-Task Learning",
arXiv 2408.05353. For event k of a session:

    F_k = [E[item_k]; a vector for each property of the event; hour; weekday; log gap; log age of the item]
    S_k = Encoder(F_i .. F_k), i the first event at most `short_term_window` before k
    p_k^m = softmax(FC_m(Encoder([F; S])_k))                          an intent: a property of event k + 1, M of them
    Z_k = sum_m softmax_m(FC(Proj_m(p_k^m))) Proj_m(p_k^m)
    state_k = FC(Encoder([F; S; Z])_k)                                score(i) = state_k . E[i] + b_i
    L = L_item + lambda * sum_m L_m

    variant         paper   has
    next_item       V0      F
    multitask       V1      F, and heads for the intents on the item's own encoder
    hierarchical    V2      F and Z
    short_term      V3      F, S and Z

Where this differs from the paper, or the paper does not say:
- The item's head is a product with the item table that is also the input, and a bias; theirs is a matrix of its own.
  So one item index serves this model, too.
- A sequence is a session, theirs the last n interactions of a user: hence minutes for S, where they take a week.
- Time is told as hour and weekday in the site's zone, as log gap to the event before and as log age of the item, never
  as a date, which no model has seen before it serves. Beside it the place in the session is an embedding; theirs has
  only times for positions.
- An intent has one class for each event; no multi-label categories. Missing labels have no loss.
- No weights by duration: a log of clicks has none.
- What the log tells of an event is blanked in a tenth of the training sessions, so that a model that is asked without
  it (a list of item ids alone) has learnt what to do.

Shapes: T events · M intents · C classes of an intent · D dimension · F features.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from features.intents import MICROSECONDS_A_DAY, MISSING, Definitions, clock
from features.sequences import Integers
from training.batch import Batch
from training.models.item_table import SharedItems, with_one
from training.models.transformer import Encoder, group_sessions, place_in
from training.recipes import SequenceRecipe

Variant = Literal["next_item", "multitask", "hierarchical", "short_term"]
PROPERTY_SIZE = 16
BLANKED = 0.1


class Reading(NamedTuple):
    """What the model makes of a batch."""

    states_TD: Tensor
    logits: dict[str, Tensor]
    """(T, C) of each intent of the next event."""
    weights_TM: Tensor | None
    """How much each intent weighs in Z; rows add up to 1. None without Z."""


class IntentRec(SharedItems):
    """An encoder for intents under an encoder for items."""

    category: Tensor
    price_band: Tensor
    first_seen: Tensor
    age_edges: Tensor

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
    ) -> None:
        super().__init__(num_codes, hidden_size, dropout)
        self.definitions = definitions or Definitions()
        self.variant, self.intent_weight, self.window = variant, intent_weight, window // timedelta(microseconds=1)
        self.told = nn.ModuleDict(
            {name: nn.Embedding(len(names) + 1, PROPERTY_SIZE) for name, names in self.definitions.classes.items()}
        )
        self.hours, self.weekdays = nn.Embedding(24, PROPERTY_SIZE), nn.Embedding(7, PROPERTY_SIZE)
        num_features = hidden_size + PROPERTY_SIZE * (len(self.told) + 2) + 3

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
        self.wanted = nn.Linear(hidden_size, hidden_size)
        for name in ("category", "price_band", "first_seen"):
            self.register_buffer(name, torch.full((num_codes,), MISSING))
        self.register_buffer("age_edges", torch.tensor(self.definitions.age_edges, dtype=torch.float64))
        self.reading: tuple[Batch, Reading] | None = None
        self.draw_items()
        for table in (*self.told.values(), self.hours, self.weekdays):
            nn.init.normal_(table.weight, std=PROPERTY_SIZE**-0.5)

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
        )

    def describe_items(self, described: Mapping[str, Integers]) -> None:
        """Keep what the catalogue tells of items."""
        for name, column_I in described.items():
            getattr(self, name).copy_(torch.from_numpy(column_I))

    def states(self, batch: Batch) -> Tensor:
        """(T, D + 1) what is wanted after each event; the last column is 1 and meets the items' bias."""
        reading = self.read(batch)
        if self.training:  # `extra_terms` of this batch comes next; reading it again would double the work
            self.reading = (batch, reading)
        return reading.states_TD

    def extra_terms(self, batch: Batch) -> dict[str, Tensor]:
        """The loss of each intent, weighted: cross-entropy, a mean over the targets that have a label."""
        kept, self.reading = self.reading, None
        reading = kept[1] if kept is not None and kept[0] is batch else self.read(batch)
        properties = self.properties(batch)
        terms = {}
        for name, logits_TC in reading.logits.items():
            labels_R = properties[name].roll(-1)[batch.target_mask] - 1
            loss = functional.cross_entropy(
                logits_TC[batch.target_mask], labels_R, ignore_index=MISSING - 1, reduction="sum"
            )
            num_labels = (labels_R != MISSING - 1).sum().clamp(min=1)
            terms[f"train_intent_{name}"] = self.intent_weight * loss / num_labels
        return terms

    @torch.inference_mode()
    def intents(self, batch: Batch) -> dict[str, Tensor]:
        """(T, C) the probability of each class of each intent of the next event."""
        return {name: logits_TC.softmax(1) for name, logits_TC in self.read(batch).logits.items()}

    def read(self, batch: Batch) -> Reading:
        """States and intents of a batch."""
        offsets = batch.unit_offsets
        place_T = place_in(offsets)
        whole, features_TF, logits, weights_TM = group_sessions(offsets), self.features(batch, place_T), {}, None
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
        return Reading(with_one(self.wanted(item_TD)), logits, weights_TM)

    def features(self, batch: Batch, place_T: Tensor) -> Tensor:
        """(T, F) what is told of each event."""
        told = [self.inputs(batch)]
        for name, codes_T in self.properties(batch).items():
            codes_T = self.blanked(codes_T, batch) if name in self.definitions.columns else codes_T
            told.append(self.told[name](codes_T))
        hours, weekdays = clock(batch.occurred_at.cpu().numpy(), self.definitions.time_zone)
        device = batch.item_codes.device
        told += [self.hours(torch.from_numpy(hours).to(device)), self.weekdays(torch.from_numpy(weekdays).to(device))]
        is_first_T = place_T == 0
        gap_T = (batch.occurred_at - batch.occurred_at.roll(1)).clamp(min=0).masked_fill(is_first_T, 0)
        days_T, is_known_T = self.age(batch)
        numbers_TN = [(gap_T / 1e6).log1p() / 10, (days_T.clamp(min=0) * 24).log1p() / 10 * is_known_T, is_known_T]
        return torch.cat([*told, torch.stack(numbers_TN, dim=1).float()], dim=1)

    def age(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(T) days since an event's item was first seen, and (T) whether that is known."""
        first_T = self.first_seen[batch.item_codes]
        return (batch.occurred_at - first_T).double() / MICROSECONDS_A_DAY, first_T != MISSING

    def blanked(self, codes_T: Tensor, batch: Batch) -> Tensor:
        """Codes, in training missing for a share of the sessions."""
        if not self.training:
            return codes_T
        is_blank_S = torch.rand(len(batch.lengths), device=codes_T.device) < BLANKED
        return codes_T.masked_fill(is_blank_S.repeat_interleave(batch.lengths), MISSING)

    def properties(self, batch: Batch) -> dict[str, Tensor]:
        """(T) the codes of each property; 0 where it is missing."""
        days_T, is_known_T = self.age(batch)
        found = {
            "category": self.category[batch.item_codes],
            "price_band": self.price_band[batch.item_codes],
            "item_age": (torch.bucketize(days_T, self.age_edges, right=True) + 1).masked_fill(~is_known_T, MISSING),
            "new_or_repeat": 1 + is_repeat(batch).long(),
        }
        nothing_T = torch.full_like(batch.item_codes, MISSING)
        told = {name: batch.event_columns.get(name, nothing_T) for name in self.definitions.columns}
        return {name: (found | told)[name] for name in self.definitions.classes}


def is_repeat(batch: Batch) -> Tensor:
    """(T) whether the session had an event's item before."""
    session_T = torch.arange(len(batch.lengths), device=batch.offsets.device).repeat_interleave(batch.lengths)
    key_T = session_T * (batch.item_codes.max() + 1 if len(batch.item_codes) else 1) + batch.item_codes
    order_T = key_T.argsort(stable=True)
    found = torch.zeros_like(key_T, dtype=torch.bool)
    found[order_T[1:]] = key_T[order_T].diff() == 0
    return found
