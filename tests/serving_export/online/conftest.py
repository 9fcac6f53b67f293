import shutil
import time
from contextlib import contextmanager
from threading import Thread
from types import SimpleNamespace

import pytest

import nightjar

EXPORT = {"top_n": 10, "channels": {"home": None, "mail": {"top_n": 5, "max_per_category": 2, "complements": 2}}}


@pytest.fixture(scope="session")
def gru_shop(tmp_path_factory, loaded_shop, write_site, empty_mlflow):
    """A release of the last night by a GRU, which serves. Read only."""
    home = tmp_path_factory.mktemp("gru") / "home"
    shutil.copytree(loaded_shop.home / "store", home / "store")
    shutil.copy(empty_mlflow, home / "mlflow.db")
    shop = write_site(home, export=EXPORT)
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


@contextmanager
def listening_at(shop):
    """A server in a thread, over real connections; no look at what is new but those that a test takes."""
    import uvicorn

    from serving_export.online.app import create_app
    from serving_export.online.metrics import Metrics
    from serving_export.online.server import settings
    from serving_export.online.versions import Versions

    metrics = Metrics()
    versions = Versions(shop.site, shop.store, "", metrics)
    app = create_app(versions, metrics, look_every=3600)
    server = uvicorn.Server(uvicorn.Config(app, **settings("127.0.0.1", 0)))
    thread = Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield SimpleNamespace(port=port, url=f"http://127.0.0.1:{port}", versions=versions, metrics=metrics, shop=shop)
    server.should_exit = True
    thread.join(20)


@pytest.fixture(scope="session")
def listening(gru_shop):
    """The shop over real connections. Read only."""
    with listening_at(gru_shop) as server:
        yield server


@pytest.fixture
def live(tmp_path, gru_shop, write_site):
    """The same of a copy of the shop whose alias and release a test may change."""
    home = tmp_path / "home"
    shutil.copytree(gru_shop.home / "store", home / "store")
    shutil.copy(gru_shop.home / "mlflow.db", home / "mlflow.db")
    with listening_at(write_site(home, export=EXPORT)) as server:
        yield server


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
