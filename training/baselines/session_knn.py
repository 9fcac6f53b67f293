"""The search that session-kNN methods share: recent sessions with an item of this one, the nearest, and their items.

    nearest(s)  = the k most similar of the m most recent sessions that share an item with s
    sim(s, n)   = weight(n) * sum over shared items of weight(item in s)
    r(s, i)     = sum over nearest n with i of  sim(s, n) * weight(i in n)

A method is three weights. Factors that are the same for all neighbours of a session are left out: they change no order.
Of an item that comes more than once, the last time counts, in s as in n.

Sessions are numbered by recency, 0 the one that ended last. An item's list holds its m most recent sessions and no
more: an older one can never be among the m most recent of any union of lists (the idea of VMIS-kNN, Kersbergen et al.,
"Serenade", SIGMOD 2022).

Shapes: R events that get a list · I item codes · P pairs of an event and a neighbour · E items of all those neighbours.
"""

from abc import abstractmethod
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array

from features.sequences import Integers, Sequences
from training.baselines.base import Baseline, Floats, SparseTable, prefixes
from training.batch import Batch
from training.recipes import SessionKnnRecipe

LOW_BITS = 32  # of a key that sorts by similarity, then by recency
ITEMS_OF_A_SESSION = 8  # for the estimate of work only


class Met(NamedTuple):
    """An event's session beside one of its neighbours, item by item of the neighbour."""

    pair_E: Integers
    """Which pair of P."""
    code_E: Integers
    """The neighbour's item."""
    place_E: Integers
    """Where in the neighbour it comes, from 1."""
    back_E: Integers
    """How many events ago the session had this item; -1 if it did not."""
    starts_P: Integers
    """Where in E each pair begins."""


