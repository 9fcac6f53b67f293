import re

import polars as pl
import pytest

from serving_export.reader import Recommendations, bucket_of
from serving_export.recommend import recommend, with_history
from serving_export.request import Event, Request
from serving_export.tables import SESSION_INTENTS


def asked(client, items=(), **more):
    told = client.post("/recommend", json={"items": [{"item_id": item} for item in items], **more})
    assert told.status_code == 200, told.text
    return told.json()


def scored(answer):
    return [(item["item_id"], item["source"], pytest.approx(item["score"], abs=1e-5)) for item in answer["items"]]


@pytest.fixture(scope="module")
def exported(endpoint):
    lists = Recommendations(endpoint.shop.store.root, when_stale="ignore").rows()
    return lists.sort("user_id", "channel", "rank").collect()


@pytest.mark.parametrize("channel", ["home", "mail"])
def test_a_user_without_a_session_is_answered_what_was_exported(endpoint, exported, channel):
    users = exported["user_id"].unique().sort()[:40]
    for user in users:
        rows = exported.filter(pl.col("user_id") == user, pl.col("channel") == channel)
        answer = asked(endpoint.client, user_id=user, channel=channel)
        assert scored(answer) == list(rows.select("item_id", "source", "score").iter_rows())


def test_a_session_is_answered_what_the_command_line_answers(endpoint):
    loaded = endpoint.versions.serving.loaded
    items = ["sku-00001", "sku-00002", "nothing", "sku-00002", "sku-00005"]
    for n in range(1, 6):
        session = [Event(item) for item in items[:n]]
        (told,) = recommend(loaded, [Request(session, channel="home", top=7)])
        answer = asked(endpoint.client, items[:n], n=7, channel="home")
        assert scored(answer) == [(item["item_id"], item["source"], item["score"]) for item in told["items"]]
        assert answer["num_unknown"] == told["num_unknown"]


def test_a_session_with_a_history_is_answered_what_the_command_line_answers(endpoint, exported):
    loaded, user = endpoint.versions.serving.loaded, exported["user_id"][0]
    wanted = Request([Event("sku-00003")], channel="mail", top=5, user_id=user)
    (told,) = recommend(loaded, [with_history(loaded, endpoint.shop.store, wanted)])
    answer = asked(endpoint.client, ["sku-00003"], user_id=user, channel="mail")
    assert scored(answer) == [(item["item_id"], item["source"], item["score"]) for item in told["items"]]


def test_last_nights_lists_are_those_of_the_release(endpoint, exported):
    user = exported["user_id"][0]
    told = endpoint.client.get(f"/users/{user}/recommendations").json()
    assert told["source"] == "export"
    for of_channel in told["lists"]:
        rows = exported.filter(pl.col("user_id") == user, pl.col("channel") == of_channel["channel"])
        assert [item["item_id"] for item in of_channel["items"]] == rows["item_id"].to_list()


def test_one_event_costs_one_step(endpoint, counted):
    items = [f"sku-000{n:02}" for n in range(20, 32)]
    known = [item for item in items if item in endpoint.versions.serving.loaded.codes]
    for n in range(1, len(known) + 1):
        asked(endpoint.client, known[:n])
        assert counted("recurrent_steps") == n
    asked(endpoint.client, known[:-1])
    assert counted("recurrent_steps") == len(known), "what was taken back was known before"
    assert counted("sessions_read") == 1


def test_a_session_of_unknown_items_gets_popular_ones_and_is_counted(endpoint, counted):
    answer = asked(endpoint.client, ["nothing", "../../etc/passwd", "'; drop table items; --"])
    assert answer["source"] == "popular"
    assert {item["source"] for item in answer["items"]} == {"popular"}
    assert "3 of 3" in answer["note"]
    assert counted("unknown_items") == 3


def test_an_unknown_user_is_answered_and_counted(endpoint, counted):
    answer = asked(endpoint.client, user_id="nobody")
    assert answer["source"] == "popular"
    assert "nobody" in answer["note"]
    assert counted("unknown_users") == 1
    assert endpoint.client.get("/users/nobody/history").status_code == 404
    assert endpoint.client.get("/users/nobody/recommendations").json()["source"] == "popular"
    assert counted("unknown_users") == 3


def test_an_item_is_an_id_or_an_event(endpoint):
    events = [{"item_id": "sku-00001", "occurred_at": "2026-03-06T10:00:00"}, {"item_id": "sku-00002"}]
    told = [
        endpoint.client.post("/recommend", json={"items": items}).json()
        for items in (events, ["sku-00001", "sku-00002"])
    ]
    assert scored(told[0]) == scored(told[1])


def test_a_site_with_context_takes_its_columns_and_no_others():
    from pydantic import ValidationError

    from serving_export.online.schemas import request_model

    model = request_model(["device", "_odd name"])
    (event,) = model.model_validate({"items": [{"item_id": "a", "device": "phone", "_odd name": "x"}]}).items
    assert event.event(["device", "_odd name"], "UTC").context == {"device": "phone", "_odd name": "x"}
    with pytest.raises(ValidationError):
        model.model_validate({"items": [{"item_id": "a", "colour": "blue"}]})


