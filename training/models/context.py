"""What is told of an event beside its item, as numbers that a model can read.

    a property with classes      a vector for each class, and one for a missing value (features/intents.py)
    hour, weekday                a vector each, in the site's zone
    gap                          log of the seconds since the event before; 0 for the first one
    item_age                     beside its class the log of its hours, and whether it is known

Whatever is missing has a vector of its own: a value that the log does not tell, a class that the window did not hold, a
column that nobody brings along (a list of item ids alone). So that a model has learnt what to do then, what the log
tells is blanked in a tenth of the training sessions. No date is read, which no model has seen before it serves.

Shapes: T events · I item codes · F numbers · L categories of an item · C classes · D dimension.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from features.intents import MICROSECONDS_A_DAY, MISSING, Definitions, clock
from features.sequences import Integers
from training.batch import Batch
from training.models.transformer import place_in

ALWAYS = ("hour", "weekday", "gap", "item_age")
"""What can be told of each event, whatever the definitions are."""
PROPERTY_SIZE = 16
BLANKED = 0.1


class Context(nn.Module):
    """The properties of events that a model reads, by name; those that the definitions do not have are left out."""

    category: Tensor
    price_band: Tensor
    first_seen: Tensor
    age_edges: Tensor

    def __init__(self, num_codes: int, definitions: Definitions, names: Sequence[str]) -> None:
        super().__init__()
        self.definitions = definitions
        read = [name for name in definitions.classes if name in names]
        self.told = nn.ModuleDict(
            {name: nn.Embedding(len(definitions.classes[name]) + 1, PROPERTY_SIZE) for name in read}
        )
        is_clock = {name: name in names and name not in read for name in ("hour", "weekday", "gap")}
        self.hours = nn.Embedding(24, PROPERTY_SIZE) if is_clock["hour"] else None
        self.weekdays = nn.Embedding(7, PROPERTY_SIZE) if is_clock["weekday"] else None
        self.has_gap, self.has_age = is_clock["gap"], "item_age" in names
        for name in (*definitions.category_columns, "price_band", "first_seen"):
            self.register_buffer(name, torch.full((num_codes,), MISSING))
        self.register_buffer("age_edges", torch.tensor(definitions.age_edges, dtype=torch.float64))

    @property
    def tables(self) -> list[nn.Embedding]:
        """The vectors of everything that has classes."""
        found = (*self.told.values(), self.hours, self.weekdays)
        return [table for table in found if isinstance(table, nn.Embedding)]

    @property
    def width(self) -> int:
        """F."""
        return PROPERTY_SIZE * len(self.tables) + self.has_gap + 2 * self.has_age

    def draw(self) -> None:
        """Draw the vectors anew, small."""
        for table in self.tables:
            nn.init.normal_(table.weight, std=PROPERTY_SIZE**-0.5)

    def describe_items(self, described: Mapping[str, Integers]) -> None:
        """Keep what the catalogue tells of items."""
        for name, column_I in described.items():
            getattr(self, name).copy_(torch.from_numpy(column_I))

    def forward(self, batch: Batch) -> Tensor:
        """(T, F) what is told of each event."""
        properties, parts = self.properties(batch), []
        for name, table in self.told.items():
            if name in self.definitions.columns:
                parts.append(table(self.blanked(properties[name], batch)))
            elif self.has_several(name):
                parts.append(mean_of_classes(table.weight, self.categories(batch.item_codes)))
            else:
                parts.append(table(properties[name]))
        if self.hours is not None or self.weekdays is not None:
            told = clock(batch.occurred_at.cpu().numpy(), self.definitions.time_zone)
            hours_T, weekdays_T = (torch.from_numpy(column).to(batch.item_codes.device) for column in told)
            parts += [self.hours(hours_T)] if self.hours is not None else []
            parts += [self.weekdays(weekdays_T)] if self.weekdays is not None else []
        numbers = []
        if self.has_gap:
            gap_T = (batch.occurred_at - batch.occurred_at.roll(1)).clamp(min=0)
            numbers.append((gap_T.masked_fill(place_in(batch.unit_offsets) == 0, 0) / 1e6).log1p() / 10)
        if self.has_age:
            days_T, is_known_T = self.age(batch)
            numbers += [(days_T.clamp(min=0) * 24).log1p() / 10 * is_known_T, is_known_T]
        return torch.cat([*parts, *([torch.stack(numbers, dim=1).float()] if numbers else [])], dim=1)

    def properties(self, batch: Batch) -> dict[str, Tensor]:
        """(T) the codes of each property that is read; 0 where it is missing."""
        return {name: self.codes(name, batch) for name in self.told}

    def codes(self, name: str, batch: Batch) -> Tensor:
        """(T) the codes of one property."""
        if name in self.definitions.columns:
            return batch.event_columns.get(name, torch.full_like(batch.item_codes, MISSING))
        if name == "new_or_repeat":
            return 1 + is_repeat(batch).long()
        if name == "item_age":
            days_T, is_known_T = self.age(batch)
            return (torch.bucketize(days_T, self.age_edges, right=True) + 1).masked_fill(~is_known_T, MISSING)
        return {"category": self.category, "price_band": self.price_band}[name][batch.item_codes]

    def has_several(self, name: str) -> bool:
        """Whether an event may have several classes of a property."""
        return name == "category" and name not in self.definitions.columns and self.definitions.num_categories > 1

    def categories(self, item_codes_T: Tensor) -> Tensor:
        """(T, L) the codes of all categories of some items; 0 behind them."""
        return torch.stack([getattr(self, column)[item_codes_T] for column in self.definitions.category_columns], dim=1)

    def labels(self, name: str, batch: Batch) -> Tensor:
        """(T, L) the codes of one property; L is 1 but for several categories, and 0 stands for none."""
        return self.categories(batch.item_codes) if self.has_several(name) else self.codes(name, batch)[:, None]

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


def mean_of_classes(rows_CD: Tensor, codes_TL: Tensor) -> Tensor:
    """(T, D) the mean of the rows of several classes, those of a missing one left out; of none, the row of missing."""
    is_told_TL = codes_TL != MISSING
    total_TD = rows_CD.new_zeros(len(codes_TL), rows_CD.shape[1])
    for codes_T, is_told_T in zip(codes_TL.T, is_told_TL.T, strict=True):  # a product would hold all of T, L and D
        total_TD = total_TD + rows_CD[codes_T] * is_told_T[:, None]
    num_told_T1 = is_told_TL.sum(1, keepdim=True)
    return torch.where(num_told_T1 > 0, total_TD / num_told_T1.clamp(min=1), rows_CD[MISSING])


def is_repeat(batch: Batch) -> Tensor:
    """(T) whether the session had an event's item before."""
    session_T = torch.arange(len(batch.lengths), device=batch.offsets.device).repeat_interleave(batch.lengths)
    key_T = session_T * (batch.item_codes.max() + 1 if len(batch.item_codes) else 1) + batch.item_codes
    order_T = key_T.argsort(stable=True)
    found = torch.zeros_like(key_T, dtype=torch.bool)
    found[order_T[1:]] = key_T[order_T].diff() == 0
    return found
