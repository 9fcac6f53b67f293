"""The FAISS index of a version's item vectors, saved with a manifest that says what it belongs to.

    item_index/<model version>/index.faiss
    item_index/<model version>/manifest.json     model version, vocabulary digest, metric, items, sha256

Row r of the index is item_code r + 1: padding is not in it and cannot be found.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import faiss
import fsspec
import numpy as np
import torch

from features.vocabulary import PADDING
from pipeline.errors import ConfigurationError
from pipeline.publish import Store
from training.batch import Batch
from training.bundle import Bundle
from training.models.base import Recommender, SessionModel, TopItems


@dataclass(frozen=True)
class Manifest:
    """What an index was built from."""

    model_version: int
    vocabulary_digest: str
    factory: str
    metric: str
    num_items: int
    dimension: int
    sha256: str


class IndexedModel(Recommender):
    """A session model whose last states are searched in FAISS."""

    def __init__(self, model: SessionModel, index: Any) -> None:
        super().__init__()
        self.model = model
        self.index = index

    @torch.inference_mode()
    def recommend_last(self, batch: Batch, n: int, as_of: int) -> TopItems:
        """The best `n` items after each session's last event."""
        vectors_SD = self.model.session_vectors(batch).numpy()
        scores, rows = self.index.search(vectors_SD, min(n, self.index.ntotal))
        codes = torch.from_numpy(rows) + PADDING + 1
        return TopItems(codes, torch.from_numpy(scores), torch.zeros(len(codes), dtype=torch.long))


def build_index(bundle: Bundle, model_version: int, store: Store) -> IndexedModel:
    """Build, save and read back the exact inner-product index of a model's items."""
    model = bundle.recommender
    if not isinstance(model, SessionModel):
        raise TypeError(f"{type(model).__name__} has no item vectors to index")
    with torch.inference_mode():
        vectors_ID = np.ascontiguousarray(model.item_vectors(bundle.as_of)[PADDING + 1 :].numpy())
    index = faiss.IndexFlatIP(vectors_ID.shape[1])
    index.add(vectors_ID)
    content = faiss.serialize_index(index).tobytes()
    manifest = Manifest(
        model_version,
        bundle.vocabulary.digest(),
        "Flat",
        "inner_product",
        index.ntotal,
        index.d,
        hashlib.sha256(content).hexdigest(),
    )
    folder = f"{store.root}/item_index/{model_version}"
    write_bytes(f"{folder}/index.faiss", content)
    write_bytes(f"{folder}/manifest.json", json.dumps(asdict(manifest), indent=2).encode())
    return IndexedModel(model, read_index(store, bundle, model_version))


def read_index(store: Store, bundle: Bundle, model_version: int) -> Any:
    """The saved index of a version; raises ConfigurationError if it is damaged or belongs to something else."""
    folder = f"{store.root}/item_index/{model_version}"
    try:
        with fsspec.open(f"{folder}/manifest.json", "rb") as file:
            manifest = Manifest(**json.load(file))
        with fsspec.open(f"{folder}/index.faiss", "rb") as file:
            content = file.read()
    except (OSError, ValueError, TypeError) as error:
        raise ConfigurationError(f"cannot read the item index {folder}: {error}. Run export again") from error
    if hashlib.sha256(content).hexdigest() != manifest.sha256:
        raise ConfigurationError(f"{folder}/index.faiss is damaged: its sha256 is not the manifest's. Run export again")
    if (manifest.model_version, manifest.vocabulary_digest) != (model_version, bundle.vocabulary.digest()):
        raise ConfigurationError(f"{folder} was built for another model or vocabulary. Run export again")
    return faiss.deserialize_index(np.frombuffer(content, dtype=np.uint8))


def write_bytes(address: str, content: bytes) -> None:
    """Write a file whole: aside first where the store is a folder, in one put where it is an object store."""
    if "://" in address:
        with fsspec.open(address, "wb") as file:
            file.write(content)
        return
    files = fsspec.filesystem("file", auto_mkdir=True)
    with files.open(address + ".part", "wb") as file:
        file.write(content)
    files.mv(address + ".part", address)
