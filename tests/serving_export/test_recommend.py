"""Answers are the lists that the export makes; what is odd about a request is counted, and reasons are those events."""

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from features.vocabulary import learn_vocabulary
from features.window import sessions_until
from pipeline.tables import events_table
from serving_export import export as exporting
from serving_export.export import Served, export
from serving_export.loaded import assemble
from serving_export.recommend import ago, recommend, times_of, with_history
from serving_export.request import Event, Request, read_request
from serving_export.scoring import session_vectors
from serving_export.tables import RECOMMENDATIONS
from training.bundle import Bundle, build_for
from training.recipes import RECIPES, SequenceRecipe
from training.train import define_properties, microseconds_at_end

NOON = datetime(2026, 3, 5, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@pytest.fixture(scope="module")
def bundle_of(loaded_shop):
    site, store, last = loaded_shop.site, loaded_shop.store, loaded_shop.days[3]
    sessions = sessions_until(site, store, loaded_shop.days[:4], last)
    plain = learn_vocabulary(sessions, 2)
    described = define_properties(site, store, plain, sessions, last)

    def make(name: str) -> Bundle:
        from features.sequences import encode_sessions

        recipe = RECIPES[name]()
        vocabulary = described if name == "intentrec" else plain
        as_of = microseconds_at_end(site, last)
        if isinstance(recipe, SequenceRecipe):
            recipe = recipe.model_copy(update={"hidden_size": 8})
        model = build_for(recipe, vocabulary)
        if not isinstance(recipe, SequenceRecipe):
            model.fit(encode_sessions(sessions, vocabulary).known_only(), as_of)
        return Bundle(model.eval(), vocabulary, name, recipe, last, as_of)

    return make


@pytest.fixture(scope="module")
def loaded_of(loaded_shop, bundle_of):
    return lambda name: assemble(loaded_shop.site, loaded_shop.store, bundle_of(name), 1)


@pytest.fixture
def known(loaded_shop) -> list[str]:
    events = loaded_shop.store.scan(events_table([])).collect()
    return events["item_id"].value_counts().sort("count", "item_id", descending=True)["item_id"].head(8).to_list()


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "name", ["hrnn", "intentrec", *(pytest.param(name, marks=SLOW) for name in ("gru", "narm", "stan"))]
)
def test_an_answer_is_the_exported_list(name, bundle_of, copy_shop, judge, monkeypatch):
    shop = copy_shop()
    day = shop.days[3]
    for later in shop.days[4:]:
        judge(shop.store, later, "failed")
    rules = {"max_per_category": 3, "complements": 1, "top_n": 7, "because": "influence"}
    told = {"checks": {"fallback_share": 1}, "channels": {"home": None, "mail": rules}, "related": {"top_n": 2}}
    site = shop.with_changes(export=told)
    served = Served(bundle_of(name), 7, "run", {})
    monkeypatch.setattr(exporting, "served_model", lambda *_: served)
    told = export(site, shop.store, day)
    assert told["users_explained"] > 50
    assert told["users_out_of_time"] == 0
    rows = shop.store.scan(RECOMMENDATIONS).sort("user_id", "channel", "rank").collect()
    users = rows["user_id"].unique().sort().to_list()[::9]
    loaded = assemble(site, shop.store, served.bundle, 7)
    for channel, top in (("home", 10), ("mail", 7)):
        requests = [
            with_history(loaded, shop.store, Request(user_id=user, channel=channel, top=top, explain=channel == "mail"))
            for user in users
        ]
        for user, answer in zip(users, recommend(loaded, requests), strict=True):
            exported = rows.filter(user_id=user, channel=channel)
            found = pl.DataFrame([{k: item[k] for k in ("item_id", "source", "score")} for item in answer["items"]])
            assert found["item_id"].to_list() == exported["item_id"].to_list()
            assert found["source"].to_list() == exported["source"].to_list()
            ours = (exported["source"] != "popular").to_numpy()
            np.testing.assert_allclose(found["score"].to_numpy()[ours], exported["score"].to_numpy()[ours], atol=1e-5)
            if channel == "mail":
                because = [item.get("because", {}).get("item_id") for item in answer["items"]]
                assert because == exported["because"].to_list()
                assert len(because) > 0


def test_an_export_without_time_for_reasons_says_so_and_names_the_last_item(bundle_of, copy_shop, monkeypatch, caplog):
    shop = copy_shop()
    rules = {"home": None, "mail": {"because": "influence"}}
    told = {"checks": {"fallback_share": 1}, "channels": rules, "reasons_within": "0s"}
    monkeypatch.setattr(exporting, "served_model", lambda *_: Served(bundle_of("gru"), 7, "run", {}))
    facts = export(shop.with_changes(export=told), shop.store, shop.days[3])
    assert facts["users_explained"] == 0
    assert facts["users_out_of_time"] > 50
    assert "were not explained within export.reasons_within = 0s: their `because` is their last item" in caplog.text
    rows = shop.store.scan(RECOMMENDATIONS).sort("user_id", "rank").collect()
    home, mail = (rows.filter(channel=name).drop("channel") for name in ("home", "mail"))
    assert home.equals(mail)


