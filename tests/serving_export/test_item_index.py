import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import ConfigurationError
from pipeline.publish import Store
from serving_export.item_index import approximate, choose_index, exact_index, factory_of, read_index, save_index
from serving_export.scoring import item_vectors
from training.tracking import Tracking, number


@pytest.fixture
def indexed(served_shop, tmp_path):
    """A store with the index of a GRU, its bundle and its version."""
    tracking = Tracking(served_shop.site)
    gru = next(v for v in tracking.versions() if v.tags["recipe"] == "gru")
    store, bundle = Store(str(tmp_path)), tracking.load(gru)
    index = exact_index(item_vectors(bundle), np.arange(1, bundle.vocabulary.num_codes))
    save_index(index, bundle, number(gru), store)
    return store, bundle, number(gru)


def folder(store: Store, version: int) -> Path:
    return Path(store.root) / "item_index" / str(version)


def test_the_manifest_says_what_the_index_belongs_to(indexed):
    store, bundle, version = indexed
    manifest = json.loads((folder(store, version) / "manifest.json").read_text())
    assert manifest["model_version"] == version
    assert manifest["num_items"] == bundle.vocabulary.items.height
    assert manifest["vocabulary_digest"] == bundle.vocabulary.digest()
    assert read_index(store, bundle, version).size == bundle.vocabulary.items.height


def test_a_damaged_index_is_refused_by_name(indexed):
    store, bundle, version = indexed
    file = folder(store, version) / "index.faiss"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(ConfigurationError, match=rf"item_index/{version}/index.faiss is damaged.*Run export again"):
        read_index(store, bundle, version)


def test_the_index_of_another_model_is_refused_by_name(indexed):
    store, bundle, version = indexed
    shutil.copytree(folder(store, version), folder(store, version + 1))
    with pytest.raises(ConfigurationError, match=rf"item_index/{version + 1} was built for another model"):
        read_index(store, bundle, version + 1)
    fewer = replace(bundle, vocabulary=type(bundle.vocabulary)(bundle.vocabulary.items.head(5)))
    with pytest.raises(ConfigurationError, match="another model or vocabulary"):
        read_index(store, fewer, version)


def test_the_index_of_other_weights_under_the_same_number_is_refused(indexed):
    store, bundle, version = indexed
    with pytest.raises(ConfigurationError, match="another model or vocabulary"):
        read_index(store, replace(bundle, sha256="0" * 64), version)


@pytest.mark.parametrize("name", ["index.faiss", "manifest.json"])
def test_a_missing_part_is_named(indexed, name):
    store, bundle, version = indexed
    (folder(store, version) / name).unlink()
    with pytest.raises(ConfigurationError, match=rf"cannot read the item index .*item_index/{version}.*{name}"):
        read_index(store, bundle, version)


def test_a_manifest_that_is_no_json_is_refused(indexed):
    store, bundle, version = indexed
    (folder(store, version) / "manifest.json").write_text("{")
    with pytest.raises(ConfigurationError, match="cannot read the item index"):
        read_index(store, bundle, version)


@pytest.mark.parametrize(
    ("wanted", "num_items", "factory"),
    [
        ("auto", 10, "Flat"),
        ("auto", 199_999, "Flat"),
        ("auto", 200_000, "Pad144,IVF512,PQ72x4fs,RFlat"),
        ("auto", 1_000_000, "Pad144,IVF1024,PQ72x4fs,RFlat"),
        ("exact", 1_000_000, "Flat"),
        ("HNSW32", 10, "HNSW32"),
    ],
)
def test_the_index_follows_from_the_number_of_items(wanted, num_items, factory):
    assert factory_of(wanted, num_items, 129) == factory


@pytest.mark.parametrize("factory", ["IVF32,Flat", approximate(1000, 16)])
@pytest.mark.parametrize("least", [0.6, 0.99, 1.0])
def test_an_index_looks_as_far_as_the_recall_needs(least, factory):
    random = np.random.default_rng(1)
    vectors = random.normal(size=(3001, 16)).astype(np.float32)
    codes = np.arange(1, 3001)
    index = choose_index(vectors, codes, factory, least, vectors[:200], 10)
    assert index.recall >= least
    probes = int(index.effort.split(",")[0].removeprefix("nprobe="))
    exact = exact_index(vectors, codes).search(vectors[:200], 10)[0]
    found = index.search(vectors[:200], 10)[0]
    shared = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact, found, strict=True)])
    assert shared == pytest.approx(index.recall)
    assert probes < 32 or least == 1.0


def test_too_few_items_for_an_index_are_searched_exactly(caplog):
    vectors = np.eye(9, dtype=np.float32)
    index = choose_index(vectors, np.arange(1, 9), "IVF1024,Flat", 0.99, vectors, 3)
    assert index.is_exact
    assert "index IVF1024,Flat cannot be built of 8 items: the search is exact" in caplog.text
