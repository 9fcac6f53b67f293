"""What is left of a training whose process died, and how the next one goes on from it."""

import shutil
from pathlib import Path

import pytest
import torch

import nightjar
from features.sequences import encode_sessions
from features.vocabulary import learn_vocabulary
from pipeline.errors import ConfigurationError
from training import train
from training.bundle import build
from training.fit import fit
from training.recipes import SequenceRecipe
from training.tracking import Tracking


def test_a_run_that_was_not_finished_goes_on_under_the_same_tags(copy_shop):
    shop = copy_shop()
    tracking, night = Tracking(shop.site), shop.days[3]
    tags = {"recipe": "gru", "seed": "1", "kind": "train"}
    with pytest.raises(RuntimeError), tracking.run(night, "gru", tags) as first:
        raise RuntimeError("out of power")
    assert tracking.client.get_run(first).info.status == "FAILED"
    with tracking.run(night, "gru", tags | {"seed": "2"}) as other:
        assert other != first
    with tracking.run(night, "gru", tags) as again:
        assert again == first
        assert tracking.client.get_run(first).info.status == "RUNNING"
    assert tracking.client.get_run(first).info.status == "FINISHED"
    with tracking.run(night, "gru", tags) as new:
        assert new not in (first, other)


class OutOfPower(Exception):
    """What ends a training in these tests."""


CASES = {
    "shuffled": {"encoder": "gru", "order": "shuffled"},
    "session_parallel": {
        "encoder": "gru4rec",
        "order": "session_parallel",
        "num_negatives": 8,
        "in_batch_negatives": True,
        "optimiser": "adagrad",
        "momentum": 0.1,
    },
}


@pytest.mark.parametrize("case", CASES)
def test_a_training_that_was_cut_off_ends_with_the_weights_of_one_that_was_not(case, sessions_of, walk, tmp_path):
    recipe = SequenceRecipe(**CASES[case], hidden_size=8, batch_size=16, epochs=3, dropout=0.2, learning_rate=0.01)
    sessions = sessions_of(walk(60, follows=0.8, seed=1))
    vocabulary = learn_vocabulary(sessions, 1)
    sequences = encode_sessions(sessions, vocabulary)

    def train(folder, report=None):
        model = build(recipe, vocabulary.num_codes)
        return model, fit(model, sequences, recipe, recipe.epochs, folder, report)

    def cut_off(epoch, losses):
        if epoch == 1:
            raise OutOfPower

    seen = []
    whole, losses = train(tmp_path / "whole")
    with pytest.raises(OutOfPower):
        train(tmp_path / "cut", cut_off)
    resumed, its_losses = train(tmp_path / "cut", lambda epoch, losses: seen.append(epoch))
    assert seen == [1, 2], "the first epoch was learnt again"
    assert its_losses == losses
    for name, weights in whole.state_dict().items():
        assert torch.equal(weights, resumed.state_dict()[name]), name
    finished, its_losses = train(tmp_path / "cut", cut_off)
    assert its_losses == losses, "a training that had ended was begun again"
    assert torch.equal(finished.items.weight, whole.items.weight)


@pytest.fixture
def training(sessions_of):
    sessions = sessions_of([["a", "b", "c"], ["b", "c"]])
    vocabulary = learn_vocabulary(sessions, 1)
    return encode_sessions(sessions, vocabulary), SequenceRecipe(encoder="gru", hidden_size=4, epochs=1)


@pytest.mark.parametrize(
    ("kept", "reason"),
    [
        ({"epoch": 0, "state_dict": {}, "code": Path}, "holds a pickled object"),
        ({"epoch": 0, "state_dict": {"model.items.weight": torch.ones(9, 4)}}, "of another model or vocabulary"),
        (None, "cannot read"),
    ],
    ids=["pickle", "other-vocabulary", "cut-short"],
)
def test_a_checkpoint_of_something_else_is_refused_by_name(kept, reason, training, tmp_path):
    sequences, recipe = training
    file = tmp_path / "last.ckpt"
    file.write_bytes(b"PK\x03\x04 half a file") if kept is None else torch.save(kept, file)
    with pytest.raises(ConfigurationError, match=rf"last\.ckpt.*{reason}|{reason}.*last\.ckpt") as caught:
        fit(build(recipe, 4), sequences, recipe, 1, tmp_path)
    assert "Delete it to train from the start" in str(caught.value)


@pytest.fixture
def stopped(training, tmp_path):
    """Folders of two trainings of other seeds, ended after their first epoch, and a way to go on with the first."""
    sequences, recipe = training
    for seed in (1, 2):
        its = recipe.model_copy(update={"seed": seed})
        fit(build(its, 4), sequences, its, 1, tmp_path / f"gru-{seed}")
    return (
        tmp_path / "gru-1",
        tmp_path / "gru-2",
        lambda: fit(build(recipe, 4), sequences, recipe, 2, tmp_path / "gru-1"),
    )


def test_a_checkpoint_with_damaged_numbers_is_refused(stopped):
    folder, _, go_on = stopped
    file = folder / "last.ckpt"
    weights = torch.load(file, weights_only=True)["state_dict"]["model.items.weight"].numpy().tobytes()
    content = file.read_bytes()
    assert weights in content
    file.write_bytes(content.replace(weights, bytes(byte ^ 0x10 for byte in weights)))
    with pytest.raises(ConfigurationError, match=r"last\.ckpt is damaged.*Delete it to train from the start"):
        go_on()


def test_a_checkpoint_of_another_training_with_the_same_shapes_is_refused(stopped):
    folder, other, go_on = stopped
    shutil.copy(other / "last.ckpt", folder / "last.ckpt")
    with pytest.raises(ConfigurationError, match=r"last\.ckpt is of another model or vocabulary, or of another train"):
        go_on()


def test_a_training_through_the_command_goes_on_in_its_run_and_leaves_no_checkpoint(copy_shop, monkeypatch):
    shop = copy_shop(training={"recipes": {"gru": {"hidden_size": 8, "epochs": 3}}})
    night = shop.days[3]
    nightjar.features(shop.site, shop.store, night)
    whole = train.train(shop.site, shop.store, night, "gru", 1)
    log_metrics = Tracking.log_metrics

    def cut_off(tracking, run_id, metrics, step=0):
        if step == 2:
            assert tracking.client.get_run(run_id).info.status == "RUNNING", "a killed run could not be told"
            raise OutOfPower
        log_metrics(tracking, run_id, metrics, step)

    with monkeypatch.context() as patched:
        patched.setattr(Tracking, "log_metrics", cut_off)
        with pytest.raises(OutOfPower):
            train.train(shop.site, shop.store, night, "gru", 1)
    (left,) = (shop.home / "checkpoints" / "small" / str(night)).iterdir()
    assert left.name.startswith("gru-1-")
    resumed = train.train(shop.site, shop.store, night, "gru", 1)
    client = Tracking(shop.site).client
    runs = {run.info.run_id: run.info.status for run in client.search_runs([Tracking(shop.site).experiment_id])}
    assert resumed["metrics"] == whole["metrics"]
    assert resumed["run_id"] != whole["run_id"]
    assert set(runs.values()) == {"FINISHED"}
    assert len(runs) == 3, "the night's run, the whole training and the one that was cut off"
    history = client.get_metric_history(resumed["run_id"], "train_loss")
    assert [(point.step, point.value) for point in history] == [
        (point.step, point.value) for point in client.get_metric_history(whole["run_id"], "train_loss")
    ]
    assert not left.exists()
    assert not list((shop.home / "undelivered").glob("*.jsonl"))
