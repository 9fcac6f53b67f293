"""What old nights leave, and what stays whatever its age."""

import json
from datetime import timedelta
from pathlib import Path

import pytest

import nightjar
from features.tables import SEQUENCES, VOCABULARY
from pipeline.dates import ONE_DAY
from serving_export.export import export
from serving_export.prune import logged_model, prune
from training.tracking import Tracking


@pytest.fixture
def two_nights(released):
    """A second night, whose challenger did not become champion: versions 1 (champion), 2, 3 (it), 4 (serves)."""
    shop, night = released, released.days[4]
    nightjar.features(shop.site, shop.store, night)
    nightjar.train(shop.site, shop.store, night, "popularity", 1)
    for step in ("promote", "refit", "export"):
        nightjar.STEPS[step](shop.site, shop.store, night)
    tracking = Tracking(shop.site)
    if int(tracking.champion().version) == 3:
        tracking.client.delete_model_version_tag(tracking.model_name, "3", "promoted")
        tracking.set_alias("champion", 1)
        tracking.client.set_model_version_tag(tracking.model_name, "4", "parent_version", "1")
    Path(shop.store.root, "item_index", "3").mkdir(parents=True)
    Path(shop.home, "checkpoints", "small", str(night)).mkdir(parents=True)
    return shop


def versions(shop):
    return sorted(int(version.version) for version in Tracking(shop.site).versions())


def nights(shop):
    return [sorted(set(shop.store.scan(table).collect()["night"])) for table in (VOCABULARY, SEQUENCES)]


def indexes(shop):
    return sorted(int(path.name) for path in Path(shop.store.root, "item_index").iterdir())


def test_what_no_release_and_no_champion_needs_is_removed(two_nights):
    shop, site = two_nights, two_nights.with_changes(training={"keep_runs_for": timedelta(days=1)})
    tracking = Tracking(shop.site)
    of_challenger = tracking.client.get_model_version(tracking.model_name, "3")
    model = tracking.client.get_logged_model(logged_model(of_challenger))
    day = shop.days[4] + 2 * ONE_DAY
    would = prune(site, shop.store, day, dry_run=True)
    assert (versions(shop), 3 in indexes(shop)) == ([1, 2, 3, 4], True)
    told = prune(site, shop.store, day, dry_run=False)
    assert told == would
    assert (told["model_versions"], told["item_indexes"], told["runs"]) == ([3], [3], 1)
    assert told["nights"] == [str(shop.days[3]), str(shop.days[4])]
    assert told["checkpoints"] == [str(shop.days[4])]
    assert (versions(shop), nights(shop)) == ([1, 2, 4], [[], []])
    assert not list(Path(model.artifact_location.removeprefix("file:")).rglob("*.*"))
    assert tracking.client.get_run(of_challenger.run_id).info.lifecycle_stage == "deleted"
    for version in tracking.versions():
        tracking.load(version)
    assert export(shop.site, shop.store, shop.days[4])["model_version"] == 4
    assert not any(prune(site, shop.store, day, dry_run=True).values())


def test_the_day_is_told_and_never_the_clocks_and_what_is_young_then_stays(command, two_nights):
    shop = two_nights
    young = prune(shop.site, shop.store, shop.days[4] + 60 * ONE_DAY, dry_run=False)
    assert (young["nights"], young["model_versions"], young["runs"]) == ([], [], 0)
    code, out, _ = command(shop.home, "vacuum", "--site", shop.file, "--date", "2031-01-01", "--dry-run")
    assert code == 0
    assert json.loads(out)["old"]["model_versions"] == [3]
    code, out, _ = command(shop.home, "vacuum", "--site", shop.file, "--dry-run")
    assert "old" not in json.loads(out)
    assert versions(shop) == [1, 2, 3, 4]
