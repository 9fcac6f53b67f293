"""What lists show beside hits: how much of the catalogue, how evenly, and how popular it is.

All from one table: how often each item stood in the top k of the lists before targets. Of a model that hits as often,
the one that shows more of the catalogue is the better one; of one that shows little beside the most popular items, a
popularity list would do.

    coverage_at_k          share of the items the model knows that stood in any list (Ge et al., RecSys 2010)
    gini_at_k              inequality of the items' shares of all places: 0 all alike, near 1 one item has them all
                           (Fleder & Hosanagar, Management Science 2009)
    mean_popularity_at_k   mean, over all places, of the item's share of training events (Abdollahpouri et al.,
                           FLAIRS 2019, with shares instead of counts)
    novelty_at_k           mean, over all places, of -log2 of that share, in bits (Zhou et al., PNAS 2010)

Shapes: R lists · N places · K lengths of lists · I item codes.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from features.sequences import Integers
from features.vocabulary import PADDING, Vocabulary
from training.outcomes import Floats


def count_exposures(codes_RN: Tensor, ks: Sequence[int], num_codes: int) -> Integers:
    """(K, I) how often each item stood in the top k. `ks` ascend."""
    cuts = zip([0, *ks], ks, strict=False)
    places = [codes_RN[:, start:end].reshape(-1).numpy() for start, end in cuts]
    counts_KI = np.stack([np.bincount(codes, minlength=num_codes) for codes in places]).cumsum(0)
    if counts_KI[:, PADDING].any():
        raise ValueError("a model put padding into a list, which is no item; nothing can be measured")
    return counts_KI


def exposure_figures(counts_KI: Integers, ks: Sequence[int], vocabulary: Vocabulary) -> dict[str, float]:
    """Coverage, Gini, mean popularity and novelty at each k; none of them if nothing was listed."""
    share_I = popularity_share(vocabulary)
    found: dict[str, float] = {}
    for k, counts_I in zip(ks, counts_KI[:, 1:], strict=True):
        if not counts_I.any():
            continue
        found[f"coverage_at_{k}"] = float((counts_I > 0).mean())
        found[f"gini_at_{k}"] = gini(counts_I)
        found[f"mean_popularity_at_{k}"] = float(np.average(share_I, weights=counts_I))
        found[f"novelty_at_{k}"] = float(np.average(-np.log2(share_I), weights=counts_I))
    return found


def popularity_share(vocabulary: Vocabulary) -> Floats:
    """(I - 1) each item's share of the training events; an item without any (of an older window) counts one."""
    counts = np.maximum(vocabulary.items["num_events"].to_numpy(), 1)
    shares: Floats = counts / counts.sum()
    return shares


def gini(counts: Integers) -> float:
    """The Gini coefficient of numbers that are not all 0: the sum of (2 i - n - 1) x_i over n times the sum of x_i."""
    ordered = np.sort(counts).astype(np.float64)
    weights = 2 * np.arange(1, len(ordered) + 1) - len(ordered) - 1
    return float(weights @ ordered / (len(ordered) * ordered.sum()))
