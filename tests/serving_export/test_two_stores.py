"""Two stores of one site name that share an MLflow: staging beside production."""

import shutil
from datetime import timedelta

import pytest

import nightjar
from pipeline.dates import ONE_DAY
from pipeline.errors import ConfigurationError
from pipeline.publish import open_store
from serving_export.prune import prune
from training.compare import compare
from training.rollback import rollback_model
from training.tracking import STORE, Tracking

ALIASES = ("champion", "serving")


@pytest.fixture
def both(released, loaded_shop, write_site, tmp_path, monkeypatch):
    """Production, which has trained (1 is champion, 2 serves), and staging: the same log, the same MLflow."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{released.home / 'mlflow.db'}")
    home = tmp_path / "staging"
    shutil.copytree(loaded_shop.home / "store", home / "store")
    shutil.rmtree(home / "store" / "site")  # or it would be a copy of the same store
    staging = write_site(home, training={"recipes": {"popularity": None}})
    open_store(staging.site)
    return released, staging


def run_night(shop, night):
    """The model steps; the versions that were trained, and made by refit."""
    nightjar.features(shop.site, shop.store, night)
    trained = nightjar.train(shop.site, shop.store, night, "popularity", 1)
    nightjar.promote(shop.site, shop.store, night)
    return trained["model_version"], nightjar.refit(shop.site, shop.store, night)["model_version"]


def named(shop):
    return [version and int(version.version) for version in map(Tracking(shop.site).by_alias, ALIASES)]


def numbers(shop):
    return sorted(int(version.version) for version in Tracking(shop.site).versions(withdrawn=True))


def test_a_store_that_never_trained_publishes_no_model_of_another(both, caplog):
    production, staging = both
    told = nightjar.export(staging.site, staging.store, staging.days[3])
    assert told["model_version"] is None
    assert "models of other stores" in caplog.text
    assert nightjar.export(production.site, production.store, production.days[3])["model_version"] == 2


def test_each_store_has_its_own_versions_aliases_and_nights(both):
    production, staging = both
    assert run_night(staging, staging.days[3]) == (3, 4)
    assert (numbers(production), numbers(staging)) == ([1, 2], [3, 4])
    assert (named(production), named(staging)) == ([1, 2], [3, 4])
    theirs, ours = Tracking(production.site), Tracking(staging.site)
    assert theirs.client.get_model_version_by_alias(theirs.model_name, "serving").version == 2
    night = staging.days[3]
    assert theirs.night_run(night).info.run_id != ours.night_run(night).info.run_id
    (row,), (other) = compare(production.site, theirs, night), compare(staging.site, ours, night)
    assert row.run_ids != other[0].run_ids
    with pytest.raises(ConfigurationError, match="no version 1 of the store"):
        ours.by_number(1)
    with pytest.raises(ConfigurationError, match="no version was champion before version 3"):
        rollback_model(staging.site)
    assert named(production) == [1, 2]


def test_a_run_of_another_store_that_was_cut_off_is_not_gone_on_with(both):
    production, staging = both
    night, tags = production.days[4], {"recipe": "gru", "seed": "1", "kind": "train"}
    with pytest.raises(RuntimeError), Tracking(production.site).run(night, "gru", tags) as first:
        raise RuntimeError("out of power")
    with Tracking(staging.site).run(night, "gru", tags) as other:
        assert other != first
    with Tracking(production.site).run(night, "gru", tags) as again:
        assert again == first


def add_old(shop, **tags):
    """A run of an old night and a version without a model, which nothing needs; the number of the version."""
    tracking, told = Tracking(shop.site), {"night": str(shop.days[0]), "kind": "train", "recipe": "gru", **tags}
    tracking.client.create_run(tracking.experiment_id, tags=told)
    told["data_through"] = str(shop.days[0] - ONE_DAY)
    return int(tracking.client.create_model_version(tracking.model_name, "nowhere", tags=told).version)


def removed(shop, **how):
    """Versions and number of runs that `vacuum --date` removes from MLflow."""
    short = shop.with_changes(training={"keep_runs_for": timedelta(days=1)})
    told = prune(short, shop.store, shop.days[2], **how)
    return told["model_versions"], told["runs"]


def test_vacuum_leaves_the_other_stores_versions_and_runs(both):
    production, staging = both
    add_old(production, store=Tracking(production.site).store.id)
    assert removed(staging, dry_run=False) == ([], 0)
    assert numbers(production) == [1, 2, 3]
    assert removed(production, dry_run=False) == ([3], 1)


def untag(shop):
    """What versions and runs were like before they carried their store."""
    tracking = Tracking(shop.site)
    for run in tracking.runs():
        tracking.client.delete_tag(run.info.run_id, STORE)
    for version in tracking.versions():
        tracking.client.delete_model_version_tag(tracking.model_name, str(version.version), STORE)


def test_what_carries_no_store_belongs_to_the_older_store_that_has_built_features(both):
    production, staging = both
    untag(production)
    assert numbers(production) == [1, 2]
    nightjar.features(staging.site, staging.store, staging.days[3])
    assert numbers(staging) == [], "they are older than the store"
    assert nightjar.export(staging.site, staging.store, staging.days[3])["model_version"] is None
    assert nightjar.export(production.site, production.store, production.days[3])["model_version"] == 2
    assert named(production) == [1, 2]


def test_what_carries_no_store_is_removed_only_where_no_other_store_is_about(both):
    production, staging = both
    add_old(production)
    assert removed(production, dry_run=True) == ([3], 1)
    Tracking(staging.site)
    assert removed(production, dry_run=True) == ([], 0)


def test_a_copy_of_a_store_goes_on_with_its_models(both, write_site, tmp_path):
    production, _ = both
    shutil.copytree(production.home / "store", tmp_path / "restored" / "store")
    restored = write_site(tmp_path / "restored", training={"recipes": {"popularity": None}})
    assert numbers(restored) == [1, 2]
    assert named(restored) == [1, 2]
