"""Items that came after training, recommended by what the catalogue tells of them: a category, a price.

A model that has learnt to (recipe field `cold_items`) is given further rows: a vector each that is made of the item's
features alone. They stand behind its other items, so all that knows the model knows them: lists, the item index,
answers, reasons. An item of which the catalogue tells nothing that the model has a class for is not offered.

Shapes: T targets · I item codes.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import date

import numpy as np
import polars as pl

from features.intents import MISSING
from features.new_items import new_items
from features.sequences import encode_sessions
from features.settings import FeaturesSite
from features.vocabulary import Vocabulary
from pipeline.durations import format_duration
from pipeline.publish import Store
from pipeline.terminal import log
from training.bundle import Bundle
from training.evaluation import (
    MISS,
    evaluate_lists,
    rank_after_histories,
    rank_next_events,
)
from training.grow import grow
from training.measure import HeldOutDay
from training.recipes import OF_ITEMS, LearntRecipe
from training.units import reads_users


def offer_new(site: FeaturesSite, store: Store, bundle: Bundle, last: date) -> Bundle:
    """The bundle with what came lately, as known at the end of `last`; itself where its recipe does not want that."""
    recipe = bundle.recipe
    if not isinstance(recipe, LearntRecipe) or recipe.cold_items is None:
        return bundle
    offered = offer(bundle, new_items(site, store, last, recipe.cold_items))
    told = (offered.vocabulary.num_cold, format_duration(recipe.cold_items))
    log.info("%d items that came within %s are offered cold", *told)
    return offered


def offer(bundle: Bundle, items: pl.DataFrame) -> Bundle:
    """The bundle with those of some items (rows of `items`) that it does not know and can tell something of."""
    definitions, recipe = bundle.vocabulary.definitions, bundle.recipe
    if definitions is None or not isinstance(recipe, LearntRecipe) or recipe.cold_items is None:
        return bundle
    unknown = items.unique("item_id", keep="last").join(bundle.vocabulary.items, on="item_id", how="anti")
    told = pl.any_horizontal(pl.col(name) != MISSING for name in OF_ITEMS if name in definitions.classes)
    described = definitions.describe(unknown["item_id"], unknown)
    ids = unknown.select("item_id").with_columns(described).filter(told).sort("item_id")
    if ids.is_empty():
        return bundle
    first = bundle.vocabulary.num_codes
    rows = ids.select(
        pl.int_range(first, first + pl.len(), dtype=pl.Int64).alias("item_code"),
        "item_id",
        pl.lit(0, pl.Int64).alias("num_events"),
        *described.columns,
    )
    known = bundle.vocabulary.items
    vocabulary = Vocabulary(pl.concat([known, rows.select(known.columns)]), definitions, num_cold=rows.height)
    return replace(bundle, recommender=grow(bundle, vocabulary, recipe).eval(), vocabulary=vocabulary)


def cold_quality(bundle: Bundle, offered: Bundle, held_out: HeldOutDay, ks: Sequence[int]) -> dict[str, float]:
    """What offering cold items does on a day, as metrics `cold/…`.

    Ranked are all items, cold ones too. `next_…` is of targets that are cold items, `known_next_…` of the others that
    the model knows; `list_any_recall_at_k` of lists that may hold cold items.
    """
    ks, num_cold = sorted(ks), offered.vocabulary.num_cold
    found = {"cold/num_items": float(num_cold)}
    if not num_cold:
        return found
    sessions, history = (encode_sessions(rows, offered.vocabulary) for rows in (held_out.sessions, held_out.earlier))
    if reads_users(offered.recipe):
        ranks_T, exposures_KI = rank_after_histories(offered, sessions, history, ks)
    else:
        ranks_T, exposures_KI = rank_next_events(offered, sessions.known_only().at_least(2), ks)
    known = sessions.known_only()
    is_first = np.isin(np.arange(len(known.item_codes)), known.offsets[:-1])
    is_cold_T = known.item_codes[~is_first] >= bundle.vocabulary.num_codes
    places_K = exposures_KI.sum(1)
    num_targets = int(sessions.num_targets.sum())
    found["cold/target_share"] = float(is_cold_T.sum()) / max(1, num_targets)
    for place, k in enumerate(ks):
        is_hit_T = (ranks_T > MISS) & (ranks_T <= k)
        gains_T = np.where(is_hit_T, 1 / np.maximum(ranks_T, 1), 0)
        for name, is_here_T in (("next", is_cold_T), ("known_next", ~is_cold_T)):
            if is_here_T.any():
                found[f"cold/{name}_recall_at_{k}"] = float(is_hit_T[is_here_T].mean())
                found[f"cold/{name}_mrr_at_{k}"] = float(gains_T[is_here_T].mean())
        listed = exposures_KI[place, bundle.vocabulary.num_codes :].sum()
        found[f"cold/share_at_{k}"] = float(listed / max(1, places_K[place]))
    lists = evaluate_lists(offered, held_out.histories, held_out.seen, held_out.truths, ks).means()
    return found | {
        f"cold/list_{name.removeprefix('list/')}": value for name, value in lists.items() if "any_recall" in name
    }
