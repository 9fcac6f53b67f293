"""A study tries fields of a recipe on the day before the night, is kept in a file, and goes on where it was cut off."""

import optuna
import pytest

from pipeline.errors import ConfigurationError
from training import study as studies
from training.recipes import RECIPES, SequenceRecipe, override
from training.search_space import SPACES, Among, Between, present, space_of
from training.study import bests, tune_recipe
from training.tracking import Tracking
from training.tune import tune

MINUTES = 60.0


def trials_of(shop) -> list[optuna.trial.FrozenTrial]:
    storage = studies.open_storage(shop.site)
    (summary,) = optuna.get_all_study_summaries(storage)
    return optuna.load_study(study_name=summary.study_name, storage=storage).get_trials()


def test_a_study_begins_with_the_recipe_as_it_is_and_goes_on(copy_shop, judge):
    shop = copy_shop(training={"recipes": {"recent_popularity": {"half_life": "8h"}}})
    night = shop.days[4]
    judge(shop.store, night, "failed")  # the night's own day is never read
    first = tune_recipe(shop.site, shop.store, night, "recent_popularity", trials=2, minutes=MINUTES)
    found = tune_recipe(shop.site, shop.store, night, "recent_popularity", trials=5, minutes=MINUTES)
    assert (first.num_trials, found.num_trials) == (2, 5)
    trials = trials_of(shop)
    assert trials[0].user_attrs["fields"] == {"half_life": "8h"}
    assert found.as_it_was == trials[0].value
    assert found.best == max(trial.value for trial in trials) >= found.as_it_was
    assert tune_recipe(shop.site, shop.store, night, "recent_popularity", trials=5, minutes=MINUTES) == found
    tracking = Tracking(shop.site)
    runs = tracking.client.search_runs([tracking.experiment_id])
    of_study = [run for run in runs if run.data.tags["kind"] == "study"]
    of_trials = [run for run in runs if run.data.tags["kind"] == "tune"]
    assert {run.data.tags["mlflow.parentRunId"] for run in of_study} == {tracking.night_run(night).info.run_id}
    assert {run.data.tags["mlflow.parentRunId"] for run in of_trials} == {run.info.run_id for run in of_study}
    assert len(of_trials) == len({trial.user_attrs["fields"]["half_life"] for trial in trials})
    assert {run.data.tags["test_day"] for run in of_trials} == {str(shop.days[3])}
    assert all(run.data.tags["purpose"] == "tune" for run in (*of_study, *of_trials))
    assert tracking.versions() == []
    alone = tune(shop.site, shop.store, night, "recent_popularity", 1)
    assert alone["metrics"][found.metric] == found.as_it_was
    assert bests(shop.site) == [found]


def test_a_trial_that_was_killed_is_tried_again_from_its_checkpoint(copy_shop, monkeypatch):
    recipe = {"gru": {"hidden_size": 8, "batch_size": 64, "patience": 1}}
    shop = copy_shop(training={"recipes": recipe})
    night, kept = shop.days[4], studies.Watch.__call__

    def killed(watch, epoch, value):
        if epoch == 1:
            raise KeyboardInterrupt
        return kept(watch, epoch, value)

    monkeypatch.setattr(studies.Watch, "__call__", killed)
    with pytest.raises(SystemExit):  # as Lightning ends at Ctrl-C
        tune_recipe(shop.site, shop.store, night, "gru", trials=2, minutes=MINUTES)
    epochs = []

    def watched(watch, epoch, value):
        epochs.append(epoch)
        return kept(watch, epoch, value) or epoch == 2

    monkeypatch.setattr(studies.Watch, "__call__", watched)
    found = tune_recipe(shop.site, shop.store, night, "gru", trials=2, minutes=MINUTES)
    states = [trial.state.name for trial in trials_of(shop)]
    assert states[0] == "FAIL"
    assert found.num_trials == 2
    assert trials_of(shop)[1].params == trials_of(shop)[0].params
    assert epochs[0] == 1, "the first epoch was in the checkpoint"
    assert found.fields["epochs"] == trials_of(shop)[1 if found.best == found.as_it_was else 2].user_attrs["best_epoch"]
    assert set(found.fields) == {*SPACES["gru"], "epochs"}
    assert not list((shop.home / "checkpoints").rglob("*.ckpt"))


@pytest.fixture
def play(copy_shop, monkeypatch):
    """A study whose trials go as told: a list of values after each epoch, or a fault."""

    def with_trials(*told: list[float] | str, minutes: float = MINUTES):
        shop = copy_shop()
        coming = iter(told)

        def rehearse(rehearsal, tracking, recipe_name, recipe, parent, gives_up):
            run = tracking.client.create_run(tracking.experiment_id).info.run_id
            values = next(coming)
            if isinstance(values, str):
                raise ConfigurationError(values)
            seen = []
            for epoch, value in enumerate(values):
                seen.append(value)
                if gives_up(epoch, value):
                    break
            best = seen.index(max(seen)) + 1
            return {"run_id": run, "best_epoch": best, "metrics": {shop.site.training.champion_metric: max(seen)}}

        monkeypatch.setattr(studies, "rehearse", rehearse)
        return shop, lambda: tune_recipe(shop.site, shop.store, shop.days[4], "gru", trials=len(told), minutes=minutes)

    return with_trials


