"""FAISS indexes of a version's item vectors: exact, or approximate where that is faster and finds the same.

    item_index/<model version>/index.faiss
    item_index/<model version>/manifest.json     what it was built from, factory, metric, recall, sha256

The saved index holds all items of the model: its row r is item_code r + 1. A channel whose rules leave items out has an
index of its own while it is exported, of the rows that are left.

Which one (`export.index: auto`): below EXACT_BELOW items an exact search; from there an inverted file of about
sqrt(items) lists, whose vectors are compared by 4-bit codes first and the best of these exactly. That takes a sixteenth
more memory than the vectors. It looks into about as few lists as reach the recall. docs/lists.md has what was measured,
plain IVF and HNSW too.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
import fsspec
import numpy as np

from features.sequences import Integers
from features.vocabulary import PADDING
from pipeline.durable import is_local, write_whole
from pipeline.errors import ConfigurationError, kind_of, reason_of
from pipeline.publish import Store
from pipeline.terminal import log
from serving_export.scoring import Vectors
from training.bundle import Bundle

EXACT_BELOW = 200_000
EXACT = "Flat"
PARAMETERS = ("nprobe", "efSearch")  # how hard an approximate index looks
MOST_EFFORT = 4096
HALVINGS = 3
QUERIES_FOR_BLAS = 5
"""From so many an exact search is one matrix product; fewer are faster one by one. FAISS has 1000."""
COMPARED_EXACTLY = (4, 16, 64)
"""Of an index that compares codes first: how many times the wanted items are compared exactly; more where it must."""


@dataclass(frozen=True)
class Manifest:
    """What an index was built from."""

    model_version: int
    vocabulary_digest: str
    factory: str
    metric: str
    num_items: int
    dimension: int
    effort: str
    """How hard it looks, like `nprobe=16`; empty for an exact index."""
    recall: float
    """The share of the exact lists that it found."""
    sha256: str
    """Of index.faiss."""
    bundle_sha256: str | None = None
    """Of the bundle whose item vectors these are; None for a bundle without checksums."""


@dataclass(frozen=True)
class ItemIndex:
    """An index of some items."""

    index: Any
    codes: Integers
    """The item code of each row, and behind them 0, which is what a search without a result says (-1)."""
    factory: str = EXACT
    effort: str = ""
    recall: float = 1.0

    @property
    def is_exact(self) -> bool:
        """Whether it finds what a search through all items finds."""
        return self.factory == EXACT

    @property
    def size(self) -> int:
        """Its items."""
        return int(self.index.ntotal)

    def search(self, vectors_RD: Vectors, n: int) -> tuple[Integers, Vectors]:
        """(R, n) codes, best first, and scores; code 0 where none was found. At most as many as there are items."""
        faiss.cvar.distance_compute_blas_threshold = QUERIES_FOR_BLAS * vectors_RD.shape[1]
        scores_RN, rows_RN = self.index.search(vectors_RD, min(n, self.index.ntotal))
        return self.codes[rows_RN], scores_RN


def exact_index(vectors_ID: Vectors, codes: Integers) -> ItemIndex:
    """Inner products with every item."""
    index = faiss.IndexFlatIP(vectors_ID.shape[1])
    index.add(np.ascontiguousarray(vectors_ID[codes]))
    return ItemIndex(index, np.append(codes, PADDING))


def choose_index(
    vectors_ID: Vectors, codes: Integers, wanted: str, least_recall: float, queries_RD: Vectors, n: int
) -> ItemIndex:
    """The wanted index of these items, if it finds enough of what real queries find exactly; else the exact one."""
    exact = exact_index(vectors_ID, codes)
    index = approximate_index(vectors_ID, exact, wanted, least_recall, queries_RD, n)
    if index is None:
        return exact
    if index.recall < least_recall:
        log.warning(
            "index %s of %d items finds %.4f of the exact lists of %d, less than export.index_recall %.4g: the search "
            "is exact",
            *(index.factory, len(codes), index.recall, n, least_recall),
        )
        return exact
    told = (index.factory, len(codes), index.effort or "as built", n, index.recall)
    log.info("index %s of %d items: %s, recall@%d %.4f", *told)
    return index


def approximate_index(
    vectors_ID: Vectors, exact: ItemIndex, wanted: str, least_recall: float, queries_RD: Vectors, n: int
) -> ItemIndex | None:
    """The wanted index of an exact one's items with the recall it reaches; None where the search is exact anyway."""
    codes = exact.codes[:-1]
    factory = factory_of(wanted, len(codes), vectors_ID.shape[1])
    if factory == EXACT or len(queries_RD) == 0:
        return None
    index = build(factory, vectors_ID[codes])
    if index is None:
        return None
    truth_RN = exact.index.search(queries_RD, min(n, len(codes)))[1]
    effort, recall = tune(index, queries_RD, truth_RN, least_recall)
    return ItemIndex(index, exact.codes, factory, effort, recall)


def factory_of(wanted: str, num_items: int, dimension: int) -> str:
    """The factory string of an index that the site file wants."""
    if wanted == "exact" or (wanted == "auto" and num_items < EXACT_BELOW):
        return EXACT
    return approximate(num_items, dimension) if wanted == "auto" else wanted


