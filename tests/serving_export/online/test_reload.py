"""What serves is replaced while it is asked."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import httpx
import pytest

import nightjar
from training.tracking import Tracking, number


@pytest.fixture
def tracking(live):
    return Tracking(live.shop.site)


def turn(live, tracking):
    """Point the alias at the other one of the two versions."""
    first, second = sorted(number(version) for version in tracking.versions())
    serving = live.versions.serving.loaded.version
    other = second if serving == first else first
    tracking.set_alias("serving", other)
    return other


def asked(client):
    return client.post("/recommend", json={"items": [{"item_id": "sku-00001"}, {"item_id": "sku-00002"}]})


def keep_asking(url, stop, answers):
    with httpx.Client(base_url=url, timeout=30) as client:  # the server itself gives up sooner, with a 503
        while not stop.is_set():
            answers.append(asked(client))


def reload_under_load(live, tracking, times):
    """Switch so many times while three clients ask; all their answers."""
    answers, stop = [], Event()
    with ThreadPoolExecutor(3) as threads:
        asking = [threads.submit(keep_asking, live.url, stop, answers) for _ in range(3)]
        try:
            for _ in range(times):
                wanted = turn(live, tracking)
                assert live.versions.look()
                assert live.versions.serving.loaded.version == wanted
        finally:
            stop.set()
        for each in asking:
            each.result()
    return answers


def check_answers(live, answers):
    """None failed, and each is whole: the version that it names gives just these scores."""
    assert {answer.status_code for answer in answers} == {200}
    seen = {}
    for answer in (answer.json() for answer in answers):
        scores = {item["item_id"]: item["score"] for item in answer["items"]}
        assert seen.setdefault(answer["model_version"], scores) == pytest.approx(scores, abs=1e-5)
    assert len(seen) == 2
    assert seen[1] != seen[2]


def test_no_request_fails_during_ten_reloads(live, tracking):
    answers = reload_under_load(live, tracking, 10)
    assert len(answers) > 10
    check_answers(live, answers)
    assert live.metrics.registry.get_sample_value("nightjar_reloads_total", {"outcome": "switched"}) == 10


@pytest.mark.slow
def test_no_request_fails_during_a_hundred_reloads(live, tracking):
    check_answers(live, reload_under_load(live, tracking, 100))


def register_again(tracking, version, times):
    """The same model under further version numbers; those numbers."""
    made = [
        tracking.client.create_model_version(tracking.model_name, version.source, version.run_id, tags=version.tags)
        for _ in range(times)
    ]
    return [number(each) for each in made]


def test_every_version_that_is_asked_for_at_the_same_time_answers(live, tracking):
    asked_for = register_again(tracking, tracking.versions()[0], 4) * 2

    def ask(version):
        return httpx.post(f"{live.url}/recommend", json={"items": ["sku-00001"], "model": version}, timeout=30)

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ask, asked_for))
    assert [answer.status_code for answer in answers] == [200] * 8
    assert [answer.json()["model_version"] for answer in answers] == asked_for
    assert len(live.versions.beside) <= 2


def test_nothing_is_loaded_where_nothing_is_new(live):
    before = live.versions.serving
    assert not live.versions.look()
    assert live.versions.serving is before


def test_a_new_release_of_the_same_version_is_taken_up(live):
    before = live.versions.serving
    nightjar.export(live.shop.site, live.shop.store, live.shop.days[-1])
    assert live.versions.look()
    assert live.versions.serving.release == before.release + 1
    assert live.versions.serving.loaded.version == before.loaded.version


def damage_index(live, version):
    file = live.shop.home / "store" / "item_index" / str(version) / "index.faiss"
    file.parent.mkdir(exist_ok=True)
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)


def test_a_damaged_version_does_not_serve_and_the_former_one_stays(live, tracking):
    serving = live.versions.serving
    turn(live, tracking)
    live.versions.look()
    damage_index(live, serving.loaded.version)
    before = live.versions.serving
    turn(live, tracking)
    assert not live.versions.look()
    assert live.versions.serving is before
    told = httpx.get(f"{live.url}/ready").json()
    assert told["model_version"] == before.loaded.version
    assert "sha256" in told["refused"]
    assert asked(httpx.Client(base_url=live.url)).json()["model_version"] == before.loaded.version
    turn_back = before.loaded.version
    tracking.set_alias("serving", turn_back)
    live.versions.look()
    assert httpx.get(f"{live.url}/ready").json()["refused"] is None


def test_an_index_of_another_model_does_not_serve(live):
    from pipeline.errors import ConfigurationError
    from serving_export.online import versions as module

    loaded = live.versions.serving.loaded
    loaded.maker.vectors_ID[1:] = loaded.maker.vectors_ID[:0:-1].copy()
    with pytest.raises(ConfigurationError, match="index"):
        module.check(live.versions.serving)


def test_a_site_without_a_night_cannot_be_served(copy_shop):
    from pipeline.errors import ConfigurationError
    from serving_export.online.metrics import Metrics
    from serving_export.online.versions import Versions

    shop = copy_shop()
    with pytest.raises(ConfigurationError, match="Run a night first"):
        Versions(shop.site, shop.store, "", Metrics())
