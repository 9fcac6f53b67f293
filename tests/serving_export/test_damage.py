"""A registered version whose files were damaged after it was made: nothing is published from it, nothing serves it."""

import json
import shutil
from pathlib import Path

import mlflow
import pytest
import yaml

import nightjar
from pipeline.errors import ConfigurationError
from serving_export.online.metrics import Metrics
from serving_export.online.versions import Versions
from serving_export.prune import logged_model
from serving_export.tables import RECOMMENDATIONS
from training.tracking import Tracking


@pytest.fixture
def refitted(released):
    """A copy of the popular shop with a version of its own, 3, that serves: a test may damage its files."""
    nightjar.refit(released.site, released.store, released.days[3])
    return released


def files_of(shop, version):
    """Where the files of a version lie."""
    tracking = Tracking(shop.site)
    model_id = logged_model(tracking.client.get_model_version(tracking.model_name, str(version)))
    return Path(tracking.client.get_logged_model(model_id).artifact_location.removeprefix("file:"))


def flip(file):
    content = bytearray(file.read_bytes())
    for place in range(len(content) - 40, len(content)):
        content[place] ^= 0x10
    file.write_bytes(bytes(content))


def test_nothing_is_published_from_damaged_weights(command, refitted):
    shop, before = refitted, refitted.store.version(RECOMMENDATIONS)
    flip(files_of(shop, 3) / "artifacts/bundle/weights.safetensors")
    code, _, err = command(shop.home, "export", "--site", shop.file, "--date", shop.days[3])
    assert code == 2
    assert "nightjar-small version 3" in err
    assert "weights.safetensors is damaged" in err
    assert "nightjar rollback model" in err
    assert "Traceback" not in err
    assert shop.store.version(RECOMMENDATIONS) == before
    nightjar.refit(shop.site, shop.store, shop.days[3])
    assert nightjar.export(shop.site, shop.store, shop.days[3])["model_version"] == 4


def test_the_endpoint_keeps_its_version_beside_a_damaged_one(refitted):
    shop = refitted
    versions = Versions(shop.site, shop.store, "", Metrics())
    assert versions.serving.loaded.version == 3
    nightjar.refit(shop.site, shop.store, shop.days[3])
    flip(files_of(shop, 4) / "artifacts/bundle/weights.safetensors")
    assert not versions.look()
    assert versions.serving.loaded.version == 3
    assert "version 4" in (versions.fault or "")
    with pytest.raises(ConfigurationError, match="version 4"):
        versions.edition(4)


def test_mlflow_itself_refuses_damaged_and_exchanged_files(refitted):
    shop = refitted
    nightjar.refit(shop.site, shop.store, shop.days[4])
    assert mlflow.pyfunc.load_model("models:/nightjar-small/4")
    shutil.copytree(files_of(shop, 3) / "artifacts/bundle", files_of(shop, 4) / "artifacts/bundle", dirs_exist_ok=True)
    with pytest.raises(Exception, match=r"bundle.json is damaged or was exchanged"):
        mlflow.pyfunc.load_model("models:/nightjar-small/4")


def test_the_whole_folder_of_another_version_is_refused(refitted):
    shop, tracking = refitted, Tracking(refitted.site)
    nightjar.refit(shop.site, shop.store, shop.days[4])
    shutil.copytree(files_of(shop, 3), files_of(shop, 4), dirs_exist_ok=True)
    with pytest.raises(ConfigurationError, match=r"nightjar-small version 4: .*bundle.json is damaged or was exch"):
        tracking.load(tracking.by_number(4))


def test_a_version_from_before_checksums_loads_and_says_what_is_not_checked(refitted, caplog):
    shop, tracking = refitted, Tracking(refitted.site)
    tracking.client.delete_model_version_tag(tracking.model_name, "3", "bundle_sha256")
    folder = files_of(shop, 3)
    described = yaml.safe_load((folder / "MLmodel").read_text())
    del described["metadata"]
    (folder / "MLmodel").write_text(yaml.safe_dump(described))
    facts = json.loads((folder / "artifacts/bundle/bundle.json").read_text())
    del facts["files"]
    (folder / "artifacts/bundle/bundle.json").write_text(json.dumps(facts))
    assert mlflow.pyfunc.load_model("models:/nightjar-small/3")
    caplog.clear()
    assert nightjar.export(shop.site, shop.store, shop.days[3])["model_version"] == 3
    assert "version 3 was registered without checksums: damage to its weights would not be noticed" in caplog.text
