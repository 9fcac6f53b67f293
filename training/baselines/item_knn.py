"""Items that share sessions with the current item.

    r(s, i) = sessions with both j and i / ((c_j + l)^a * (c_i + l)^(1 - a)),     j the last item of s

c counts an item's sessions; l (`regularisation`) keeps pairs that met once from the top; a (`alpha`) moves from the
cosine (0.5) to the confidence of a rule (1). "Item-KNN" of Hidasi et al., "Session-based Recommendations with Recurrent
Neural Networks", ICLR 2016 (arXiv 1511.06939); values of the authors' code.
"""

import numpy as np
from scipy.sparse import csr_array, vstack

from features.sequences import Sequences
from training.baselines.base import NUMBERS_AT_ONCE, ItemToItem
from training.recipes import ItemKnnRecipe


class ItemKnn(ItemToItem):
    """Cosine of items over sessions."""

    def __init__(self, num_codes: int, recipe: ItemKnnRecipe) -> None:
        super().__init__(num_codes)
        self.recipe = recipe

    def learn(self, known: Sequences, as_of: int) -> None:
        """Multiply sessions by items, a block of items at a time, and keep the nearest."""
        shape = (known.num_sessions, self.num_codes)
        parts_of_sessions = (np.ones(len(known.item_codes)), known.item_codes, known.offsets)
        by_session = csr_array(parts_of_sessions, shape=shape, copy=True)
        by_session.sum_duplicates()
        by_session.data[:] = 1
        by_item = by_session.T.tocsr()
        support_I = np.diff(by_item.indptr) + self.recipe.regularisation
        support_I = np.maximum(support_I, 1e-9)  # an item without a session has no neighbours anyway
        work_I = by_item @ np.diff(by_session.indptr) + 1
        blocks = np.split(np.arange(self.num_codes), np.flatnonzero(np.diff(np.cumsum(work_I) // NUMBERS_AT_ONCE)) + 1)
        parts = []
        for block in blocks:
            together = (by_item[block] @ by_session).tocoo()
            rows, columns = block[together.row], together.col
            alpha = self.recipe.alpha
            values = together.data / (support_I[rows] ** alpha * support_I[columns] ** (1 - alpha))
            values[rows == columns] = 0
            part = csr_array((values, (together.row, columns)), shape=(len(block), self.num_codes))
            parts.append(keep_largest(part, self.recipe.neighbours))
        self.table.keep(vstack(parts, format="csr"))


def keep_largest(matrix: csr_array, n: int) -> csr_array:
    """The `n` largest values of each row above 0, and those that tie with the last of them."""
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((-matrix.data, rows))
    least = np.zeros(matrix.shape[0])
    place = np.arange(len(rows)) - matrix.indptr[rows]  # rows are already in order
    is_last = place == n - 1
    least[rows[is_last]] = matrix.data[order][is_last]
    is_kept = (matrix.data >= least[rows]) & (matrix.data > 0)
    return csr_array((matrix.data[is_kept], (rows[is_kept], matrix.indices[is_kept])), shape=matrix.shape)
