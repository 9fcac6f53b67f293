import shutil
from types import SimpleNamespace

import pytest

import nightjar


@pytest.fixture(scope="session")
def gru_shop(tmp_path_factory, loaded_shop, write_site, empty_mlflow):
    """A release of the last night by a GRU, which serves. Read only."""
    home = tmp_path_factory.mktemp("gru") / "home"
    shutil.copytree(loaded_shop.home / "store", home / "store")
    shutil.copy(empty_mlflow, home / "mlflow.db")
    export = {"top_n": 10, "channels": {"home": None, "mail": {"top_n": 5, "max_per_category": 2, "complements": 2}}}
    shop = write_site(home, export=export)
    night = shop.days[-1]
    nightjar.features(shop.site, shop.store, night)
    nightjar.train(shop.site, shop.store, night, "gru", 1)
    for name in ("promote", "refit", "export"):
        shop.told[name] = nightjar.STEPS[name](shop.site, shop.store, night)
    return shop


@pytest.fixture(scope="session")
def endpoint(gru_shop):
    """The endpoint of that shop, with a client; tests count by differences, for all of them ask it."""
    from starlette.testclient import TestClient

    from serving_export.online.app import create_app
    from serving_export.online.metrics import Metrics
    from serving_export.online.versions import Versions

    metrics = Metrics()
    versions = Versions(gru_shop.site, gru_shop.store, "", metrics)
    with TestClient(create_app(versions, metrics, look_every=3600)) as client:
        yield SimpleNamespace(client=client, versions=versions, metrics=metrics, site=gru_shop.site, shop=gru_shop)


@pytest.fixture
def counted(endpoint):
    """Call for how much a counter has grown since."""
    before = {}

    def value(name, **labels):
        return endpoint.metrics.registry.get_sample_value(f"nightjar_{name}_total", labels) or 0

    def grown(name, **labels):
        return value(name, **labels) - before.get(name, 0)

    for name in ("recurrent_steps", "sessions_read", "unknown_items", "unknown_users"):
        before[name] = value(name)
    return grown