class SessionKnn(Baseline):
    """Sessions as neighbours."""

    def __init__(self, num_codes: int, recipe: SessionKnnRecipe) -> None:
        super().__init__(num_codes)
        self.neighbours, self.sample, self.remind = recipe.neighbours, recipe.sample, recipe.remind
        self.places = SparseTable()
        """Row = session, column = item: where the session has it last, from 1."""
        self.lists = SparseTable()
        """Row = item, column = its most recent sessions: the session's weight."""
        self.lists.keep(csr_array((num_codes, 1)))

    @abstractmethod
    def session_weights(self, ages_S: Floats, num_items_S: Integers) -> Floats:
        """(S) what a neighbour counts, by the seconds since it ended and its number of distinct items."""

    @abstractmethod
    def event_weights(self, back: Integers, lengths: Integers) -> Floats:
        """What an event of the session counts that lies `back` events before its last, of `lengths` events in all."""

    @abstractmethod
    def item_weights(self, met: Met) -> Floats:
        """(E) what a neighbour's items count."""

    def learn(self, known: Sequences, as_of: int) -> None:
        """Number the sessions by recency and write down who has what."""
        has_events = known.lengths > 0
        ended = known.occurred_at[known.offsets[1:][has_events] - 1]
        newest_first = np.lexsort((-np.arange(len(ended)), -ended))
        number = np.empty(len(ended), dtype=np.int64)
        number[newest_first] = np.arange(len(ended))
        lengths = known.lengths[has_events]
        sessions = np.repeat(number, lengths)
        places = np.arange(len(sessions)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + 1
        sessions, codes, places = last_of_each(sessions, known.item_codes, places, self.num_codes)
        offsets = np.concatenate([[0], np.cumsum(np.bincount(sessions, minlength=len(ended)))])
        shape = (len(ended), self.num_codes)
        self.places.keep(csr_array((places, codes, offsets), shape=shape))
        weights_S = self.session_weights((as_of - ended[newest_first]) / 1e6, np.diff(offsets))
        by_item = csr_array((weights_S[sessions], codes, offsets), shape=shape).T.tocsr()
        self.lists.keep(first_of_each_row(by_item, self.sample))

    def work(self, batch: Batch) -> Integers:
        """(T) candidates of each event, at most, and the items of its neighbours."""
        list_lengths = np.diff(self.lists.offsets.numpy())[batch.item_codes.numpy()]
        total = np.cumsum(list_lengths + 1)
        before = (total - list_lengths - 1)[batch.offsets[:-1].numpy().clip(0, max(len(total) - 1, 0))]
        candidates = total - np.repeat(before, batch.lengths.numpy())
        return 2 * candidates + ITEMS_OF_A_SESSION * np.minimum(candidates, self.neighbours)

    def evidence(self, batch: Batch, events_R: Integers) -> Floats:
        """(R, I) the items of each event's nearest sessions."""
        num_rows = len(events_R)
        rows, codes, back = prefixes(batch, events_R)
        lengths_R = np.bincount(rows, minlength=num_rows)
        rows, codes, back = last_of_each(rows, codes, back, self.num_codes)
        offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=num_rows))])
        weights = self.event_weights(back, lengths_R[rows])
        query = csr_array((weights, codes, offsets), shape=(num_rows, self.num_codes))
        num_sessions = len(self.places.offsets) - 1
        row_P, session_P, similarity_P = self.nearest(query @ self.lists.matrix(max(num_sessions, 1)))
        back_RI = np.full((num_rows, self.num_codes), -1)
        back_RI[rows, codes] = back
        met = self.meet(row_P, session_P, back_RI)
        values_E = similarity_P[met.pair_E] * self.item_weights(met)
        cells_E = row_P[met.pair_E] * self.num_codes + met.code_E
        sums = np.bincount(cells_E, values_E, minlength=num_rows * self.num_codes)
        evidence_RI: Floats = sums.reshape(num_rows, self.num_codes).astype(np.float64)
        if not self.remind:
            evidence_RI[rows, codes] = 0
        return evidence_RI

    def nearest(self, similar_RS: csr_array) -> tuple[Integers, Integers, Floats]:
        """Each row's neighbours: row, session, similarity. The more recent session wins a tie."""
        if (np.diff(similar_RS.indptr) > self.sample).any():
            similar_RS.sort_indices()
            similar_RS = first_of_each_row(similar_RS, self.sample)
        rows, place = rows_and_places(similar_RS)
        width = max(int(place.max(initial=0)) + 1, 1)
        keys_RW = np.full((similar_RS.shape[0], width), -1, dtype=np.int64)
        bits = similar_RS.data.astype(np.float32).view(np.int32).astype(np.int64)  # positive floats sort as integers
        keys_RW[rows, place] = (bits << LOW_BITS) + (2**LOW_BITS - 1 - similar_RS.indices.astype(np.int64))
        best_RK = torch.from_numpy(keys_RW).topk(min(self.neighbours, width), dim=1).values.numpy()
        row_P, column_P = np.nonzero(best_RK >= 0)
        key_P = best_RK[row_P, column_P]
        similarity_P = (key_P >> LOW_BITS).astype(np.int32).view(np.float32).astype(np.float64)
        session_P: Integers = 2**LOW_BITS - 1 - (key_P & (2**LOW_BITS - 1))
        return row_P, session_P, similarity_P

    def meet(self, row_P: Integers, session_P: Integers, back_RI: Integers) -> Met:
        """The items of all neighbours, each beside what the event's session knows of it."""
        offsets = self.places.offsets.numpy()
        lengths_P = offsets[session_P + 1] - offsets[session_P]
        starts_P = np.cumsum(lengths_P) - lengths_P
        pair_E = np.repeat(np.arange(len(row_P)), lengths_P)
        entry_E = np.repeat(offsets[session_P] - starts_P, lengths_P) + np.arange(len(pair_E))
        code_E = self.places.columns.numpy()[entry_E].astype(np.int64)
        place_E = self.places.values.numpy()[entry_E].astype(np.int64)
        return Met(pair_E, code_E, place_E, back_RI[row_P[pair_E], code_E], starts_P)


def last_of_each(
    rows: Integers, codes: Integers, values: Integers, num_codes: int
) -> tuple[Integers, Integers, Integers]:
    """Of entries with the same row and code the last one; in order of row and code."""
    keys, at = np.unique((rows * num_codes + codes)[::-1], return_index=True)
    return keys // num_codes, keys % num_codes, values[::-1][at]


def rows_and_places(matrix: csr_array) -> tuple[Integers, Integers]:
    """Of each entry its row, and its place in that row from 0."""
    lengths = np.diff(matrix.indptr)
    rows = np.repeat(np.arange(matrix.shape[0]), lengths)
    return rows, np.arange(len(rows)) - np.repeat(matrix.indptr[:-1], lengths)


def first_of_each_row(matrix: csr_array, n: int) -> csr_array:
    """The first `n` entries of each row, as they lie."""
    rows, place = rows_and_places(matrix)
    is_kept = place < n
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows[is_kept], minlength=matrix.shape[0]))])
    return csr_array((matrix.data[is_kept], matrix.indices[is_kept], offsets), shape=matrix.shape)
