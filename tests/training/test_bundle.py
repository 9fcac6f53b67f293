"""Files of a model that are not what was saved."""

import json
import shutil
from datetime import date

import pytest
import torch

from features.intents import Definitions
from features.vocabulary import learn_vocabulary
from pipeline.errors import ConfigurationError
from training.bundle import Bundle, build_for, load_bundle, save_bundle
from training.recipes import SequenceRecipe


@pytest.fixture
def save(tmp_path, sessions_of):
    """Save a small GRU of a seed; its folder and the sha256 of its bundle.json."""

    def saved(seed=1):
        vocabulary = learn_vocabulary(sessions_of([["a", "b", "c"]]), 1)
        recipe = SequenceRecipe(encoder="gru", hidden_size=8, seed=seed)
        bundle = Bundle(build_for(recipe, vocabulary), vocabulary, "gru", recipe, date(2026, 3, 1), 0)
        return tmp_path / f"seed-{seed}", save_bundle(bundle, tmp_path / f"seed-{seed}")

    return saved


def flip(file, num_bytes=40):
    """Damage the last bytes of a file: of weights, just numbers."""
    content = bytearray(file.read_bytes())
    for place in range(len(content) - num_bytes, len(content)):
        content[place] ^= 0x10
    file.write_bytes(bytes(content))


def cut(file):
    file.write_bytes(file.read_bytes()[:-7])


def remove(file):
    file.unlink()


def test_a_bundle_knows_by_which_checksum_it_was_loaded(save):
    folder, sha256 = save()
    assert load_bundle(folder, sha256).sha256 == load_bundle(folder).sha256 == sha256


@pytest.mark.parametrize("name", ["weights.safetensors", "vocabulary.parquet", "bundle.json"])
@pytest.mark.parametrize("damage", [flip, cut, remove])
def test_a_damaged_file_is_refused_by_name(save, name, damage):
    folder, sha256 = save()
    damage(folder / name)
    with pytest.raises(ConfigurationError, match=rf"{name} is (damaged or was exchanged|missing)"):
        load_bundle(folder, sha256)


def test_a_file_of_another_version_is_refused(save):
    (folder, sha256), (other, _) = save(1), save(2)
    shutil.copy(other / "weights.safetensors", folder)
    with pytest.raises(ConfigurationError, match=r"weights.safetensors is damaged or was exchanged"):
        load_bundle(folder)
    shutil.copy(other / "bundle.json", folder)
    load_bundle(folder)
    with pytest.raises(ConfigurationError, match=r"bundle.json is damaged or was exchanged"):
        load_bundle(folder, sha256)


def test_a_file_that_the_bundle_does_not_name_is_not_read(save):
    folder, sha256 = save()
    (folder / "definitions.json").write_text(Definitions().model_dump_json())
    assert load_bundle(folder, sha256).vocabulary.definitions is None


def test_a_bundle_of_before_checksums_still_loads(save):
    folder, _ = save()
    facts = json.loads((folder / "bundle.json").read_text())
    del facts["files"]
    (folder / "bundle.json").write_text(json.dumps(facts))
    loaded = load_bundle(folder)
    assert loaded.sha256 is None
    assert torch.isfinite(loaded.recommender.item_vectors(0)).all()


@pytest.mark.parametrize("name", ["vocabulary.parquet", "bundle.json"])
def test_without_checksums_what_cannot_be_read_is_a_sentence(save, name):
    folder, _ = save()
    facts = json.loads((folder / "bundle.json").read_text())
    del facts["files"]
    (folder / "bundle.json").write_text(json.dumps(facts))
    cut(folder / name)
    with pytest.raises(ConfigurationError, match="cannot read the model in"):
        load_bundle(folder)
