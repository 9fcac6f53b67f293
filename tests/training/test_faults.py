"""A training that goes wrong says where, and which setting helps."""

from datetime import date

import pytest
import torch

from features.sequences import encode_sessions
from features.vocabulary import learn_vocabulary
from pipeline.errors import ConfigurationError
from training.bundle import Bundle, build, load_weights, save_bundle
from training.fit import fit
from training.recipes import SequenceRecipe


@pytest.fixture(scope="module")
def log(sessions_of, walk):
    sessions = sessions_of(walk(40, follows=0.8, seed=2))
    return encode_sessions(sessions, learn_vocabulary(sessions, 1))


def recipe_with(**fields):
    return SequenceRecipe.model_validate({"encoder": "gru", "hidden_size": 8, "batch_size": 8, "epochs": 2} | fields)


@pytest.mark.parametrize(("batch_size", "step"), [(8, 2), (64, 1)], ids=["next-step", "last-step"])
def test_a_loss_or_weight_that_is_no_number_stops_the_training_at_its_step(batch_size, step, log, tmp_path):
    recipe = recipe_with(batch_size=batch_size)
    model = build(recipe, 41)
    model.bias.weight.register_hook(lambda gradient: gradient / 0)
    with pytest.raises(
        ConfigurationError, match=rf"epoch 1 at step {step}.*the last one was 3\.\d+.*learning_rate"
    ) as caught:
        fit(model, log, recipe, 2, tmp_path)
    assert "now 0.002" in str(caught.value)
    assert "momentum" not in str(caught.value)
    assert not list(tmp_path.glob("*.ckpt")), "a broken state was kept"


@pytest.mark.parametrize(
    ("error", "fields", "named"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), {}, "score_memory_mb (now 1024)"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            {"num_negatives": 7},
            "num_negatives (now 7), batch_size (now 8), batch_events (now 0)",
        ),
        (MemoryError(), {}, "hidden_size (now 8)"),
    ],
    ids=["accelerator", "linux", "python"],
)
def test_out_of_memory_names_the_settings_that_bound_it(error, fields, named, log, tmp_path, monkeypatch):
    recipe = recipe_with(**fields)
    model = build(recipe, 41)

    def fail(batch):
        raise error

    monkeypatch.setattr(model, "states", fail)
    with pytest.raises(ConfigurationError) as caught:
        fit(model, log, recipe, 1, tmp_path)
    assert named in str(caught.value)


def test_other_faults_stay_what_they_are(log, tmp_path, monkeypatch):
    recipe = recipe_with()
    model = build(recipe, 41)
    monkeypatch.setattr(model, "states", lambda batch: torch.ones(2, 3) @ torch.ones(2, 3))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        fit(model, log, recipe, 1, tmp_path)


def test_a_bundle_whose_weights_are_a_pickle_or_of_another_vocabulary_is_refused(sessions_of, tmp_path):
    recipe = recipe_with()

    def save(items, folder):
        vocabulary = learn_vocabulary(sessions_of([items]), 1)
        model = build(recipe, vocabulary.num_codes)
        save_bundle(Bundle(model, vocabulary, "gru", recipe, date(2026, 3, 1), 0), folder)
        return model

    model = save(["a", "b"], tmp_path / "one")
    save(["a", "b", "c"], tmp_path / "other")
    weights = tmp_path / "one" / "weights.safetensors"
    weights.write_bytes((tmp_path / "other" / "weights.safetensors").read_bytes())
    with pytest.raises(ConfigurationError, match=r"weights\.safetensors does not fit its recipe and vocabulary"):
        load_weights(model, weights)
    torch.save(model.state_dict(), weights)
    with pytest.raises(ConfigurationError, match=r"weights\.safetensors holds no plain weights.*was not opened"):
        load_weights(model, weights)
