"""What baselines share: a score for the items they have evidence for, popularity for all others.

A baseline says which items follow from a session and how strongly, in numbers above 0. Items it knows nothing about
come behind, the most popular first, with scores below 0: c_i / (1 + max c) - 1 for an item with c_i events. So a list
is full whenever there are items enough, and the sign tells evidence from filling.

Shapes: R events that get a list · I item codes · T events of a batch.
"""

from abc import abstractmethod
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor, nn

from features.sequences import Integers, Sequences
from training.batch import Batch
from training.models.base import Recommender, TopItems, top_of_scores

Floats = NDArray[np.float64]
NUMBERS_AT_ONCE = 2**23  # held in one array while events are scored: 64 MB, and a few such arrays at a time


class Baseline(Recommender):
    """Counts and rules instead of weights: `fit` goes through the window once."""

    popularity_I: Tensor

    def __init__(self, num_codes: int) -> None:
        super().__init__()
        self.num_codes = num_codes
        self.register_buffer("popularity_I", torch.zeros(num_codes, dtype=torch.float64))

    def fit(self, sequences: Sequences, as_of: int) -> None:
        """Learn from the window that ends at `as_of` (microseconds since 1970)."""
        known = sequences.known_only()
        counts = np.bincount(known.item_codes, minlength=self.num_codes)
        self.popularity_I.copy_(torch.from_numpy(counts / (1 + counts.max(initial=0))))
        self.learn(known, as_of)

    @abstractmethod
    def learn(self, known: Sequences, as_of: int) -> None:
        """Learn from a window without unknown items; a session may be empty."""

    @abstractmethod
    def evidence(self, batch: Batch, events_R: Integers) -> Floats:
        """(R, I) how strongly each item follows from the session through each event; 0 where nothing is known."""

    def work(self, batch: Batch) -> Integers:
        """(T) numbers that `evidence` holds at once for each event, beside its row of I scores."""
        return np.zeros(len(batch.item_codes), dtype=np.int64)

    def recommend(self, batch: Batch, n: int, as_of: int) -> TopItems:
        """The best items after each event."""
        return self.recommend_after(batch, np.arange(len(batch.item_codes)), n)

    def recommend_targets(self, batch: Batch, n: int, as_of: int) -> TopItems:
        """The best items at each target."""
        return self.recommend_after(batch, batch.target_mask.nonzero()[:, 0].numpy(), n)

    def recommend_last(self, batch: Batch, n: int, as_of: int) -> TopItems:
        """The best items after each session's last event."""
        return self.recommend_after(batch, batch.offsets[1:].numpy() - 1, n)

    def recommend_after(self, batch: Batch, events_R: Integers, n: int) -> TopItems:
        """The best items after some events, a bounded number of events at a time."""
        parts = [top_of_scores(self.scores(batch, chunk), n) for chunk in self.chunks(batch, events_R)]
        codes_RN, scores_RN, ties_R = (torch.cat(columns) for columns in zip(*parts, strict=True))
        return TopItems(codes_RN, scores_RN.float(), ties_R)

    def chunks(self, batch: Batch, events_R: Integers) -> Iterator[Integers]:
        """Neighbouring events whose work stays within NUMBERS_AT_ONCE, at least one at a time."""
        done = np.cumsum(self.work(batch)[events_R] + self.num_codes)
        cuts = np.flatnonzero(np.diff(done // NUMBERS_AT_ONCE)) + 1
        yield from np.split(events_R, cuts)

    def scores(self, batch: Batch, events_R: Integers) -> Tensor:
        """(R, I) evidence, and below it popularity."""
        evidence_RI = torch.from_numpy(self.evidence(batch, events_R))
        return torch.where(evidence_RI > 0, evidence_RI, self.popularity_I - 1)


class SparseTable(nn.Module):
    """A sparse matrix as buffers, so that it is saved with the weights; its size is known only after fitting."""

    offsets: Tensor
    columns: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("offsets", torch.zeros(1, dtype=torch.int64))
        self.register_buffer("columns", torch.zeros(0, dtype=torch.int32))
        self.register_buffer("values", torch.zeros(0, dtype=torch.float64))
        self.register_load_state_dict_pre_hook(make_room)

    def keep(self, matrix: csr_array) -> None:
        """Hold this matrix."""
        self.offsets = torch.from_numpy(matrix.indptr.astype(np.int64))
        self.columns = torch.from_numpy(matrix.indices.astype(np.int32))
        self.values = torch.from_numpy(matrix.data.astype(np.float64))

    def matrix(self, num_columns: int) -> csr_array:
        """The matrix that is held."""
        parts = (self.values.numpy(), self.columns.numpy(), self.offsets.numpy())
        return csr_array(parts, shape=(len(self.offsets) - 1, num_columns))


def make_room(table: SparseTable, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Give the buffers of a table the sizes of what is about to be loaded."""
    for name in ("offsets", "columns", "values"):
        if prefix + name in state:
            setattr(table, name, torch.empty_like(state[prefix + name]))


class ItemToItem(Baseline):
    """A baseline that looks at the current item alone: row = it, column = the item that follows."""

    def __init__(self, num_codes: int) -> None:
        super().__init__(num_codes)
        self.table = SparseTable()
        self.table.keep(csr_array((num_codes, num_codes)))

    def recommend_after(self, batch: Batch, events_R: Integers, n: int) -> TopItems:
        """The best items after some events; the same list for the same item, searched once."""
        _, first, place_R = np.unique(batch.item_codes.numpy()[events_R], return_index=True, return_inverse=True)
        top = super().recommend_after(batch, events_R[first], n)
        return TopItems(*(column[torch.from_numpy(place_R)] for column in top))

    def evidence(self, batch: Batch, events_R: Integers) -> Floats:
        """(R, I) the rows of the current items."""
        evidence_RI: Floats = self.table.matrix(self.num_codes)[batch.item_codes.numpy()[events_R]].toarray()
        return evidence_RI


def count_pairs(known: Sequences, steps: int, weights: Floats | None, num_codes: int) -> csr_array:
    """(I, I) how often an item comes exactly `steps` events after another in a session; `weights` (T) of the later."""
    earlier, later = np.arange(len(known.item_codes) - steps).clip(0), np.arange(steps, len(known.item_codes))
    session_of_event = known.session_of_event()
    is_pair = session_of_event[earlier] == session_of_event[later]
    rows, columns = known.item_codes[earlier[is_pair]], known.item_codes[later[is_pair]]
    values = np.ones(len(rows)) if weights is None else weights[later[is_pair]]
    return csr_array((values, (rows, columns)), shape=(num_codes, num_codes))


def prefixes(batch: Batch, events_R: Integers) -> tuple[Integers, Integers, Integers]:
    """What each event's session held up to and with it, laid end to end: row (of R), item code, steps back from it."""
    starts = batch.offsets.numpy()
    of_session = np.searchsorted(starts, events_R, side="right") - 1
    lengths = events_R - starts[of_session] + 1
    rows = np.repeat(np.arange(len(events_R)), lengths)
    steps_back = np.cumsum(lengths)[rows] - 1 - np.arange(len(rows))
    return rows, batch.item_codes.numpy()[events_R[rows] - steps_back], steps_back
