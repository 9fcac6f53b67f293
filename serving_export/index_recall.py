"""What the item index of a version would find, before anything is exported: a guard of the gate."""

from datetime import date

import numpy as np
from mlflow.entities.model_registry import ModelVersion

from pipeline.catalogue import latest_items
from pipeline.publish import Store
from serving_export.assortment import make_assortment
from serving_export.export import some_vectors
from serving_export.item_index import EXACT, approximate_index, exact_index, factory_of
from serving_export.scoring import item_vectors
from training.settings import TrainingSite
from training.tracking import Tracking


def index_recall(site: TrainingSite, store: Store, day: date, version: ModelVersion) -> float | None:
    """The share of the exact lists that the index of a version's items finds; None where export searches exactly."""
    if site.export.index == "exact":
        return None
    bundle = Tracking(site).load(version)
    vectors_ID = item_vectors(bundle)
    codes = np.arange(1, bundle.vocabulary.num_codes)
    if vectors_ID is None or factory_of(site.export.index, len(codes), vectors_ID.shape[1]) == EXACT:
        return None
    assortment = make_assortment(bundle.vocabulary, latest_items(store, day))
    queries_RD = some_vectors(site, store, day, bundle, assortment, vectors_ID)
    longest = max(channel.top_n or 0 for channel in site.export.all_channels().values())
    wanted, least = site.export.index, site.export.index_recall
    index = approximate_index(vectors_ID, exact_index(vectors_ID, codes), wanted, least, queries_RD, longest)
    return None if index is None else index.recall