def test_reasons_come_on_request(endpoint):
    answer = asked(endpoint.client, ["sku-00001", "sku-00002"], explain=True, n=3)
    assert answer["items"][0]["reasons"]
    assert {reason["of"] for reason in answer["items"][0]["reasons"]} == {"session"}
    assert "reasons" not in asked(endpoint.client, ["sku-00001", "sku-00002"], n=3)["items"][0]


@pytest.mark.parametrize("path", ["/users?query=u0&limit=3", "/items?query=blue", "/popular?n=3", "/models", "/ready"])
def test_what_can_be_looked_up_is_found(endpoint, path):
    told = endpoint.client.get(path)
    assert told.status_code == 200
    assert all(told.json().values()) or path == "/ready"


def test_items_are_found_by_every_word_of_their_title(endpoint):
    told = endpoint.client.get("/items", params={"query": "shirt BLUE"}).json()["items"]
    assert told
    assert all("blue" in item["title"].lower() and "shirt" in item["title"].lower() for item in told)


def test_related_items_are_those_of_the_release(endpoint):
    from serving_export.tables import RELATED_ITEMS

    rows = endpoint.shop.store.scan(RELATED_ITEMS).filter(item_id="sku-00001").sort("rank").collect()
    told = endpoint.client.get("/items/sku-00001/related").json()["items"]
    assert [item["item_id"] for item in told] == rows["related_item_id"].to_list()


def test_another_version_answers_beside_the_one_that_serves(endpoint):
    (trained,) = (m for m in endpoint.client.get("/models").json()["models"] if not m["is_serving"])
    answer = asked(endpoint.client, ["sku-00001"], model=trained["model_version"])
    assert answer["model_version"] == trained["model_version"]


@pytest.mark.parametrize(
    "told",
    [
        {"items": [{"item_id": "a"}] * 201},
        {"items": [{"item_id": ""}]},
        {"items": [{"item_id": "a" * 513}]},
        {"items": [{"item_id": "a", "colour": "blue"}]},
        {"n": "5"},
        {"explain": 1},
        {"n": 0},
        {"n": 101},
        {"n": 10**30},
        {"itms": []},
        {"user_id": "\ud800"},
    ],
    ids=[
        "events",
        "no-id",
        "long-id",
        "no-column",
        "text",
        "number",
        "zero",
        "long-list",
        "huge",
        "misspelt",
        "surrogate",
    ],
)
def test_what_is_beyond_the_limits_is_refused(endpoint, told):
    import json

    answer = endpoint.client.post("/recommend", content=json.dumps(told), headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["detail"]


@pytest.mark.parametrize(
    ("ask", "status", "named"),
    [
        (lambda client: client.post("/recommend", json={"channel": "attic"}), 404, "attic"),
        (lambda client: client.post("/recommend", json={"model": 999}), 404, "999"),
        (lambda client: client.get("/items/no%2Fitem/related"), 404, "no/item"),
        (lambda client: client.get("/popular?channel=attic"), 404, "attic"),
        (lambda client: client.post("/recommend", content=b"x" * 300_000), 413, "262144"),
        (lambda client: client.get("/items?query=" + "x" * 9000), 414, "8192"),
        (lambda client: client.get("/items?query=" + "x" * 201), 422, "200"),
    ],
    ids=["channel", "version", "item", "channel-of-popular", "body", "address", "query"],
)
def test_what_is_not_there_or_too_large_is_told_in_a_sentence(endpoint, ask, status, named):
    answer = ask(endpoint.client)
    assert answer.status_code == status
    assert named in str(answer.json()["detail"])


def test_other_sites_may_not_ask_from_a_browser(endpoint):
    answer = endpoint.client.get("/ready", headers={"origin": "https://elsewhere.example"})
    assert "access-control-allow-origin" not in answer.headers


def test_the_page_of_all_routes_comes_from_here_alone(endpoint):
    page = endpoint.client.get("/docs").text
    named = re.findall(r'(?:href|src|url)(?:=|: )["\']([^"\']+)', page)
    assert {name.rpartition(".")[2] for name in named} == {"css", "js", "png", "json"}
    assert {name: endpoint.client.get(name).status_code for name in named} == dict.fromkeys(named, 200)


def test_somebody_forgotten_has_no_intents_although_the_releases_version_holds_them(endpoint, monkeypatch):
    """`forget` takes a user out of the newest versions; a release names an earlier one of `session_intents`."""
    store, lists = endpoint.versions.store, endpoint.versions.serving.lists
    listed = lists.rows().select("user_id").head(1).collect().item()
    rows = [
        {"user_bucket": bucket_of(user, endpoint.site.buckets), "user_id": user, "intent": "event_type"}
        | {"rank": 1, "label": "view", "probability": 1.0, "session_id": "s"}
        for user in (listed, "forgotten")
    ]
    buckets = list(range(endpoint.site.buckets))
    version = store.replace(
        SESSION_INTENTS, pl.DataFrame(rows, schema=dict(SESSION_INTENTS.columns)), {"user_bucket": buckets}
    )
    monkeypatch.setitem(lists.facts, "session_intents_version", version)
    told = {user: endpoint.client.get(f"/users/{user}/intents").json() for user in (listed, "forgotten")}
    assert told[listed]["intents"]["event_type"][0]["value"] == "view"
    assert told["forgotten"]["intents"] == {}