def approximate(num_items: int, dimension: int) -> str:
    """The factory string of the index for many items: two dimensions a code, filled up to what the processor adds."""
    padded = -(-dimension // 16) * 16
    return f"Pad{padded},IVF{2 ** round(np.log2(num_items**0.5))},PQ{padded // 2}x4fs,RFlat"


def build(factory: str, vectors_RD: Vectors) -> Any:
    """A trained index; None, and a warning, where there are too few items for it."""
    try:
        index = faiss.index_factory(vectors_RD.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ConfigurationError(
            f"export.index: FAISS makes no index of {factory!r}. Write auto, exact, or a factory string like "
            f"IVF1024,Flat or HNSW32 ({' '.join(str(error).split())[-120:]})"
        ) from error
    try:
        index.train(vectors_RD)
        index.add(vectors_RD)
    except RuntimeError as error:
        told = " ".join(str(error).split())[-120:]
        log.warning("index %s cannot be built of %d items: the search is exact (%s)", factory, len(vectors_RD), told)
        return None
    return index


def tune(index: Any, queries_RD: Vectors, truth_RN: Integers, least_recall: float) -> tuple[str, float]:
    """Let an index look about as little as reaches the recall; return how hard it looks, and the recall."""
    effort, recall = "", 0.0
    for times in COMPARED_EXACTLY:
        has_codes = sets(index, "k_factor_rf", times)
        effort, recall = look_far_enough(index, queries_RD, truth_RN, least_recall)
        if not has_codes:
            break
        effort = f"{effort}, k_factor={times}"
        if recall >= least_recall:
            break
    return effort, recall


def look_far_enough(index: Any, queries_RD: Vectors, truth_RN: Integers, least_recall: float) -> tuple[str, float]:
    """The same for how many lists, or how much of a graph, it looks into."""
    name = next((name for name in PARAMETERS if sets(index, name, 1)), None)
    if name is None:
        return "", recall_of(index, queries_RD, truth_RN)
    recalls: dict[int, float] = {}

    def reaches(effort: int) -> bool:
        sets(index, name, effort)
        recalls[effort] = recall_of(index, queries_RD, truth_RN)
        return recalls[effort] >= least_recall

    enough = 1
    while not reaches(enough) and enough < MOST_EFFORT:
        enough *= 2
    too_little = enough // 2
    for _ in range(HALVINGS):
        middle = (too_little + enough) // 2
        if middle in (too_little, enough):
            break
        too_little, enough = (too_little, middle) if reaches(middle) else (middle, enough)
    sets(index, name, enough)
    return f"{name}={enough}", recalls[enough]


def sets(index: Any, name: str, value: int) -> bool:
    """Set a parameter of an index; false if it has none of that name."""
    try:
        faiss.ParameterSpace().set_index_parameter(index, name, value)
    except RuntimeError:
        return False
    return True


def recall_of(index: Any, queries_RD: Vectors, truth_RN: Integers) -> float:
    """The share of the exact lists that an index finds."""
    found_RN = index.search(queries_RD, truth_RN.shape[1])[1]
    offset = np.arange(len(truth_RN))[:, None] * (index.ntotal + 1)  # row -1 stands for no result
    return float(np.isin(truth_RN + offset, found_RN + offset).mean())


def save_index(index: ItemIndex, bundle: Bundle, model_version: int, store: Store) -> ItemIndex:
    """Save the index of all items of a version, and read it back."""
    content = faiss.serialize_index(index.index).tobytes()
    manifest = Manifest(
        model_version,
        bundle.vocabulary.digest(),
        index.factory,
        "inner_product",
        index.index.ntotal,
        index.index.d,
        index.effort,
        index.recall,
        hashlib.sha256(content).hexdigest(),
        bundle.sha256,
    )
    folder = f"{store.root}/item_index/{model_version}"
    write_bytes(f"{folder}/index.faiss", content)
    write_bytes(f"{folder}/manifest.json", json.dumps(asdict(manifest), indent=2).encode())
    return read_index(store, bundle, model_version)


def has_index(store: Store, model_version: int) -> bool:
    """Whether a version's index was saved: by its first export."""
    system, path = fsspec.core.url_to_fs(f"{store.root}/item_index/{model_version}/manifest.json")
    return bool(system.exists(path))


def read_index(store: Store, bundle: Bundle, model_version: int) -> ItemIndex:
    """The saved index of a version; raises ConfigurationError if it is damaged or belongs to something else."""
    folder = f"{store.root}/item_index/{model_version}"
    try:
        with fsspec.open(f"{folder}/manifest.json", "rb") as file:
            manifest = Manifest(**json.load(file))
        with fsspec.open(f"{folder}/index.faiss", "rb") as file:
            content = file.read()
    except (OSError, ValueError, TypeError) as error:
        place = getattr(error, "filename", None) or folder
        raise kind_of(error)(f"cannot read the item index {place}: {reason_of(error)}. Run export again") from error
    if hashlib.sha256(content).hexdigest() != manifest.sha256:
        raise ConfigurationError(f"{folder}/index.faiss is damaged: its sha256 is not the manifest's. Run export again")
    belongs_to = (manifest.model_version, manifest.vocabulary_digest)
    is_other_bundle = manifest.bundle_sha256 is not None and manifest.bundle_sha256 != bundle.sha256
    if belongs_to != (model_version, bundle.vocabulary.digest()) or is_other_bundle:
        raise ConfigurationError(f"{folder} was built for another model or vocabulary. Run export again")
    index = faiss.deserialize_index(np.frombuffer(content, dtype=np.uint8))
    codes = np.append(np.arange(PADDING + 1, PADDING + 1 + index.ntotal), PADDING)
    return ItemIndex(index, codes, manifest.factory, manifest.effort, manifest.recall)


def write_bytes(address: str, content: bytes) -> None:
    """Write a file whole: aside first where the store is a folder, in one put where it is an object store."""
    try:
        if is_local(address):
            write_whole(Path(address), content)
            return
        with fsspec.open(address, "wb") as file:
            file.write(content)
    except OSError as error:
        raise kind_of(error)(f"cannot write {address}: {reason_of(error)}. Is the store writable?") from error