def test_a_trial_that_does_worse_than_most_is_given_up(play):
    good = [[0.1, 0.2, 0.3], [0.1, 0.3, 0.4], [0.2, 0.3, 0.35], [0.1, 0.2, 0.3]]
    _, run = play(*good, [0.01, 0.02, 0.9], [0.3, 0.4, 0.5])
    found = run()
    assert (found.num_trials, found.num_pruned, found.num_failed) == (6, 1, 0)
    assert (found.best, found.as_it_was) == (0.5, 0.3)
    assert found.fields["epochs"] == 3


def test_a_recipe_that_cannot_be_trained_is_told_and_counted(play):
    _, run = play("the loss is nan", [0.2], "out of memory")
    found = run()
    assert (found.num_trials, found.num_failed, found.best, found.as_it_was) == (3, 2, 0.2, None)


def test_a_study_without_a_single_trained_trial_says_why(play):
    _, run = play("the loss is nan")
    with pytest.raises(ConfigurationError, match=r"no trial of gru came to its end yet\. The last fault: the loss"):
        run()


def test_the_time_ends_a_study_and_the_trial_under_way(play, monkeypatch):
    now = iter(range(0, 10_000, 50))
    monkeypatch.setattr(studies, "monotonic", lambda: next(now))
    _, run = play(*[[0.1, 0.2, 0.3]] * 5, minutes=2)
    found = run()
    assert found.num_trials == 1
    assert found.best == 0.2, "what it was after the epoch in which the time was up"


def test_a_file_of_another_site_and_one_that_is_no_file_of_studies_are_refused(copy_shop):
    shop = copy_shop(training={"recipes": {"popularity": None}})
    tune_recipe(shop.site, shop.store, shop.days[4], "popularity", trials=9, minutes=MINUTES)
    assert [trial.params for trial in trials_of(shop)] == [{}], "there is nothing to choose"
    other = shop.site.model_copy(update={"name": "other"})
    file = shop.home / "tuning" / "small.db"
    file.rename(shop.home / "tuning" / "other.db")
    with pytest.raises(ConfigurationError, match="holds studies of the site 'small', not of 'other'"):
        bests(other)
    file.write_text("no database at all, but long enough to be read as a header of one " * 20)
    with pytest.raises(ConfigurationError, match=r"small\.db is no file of studies"):
        bests(shop.site)


def test_other_data_and_other_fixed_fields_make_another_study(copy_shop):
    shop = copy_shop()
    names = []
    for gru, night in (({}, 4), ({"hidden_size": 8, "epochs": 3}, 4), ({"patience": 3}, 4), ({}, 3)):
        site = shop.with_changes(training={"recipes": {"gru": gru}})
        recipe = studies.find_recipe("gru", site.training)
        rehearsal = studies.read_rehearsal(site, shop.store, shop.days[night], recipe)
        names.append(studies.open_study(rehearsal, "gru", recipe).study_name)
    assert names[0] == names[1], "what is tried, and follows from it, may be another"
    assert len(set(names)) == 3


@pytest.mark.parametrize("name", SPACES)
def test_every_value_of_a_space_makes_a_recipe(name):
    recipe = RECIPES[name]()
    space = space_of(name, recipe)
    assert space
    for field, choice in space.items():
        ends = choice.values if isinstance(choice, Among) else (choice.low, choice.high)
        for value in ends:
            made = override(name, recipe, {field: value})
            assert present(made)[field] == value, f"{field}: {value} is not as a site file would say it"
        assert isinstance(choice, Between) or present(recipe)[field] in choice.values


def test_what_the_site_s_other_fields_do_not_allow_is_not_tried():
    shuffled = override("gru", RECIPES["gru"](), {"order": "shuffled", "learning_rate": 0.05})
    space = space_of("gru", shuffled)
    assert "prior_half_life" not in space
    assert space["learning_rate"].high == 0.05, "what it has now is among the values"
    without = override("stan", RECIPES["stan"](), {"event_decay": None})
    assert "event_decay" not in space_of("stan", without)


def test_recipes_without_a_space_have_nothing_to_choose():
    assert {name for name in RECIPES if name not in SPACES} == {
        "popularity",
        "session_popularity",
        "markov",
        "ensemble",
    }
    assert not any(isinstance(RECIPES[name](), SequenceRecipe) for name in RECIPES if name not in SPACES)
