"""Tuning holds out the day before the night, stops by it, and never sees the night's own day."""

import math

import pytest
import torch

import nightjar
from features.sequences import encode_sessions
from features.vocabulary import learn_vocabulary
from training.bundle import build
from training.fit import EarlyStop, fit
from training.recipes import SequenceRecipe
from training.tracking import Tracking


def test_a_training_stops_after_its_patience_and_keeps_the_best_epoch(sessions_of, walk, tmp_path):
    sessions = sessions_of(walk(30, follows=0.8, seed=1))
    vocabulary = learn_vocabulary(sessions, 1)
    sequences = encode_sessions(sessions, vocabulary)
    recipe = SequenceRecipe(encoder="gru", hidden_size=4, dropout=0.3)
    model = build(recipe, vocabulary.num_codes)
    scores, seen, is_training = iter([0.1, 0.3, 0.2, 0.3, 0.9]), [], []

    def measure():
        seen.append(model.items.weight.detach().clone())
        is_training.append(model.training)
        return {"m": next(scores)}

    told = fit(model, sequences, recipe, 50, tmp_path, None, EarlyStop(measure, "m", 2))
    assert len(seen) == 4
    assert (told["best_epoch"], told["m"]) == (2, 0.3)
    assert torch.equal(model.items.weight, seen[1])
    assert not any(is_training)
    assert math.isfinite(told["train_loss"])


def test_a_training_that_is_given_up_keeps_the_best_epoch_by_then(sessions_of, walk, tmp_path):
    sessions = sessions_of(walk(30, follows=0.8, seed=1))
    vocabulary = learn_vocabulary(sessions, 1)
    recipe = SequenceRecipe(encoder="gru", hidden_size=4)
    scores, seen = iter([0.1, 0.3, 0.2, 0.9]), []

    def gives_up(epoch, value):
        seen.append((epoch, value))
        return epoch == 2

    stop = EarlyStop(lambda: {"m": next(scores)}, "m", 9, gives_up)
    told = fit(
        build(recipe, vocabulary.num_codes), encode_sessions(sessions, vocabulary), recipe, 50, tmp_path, None, stop
    )
    assert seen == [(0, 0.1), (1, 0.3), (2, 0.2)]
    assert (told["best_epoch"], told["m"]) == (2, 0.3)


@pytest.mark.parametrize("recipe", ["gru", "popularity"])
def test_tuning_tells_the_best_epoch_registers_nothing_and_is_blind_to_the_night(recipe, copy_shop, judge):
    shop = copy_shop()
    night = shop.days[4]
    judge(shop.store, night, "failed")
    told = nightjar.train(shop.site, shop.store, night, recipe, 1, nightjar.Purpose.tune)
    tracking = Tracking(shop.site)
    assert tracking.versions() == []
    run = tracking.client.get_run(told["run_id"])
    wanted = {"purpose": "tune", "night": str(night), "test_day": str(shop.days[3]), "recipe": recipe, "kind": "tune"}
    assert run.data.tags.items() >= wanted.items()
    assert run.info.status == "FINISHED"
    metric = shop.site.training.champion_metric
    assert told["metrics"][metric] > 0
    assert run.data.metrics[metric] == told["metrics"][metric]
    assert not list((shop.home / "checkpoints").rglob("*.ckpt"))
    if recipe == "gru":
        history = tracking.client.get_metric_history(told["run_id"], metric)
        of_epochs = [point.value for point in history[:-1]]
        assert told["best_epoch"] == 1 + of_epochs.index(max(of_epochs))
        assert len(of_epochs) == told["best_epoch"] + 2
        assert run.data.tags["best_epoch"] == str(told["best_epoch"])