def test_many_requests_are_answered_as_one_by_one(loaded_of, known):
    loaded = loaded_of("gru")
    requests = [
        Request([Event(item) for item in known[:n]], channel=channel, top=top)
        for n, channel, top in ((1, None, 5), (3, "home", 9), (8, None, 2), (2, "home", 4))
    ]
    together = recommend(loaded, requests)
    for request, answer in zip(requests, together, strict=True):
        (alone,) = recommend(loaded, [request])
        assert [i["item_id"] for i in alone["items"]] == [i["item_id"] for i in answer["items"]]
        assert len(answer["items"]) == request.top
    seen = set(known[:3])
    assert not seen & {item["item_id"] for item in together[1]["items"]}, "the channel leaves out what was had"
    assert together[0]["model_version"] == 1


def test_a_vector_that_was_carried_stands_for_the_session(loaded_of, known):
    loaded = loaded_of("gru")
    requests = [Request([Event(item) for item in items], top=5) for items in (known[:3], ["?"], known[4:])]

    def carried(sequences):
        vectors = session_vectors(loaded.bundle, sequences, loaded.maker.vectors_ID.shape[1])
        assert np.isnan(vectors[1]).all()
        return vectors[:, ::-1]

    there_and_back = recommend(loaded, requests, lambda sequences: carried(sequences)[:, ::-1])
    assert there_and_back == recommend(loaded, requests)
    assert recommend(loaded, requests, carried) != there_and_back


def test_a_model_of_users_reads_the_history_and_one_of_sessions_does_not(loaded_of, known):
    session = [Event(known[0], NOON)]
    history = [Event(item, NOON - timedelta(hours=n + 2)) for n, item in enumerate(known[1:4])][::-1]
    for name, is_moved in (("hrnn", True), ("gru", False)):
        loaded = loaded_of(name)
        alone, told = recommend(loaded, [Request(session, top=5), Request(session, history, top=5)])
        assert (alone["items"] != told["items"]) == is_moved
        assert told["num_history"] == 3
        (of_history,) = recommend(loaded, [Request((), history, top=5)])
        assert of_history["source"] == "model"


def test_reasons_name_events_of_session_and_history(loaded_of, known):
    loaded = loaded_of("hrnn")
    history = [Event(known[1], NOON - timedelta(days=2), "cart"), Event("?", NOON - timedelta(days=1))]
    session = [Event("??", NOON), Event(known[2], NOON + MINUTE, "view"), Event(known[3], NOON + 5 * MINUTE, "view")]
    (answer,) = recommend(loaded, [Request(session, history, top=5, explain=True)])
    places = {(r["of"], r["event"], r["item_id"]) for item in answer["items"] for r in item["reasons"]}
    assert places == {("history", 0, known[1]), ("session", 1, known[2]), ("session", 2, known[3])}
    for item in answer["items"]:
        best = max(item["reasons"], key=lambda reason: reason["influence"])
        assert (best["influence"] > 0) == ("because" in item)
        sizes = [abs(reason["influence"]) for reason in item["reasons"]]
        assert sizes == sorted(sizes, reverse=True)
    texts = {item["because"]["item_id"]: item["because"]["text"] for item in answer["items"] if "because" in item}
    titles = dict(zip(loaded.assortment.item_ids, loaded.titles, strict=True))
    wanted = {
        known[1]: f"because you put {titles[known[1]]} into the cart 2 days ago",
        known[2]: f"because you viewed {titles[known[2]]} 4 minutes ago",
        known[3]: f"because you viewed {titles[known[3]]} just now",
    }
    assert texts
    assert texts.items() <= wanted.items()
    (plain,) = recommend(loaded, [Request(session, history, top=5)])
    assert "reasons" not in plain["items"][0]


def test_a_model_of_intents_says_what_it_expects(loaded_of, known):
    (answer,) = recommend(loaded_of("intentrec"), [Request([Event(known[0])], top=3, explain=True)])
    assert set(answer["intents"]) == set(answer["intent_weights"])
    for classes in answer["intents"].values():
        shares = [each["probability"] for each in classes]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) <= 1 + 1e-5
    assert sum(answer["intent_weights"].values()) == pytest.approx(1)


def about(items):
    """The same items: a score may differ by its rounding, for it comes out of a product with other rows."""
    return [item | {"score": pytest.approx(item["score"], abs=1e-5)} for item in items]


def test_event_types_and_times_reach_a_model_that_reads_them(loaded_of, known):
    loaded = loaded_of("intentrec")
    bought, viewed, unknown, other, later = (
        Request([Event(known[0], at, kind)], top=3)
        for at, kind in (
            (NOON, "purchase"),
            (NOON, "view"),
            (NOON, None),
            (NOON, "a type of tomorrow"),
            (NOON + timedelta(hours=9), "view"),
        )
    )
    answers = [answer["items"] for answer in recommend(loaded, [bought, viewed, unknown, other, later])]
    assert answers[0] != answers[1] != answers[2]
    assert answers[1] != answers[4]
    assert answers[3] == about(answers[2]), "a class that training never saw is a missing one"


def test_the_newest_events_are_read_and_the_others_counted(loaded_of, known):
    loaded = loaded_of("gru")
    limit = loaded.site.export.input.last_events
    items = (known * 20)[: limit + 13]
    long, short = recommend(
        loaded, [Request([Event(i) for i in items], top=5), Request([Event(i) for i in items[13:]], top=5)]
    )
    assert long["items"] == short["items"]
    assert (long["num_left_out"], short["num_left_out"]) == (13, 0)
    of_users = loaded_of("hrnn")
    history = [Event(item, NOON + n * MINUTE) for n, item in enumerate(items)]
    (answer,) = recommend(of_users, [Request([Event(known[0], NOON + timedelta(days=1))], history, top=5)])
    assert answer["num_left_out"] == 14


def test_a_clock_that_goes_backwards_is_held_and_the_order_stands(loaded_of, known):
    loaded = loaded_of("intentrec")
    times = [NOON, NOON + 3 * MINUTE, NOON - 9 * MINUTE, None, NOON + 4 * MINUTE]
    session = [Event(item, at) for item, at in zip(known[:5], times, strict=True)]
    told, num_backward = times_of(loaded, Request(session))
    minutes = (told - told[0]) // 60_000_000
    assert minutes.tolist() == [0, 3, 3, 3, 4]
    assert num_backward == 1
    (answer,) = recommend(loaded, [Request(session, top=5)])
    assert answer["num_backward"] == 1
    mended = [Event(item, NOON + timedelta(minutes=int(n))) for item, n in zip(known[:5], minutes, strict=True)]
    (same,) = recommend(loaded, [Request(mended, top=5)])
    assert same["items"] == answer["items"]


def test_a_session_without_times_is_one_of_its_own_after_all_that_is_known(loaded_of, known):
    loaded = loaded_of("hrnn")
    late = datetime.fromtimestamp(loaded.end / 1e6, UTC) + timedelta(days=3)
    told, _ = times_of(loaded, Request([Event(known[0]), Event(known[1])], [Event(known[2], late)]))
    assert told[1] == told[2]
    assert told[1] - told[0] > loaded.site.sessions.gap // timedelta(microseconds=1)
    alone, _ = times_of(loaded, Request([Event(known[0])]))
    assert alone.tolist() == [loaded.end]


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0, "just now"), (59, "just now"), (60, "1 minute ago"), (7000, "2 hours ago"), (200_000, "2 days ago")],
)
def test_times_for_people(seconds, told):
    assert ago(seconds) == told


def test_requests_are_read_as_programs_write_them():
    zone = "Europe/Berlin"
    assert read_request(["a", 7], zone) == Request([Event("a"), Event("7")])
    told = {"items": [{"item_id": "a", "occurred_at": "2026-07-01T12:00:00", "event_type": "view", "device": "phone"}]}
    request = read_request(told | {"user_id": "u", "n": 3, "channel": "mail", "explain": True}, zone)
    assert request.session == [Event("a", datetime(2026, 7, 1, 10, tzinfo=UTC), "view", {"device": "phone"})]
    assert (request.user_id, request.top, request.channel, request.explain) == ("u", 3, "mail", True)
    twice = read_request({"items": [{"item_id": "a", "occurred_at": "2026-10-25T02:30:00"}]}, zone)
    assert twice.session[0].occurred_at == datetime(2026, 10, 25, 0, 30, tzinfo=UTC), "the earlier of two instants"
    assert read_request(["a"], zone, Request(top=4, channel="mail")).top == 4


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        (7, "items is a list"),
        ({"items": []}, "items is a list"),
        ({"items": ["a"], "nn": 3}, "'nn' is not known"),
        ({"items": [True]}, "item_id is True"),
        ({"items": [{"occurred_at": "2026-01-01"}]}, "item_id is None"),
        ({"items": [{"item_id": "a", "occurred_at": "yesterday"}]}, "'yesterday' is no time"),
        ({"items": [{"item_id": "a", "occurred_at": 7}]}, "7 is no time"),
        ({"items": [{"item_id": "a", "occurred_at": "0001-01-01T00:00:00"}]}, "no time of a log"),
        ({"items": ["a"], "n": 0}, "n is 0"),
        ({"items": ["a"], "n": True}, "n is True"),
    ],
    ids=str,
)
def test_what_is_no_request_is_said(told, reason):
    with pytest.raises(ValueError, match=reason):
        read_request(told, "Europe/Berlin")
