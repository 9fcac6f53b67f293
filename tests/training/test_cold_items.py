"""Items that came after training: what they are recommended by, how they are marked, and what they cost."""

from dataclasses import replace
from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest
import torch

from features.intents import Definitions
from features.new_items import new_items
from features.sequences import Sequences, encode_sessions
from features.vocabulary import learn_vocabulary
from features.window import sessions_until
from pipeline.publish import Store
from pipeline.tables import ITEMS
from serving_export import export as exporting
from serving_export.export import Served, export
from serving_export.loaded import assemble
from serving_export.reader import Recommendations
from serving_export.recommend import recommend
from serving_export.request import Event, Request
from serving_export.tables import RECOMMENDATIONS
from training.batch import gather
from training.bundle import Bundle, build, build_for, load_bundle, save_bundle
from training.cold_items import cold_quality, offer, offer_new
from training.fit import fit
from training.measure import read_held_out_day
from training.models import MODELS
from training.models.base import Recommender, SessionModel
from training.recipes import RECIPES, SequenceRecipe, properties_read
from training.train import define_properties, microseconds_at_end
from training.units import carries_users

AS_OF = 1_772_323_200_000_000
NAMES = [f"i{n:02d}" for n in range(12)]
DEFINITIONS = Definitions(
    classes={"category": ("hats", "socks", "shoes"), "price_band": ("low", "high")}, price_edges=(5.0,), intents=()
)
of_every_model = pytest.mark.parametrize("encoder", MODELS)


def rows_of(names: list[str], categories: list[str | None], price: float | None = 7.0) -> pl.DataFrame:
    return pl.DataFrame(
        {"item_id": names, "category": categories}, schema_overrides={"category": pl.String}
    ).with_columns(price=pl.lit(price, pl.Float64), first_seen=pl.lit(date(2026, 2, 1)))


def recipe_of(encoder: str, **fields: object) -> SequenceRecipe:
    recipe = RECIPES[encoder]()
    assert isinstance(recipe, SequenceRecipe)
    small = {"hidden_size": 8, "num_negatives": min(recipe.num_negatives, 8), "cold_items": timedelta(days=2)}
    return SequenceRecipe.model_validate(recipe.model_dump() | small | fields)


def with_features(model: Recommender) -> Recommender:
    """A model whose features count, as if it had learnt them."""
    for name, weights in model.named_parameters():
        if "features.tables" in name:
            torch.nn.init.normal_(weights, std=0.5)
    return model


def make_bundle(encoder: str, sessions_of) -> Bundle:
    """An untrained model that knows twelve items."""
    catalogue = rows_of(NAMES, ["hats", "socks", "shoes"] * 4)
    vocabulary = learn_vocabulary(sessions_of([NAMES]), 1).describe(DEFINITIONS, catalogue)
    recipe = recipe_of(encoder)
    model = build_for(recipe, vocabulary)
    return Bundle(with_features(model).eval(), vocabulary, "r", recipe, date(2026, 3, 1), AS_OF)


@pytest.fixture
def sequences() -> Sequences:
    random = np.random.default_rng(0)
    return Sequences(
        random.integers(1, 13, 9), np.array([0, 3, 4, 9]), AS_OF - np.arange(9)[::-1], pl.Series(list("abc"))
    )


COMING = rows_of(["new hat", "other hat", "new socks", "boat", "i03"], ["hats", "hats", "socks", "boats", "hats"])


@of_every_model
def test_offered_items_have_a_vector_of_their_features_and_nothing_else_changes(encoder, sessions_of, sequences):
    bundle = make_bundle(encoder, sessions_of)
    offered = offer(
        bundle, COMING.with_columns(price=pl.when(pl.col("item_id") == "boat").then(None).otherwise("price"))
    )
    vocabulary = offered.vocabulary
    assert vocabulary.items["item_id"].to_list()[12:] == ["new hat", "new socks", "other hat"], (
        "nothing is told of boats"
    )
    assert (vocabulary.num_cold, vocabulary.num_learnt) == (3, 13)
    batch = gather(sequences, np.arange(3))
    assert isinstance(bundle.recommender, SessionModel)
    states, before = bundle.recommender.states(batch), bundle.recommender.item_vectors(AS_OF)
    assert torch.equal(offered.recommender.states(batch), states)
    after = offered.recommender.item_vectors(AS_OF)
    assert torch.equal(after[:13], before)
    hat, socks, other_hat = after[13:]
    assert torch.equal(hat, other_hat)
    assert not torch.allclose(hat, socks)
    assert not torch.allclose(hat, before[1]), "a learnt item is more than its features"
    read = offered.recommender.states(gather(replace(sequences, item_codes=np.full(9, 13)), np.arange(3)))
    assert read.isfinite().all()


@of_every_model
def test_without_the_field_nothing_is_offered_and_nothing_is_different(encoder, sessions_of):
    bundle = make_bundle(encoder, sessions_of)
    plain = replace(bundle, recipe=recipe_of(encoder, cold_items=None))
    assert offer(plain, COMING) is plain
    assert not carries_users(bundle.recipe)
    one, other = build(bundle.recipe, 13, DEFINITIONS), build(plain.recipe, 13, DEFINITIONS)
    assert torch.equal(one.eval().item_vectors(AS_OF), other.eval().item_vectors(AS_OF)), "features begin at 0"


@of_every_model
def test_an_offering_model_is_saved_with_its_features(encoder, sessions_of, tmp_path):
    bundle = make_bundle(encoder, sessions_of)
    save_bundle(bundle, tmp_path / "bundle")
    one, other = (offer(each, COMING).recommender for each in (bundle, load_bundle(tmp_path / "bundle")))
    assert torch.equal(one.item_vectors(AS_OF), other.item_vectors(AS_OF))


def test_of_several_categories_an_item_has_the_mean(sessions_of):
    several = DEFINITIONS.model_copy(update={"category_separator": "/", "num_categories": 2})
    catalogue = rows_of(NAMES, ["hats/socks", "socks", "shoes"] * 4)
    vocabulary = learn_vocabulary(sessions_of([NAMES]), 1).describe(several, catalogue)
    recipe = recipe_of("gru")
    model = with_features(build_for(recipe, vocabulary)).eval()
    bundle = Bundle(model, vocabulary, "r", recipe, date(2026, 3, 1), AS_OF)
    coming = rows_of(["a", "b", "c"], ["hats", "socks/boats", "hats/socks"])
    hat, socks, both = offer(bundle, coming).recommender.item_vectors(AS_OF)[13:]
    torch.testing.assert_close(both, (hat + socks) / 2)


def test_where_the_catalogue_tells_nothing_nothing_is_offered(sessions_of):
    bundle = make_bundle("gru", sessions_of)
    assert offer(bundle, rows_of(["x"], ["boats"], None)) is bundle
    assert offer(bundle, COMING.clear()) is bundle
    untold = learn_vocabulary(sessions_of([NAMES]), 1).describe(Definitions(classes={}), COMING)
    model = build_for(bundle.recipe, untold)
    assert model.features is None


def test_a_share_of_the_items_is_blanked_in_training_only(sessions_of):
    model = make_bundle("gru", sessions_of).recommender
    codes = torch.ones(2000, dtype=torch.int64)
    alone = model.item_vectors(AS_OF, codes)
    assert torch.equal(alone, alone[:1].expand(2000, -1))
    rows = model.train().item_vectors(AS_OF, codes)
    num_blank = int((rows != alone).any(1).sum())
    assert 140 < num_blank < 260
    assert len(rows.unique(dim=0)) == 2


@pytest.mark.parametrize("encoder", ["gru", "session_retriever"])
def test_the_category_that_comes_next_brings_cold_items_of_it(encoder, sessions_of, tmp_path):
    """After a hat come socks, after socks shoes, after shoes hats; which ones is drawn."""
    random = np.random.default_rng(1)
    kinds = (random.integers(3, size=(400, 1)) + np.arange(4)) % 3
    items = [[f"i{3 * n + kind:02d}" for kind, n in zip(row, random.integers(4, size=4), strict=True)] for row in kinds]
    catalogue = rows_of(NAMES, ["hats", "socks", "shoes"] * 4)
    vocabulary = learn_vocabulary(sessions_of(items), 1).describe(DEFINITIONS, catalogue)
    recipe = recipe_of(encoder, dropout=0.0, batch_size=32, hidden_size=16, learning_rate=1e-2)
    model = build_for(recipe, vocabulary)
    sequences = encode_sessions(sessions_of(items), vocabulary)
    fit(model, sequences, recipe, 8, tmp_path)
    offered = offer(Bundle(model, vocabulary, "r", recipe, date(2026, 3, 1), AS_OF), COMING.head(3))
    assert offered.vocabulary.num_cold == 3
    hat, socks = 13, 14
    batch = gather(sequences, np.arange(100))
    scores = offered.recommender.states(batch) @ offered.recommender.item_vectors(AS_OF).T
    kind_T = torch.from_numpy(vocabulary.described()["category"])[batch.item_codes]
    assert (scores[kind_T == 1, socks] > scores[kind_T == 1, hat]).float().mean() > 0.9
    assert (scores[kind_T == 3, hat] > scores[kind_T == 3, socks]).float().mean() > 0.9


@pytest.fixture
def bundle_of(loaded_shop):
    """A small model of the shop's fourth day, trained on nothing; it knows the more frequent items only."""
    site, store, last = loaded_shop.site, loaded_shop.store, loaded_shop.days[3]
    sessions = sessions_until(site, store, loaded_shop.days[:4], last)

    def make(within: timedelta | None) -> Bundle:
        recipe = SequenceRecipe(encoder="gru", hidden_size=8, cold_items=within)
        read = properties_read(recipe)
        vocabulary = define_properties(site, store, learn_vocabulary(sessions, 12), sessions, last, read)
        model = with_features(build_for(recipe, vocabulary)).eval()
        return Bundle(model, vocabulary, "gru", recipe, last, microseconds_at_end(site, last))

    return make


def test_lists_and_answers_say_what_is_cold(bundle_of, copy_shop, monkeypatch):
    shop = copy_shop()
    site = shop.with_changes(export={"checks": {"fallback_share": 1, "coverage_kept": 0, "evenness_kept": 0}})
    shares = {}
    for within in (None, timedelta(days=3)):
        bundle = bundle_of(within)
        monkeypatch.setattr(exporting, "served_model", lambda *_, bundle=bundle: Served(bundle, 7, "run", {}))
        export(site, shop.store, shop.days[3])
        lists = shop.store.scan(RECOMMENDATIONS).collect()
        known = set(bundle.vocabulary.items["item_id"])
        is_unknown = pl.Series([item not in known for item in lists["item_id"]])
        assert ((lists["source"] == "cold") <= is_unknown).all()
        assert not ((lists["source"] == "model") & is_unknown).any()
        home = Recommendations(shop.store.root).facts["quality"]["home"]
        shares[within] = home["cold_share"]
        assert home["cold_share"] == pytest.approx((lists["source"] == "cold").mean(), abs=1e-6)
    assert shares[None] == 0
    assert 0 < shares[timedelta(days=3)] < 0.5
    offered = offer_new(site, shop.store, bundle, shop.days[3])
    loaded = assemble(site, shop.store, bundle, 7)
    assert loaded.assortment.num_cold > 0
    known = offered.vocabulary.items["item_id"][0]
    (answer,) = recommend(loaded, [Request(session=[Event(known)], top=200, explain=True)])
    cold = set(
        loaded.assortment.item_ids.gather(np.flatnonzero(loaded.assortment.is_cold(np.arange(loaded.assortment.size))))
    )
    assert {item["item_id"] for item in answer["items"] if item["source"] == "cold"} <= cold
    assert any(item["source"] == "cold" for item in answer["items"])
    assert answer["source"] == "model"


def test_the_quality_of_cold_items_is_told(bundle_of, loaded_shop):
    site, store, day = loaded_shop.site, loaded_shop.store, loaded_shop.days[4]
    bundle, held_out = bundle_of(timedelta(days=3)), read_held_out_day(loaded_shop.site, loaded_shop.store, day)
    offered = offer_new(site, store, bundle, bundle.data_through)
    found = cold_quality(bundle, offered, held_out, (5, 100))
    assert found["cold/num_items"] == offered.vocabulary.num_cold > 0
    assert 0 < found["cold/target_share"] < 0.2
    assert found["cold/next_recall_at_5"] <= found["cold/next_recall_at_100"] <= 1
    assert found["cold/known_next_mrr_at_5"] <= found["cold/known_next_mrr_at_100"]
    assert 0 <= found["cold/share_at_5"] <= 1
    assert {"cold/list_any_recall_at_5", "cold/list_any_recall_at_100"} < found.keys()
    assert cold_quality(bundle, bundle, held_out, (5,)) == {"cold/num_items": 0.0}


def test_new_is_what_logs_saw_lately_and_what_a_later_catalogue_brought(loaded_shop, tmp_path):
    store, days = Store(str(tmp_path / "store")), loaded_shop.days

    def write(day: date, **first_seen: date | None) -> None:
        rows = pl.DataFrame(
            {"item_id": list(first_seen), "first_seen": list(first_seen.values())},
            schema_overrides={"first_seen": pl.Date},
        )
        available = rows.with_columns(available=pl.col("item_id") != "gone", snapshot_date=pl.lit(day))
        store.replace(ITEMS, pl.concat([ITEMS.empty(), available], how="diagonal_relaxed"), {"snapshot_date": [day]})

    write(days[0], ancient=days[0], archived=None)
    write(days[4], ancient=days[0], archived=None, older=days[1], late=days[4], gone=days[4], listed=None)

    def found(last: date, num_days: int) -> list[str]:
        return new_items(loaded_shop.site, store, last, timedelta(days=num_days))["item_id"].to_list()

    assert found(days[4], 2) == ["late", "listed"]
    assert found(days[4], 4) == ["late", "listed", "older"]
    assert found(days[4], 9) == ["late", "older"], "nobody knows what was listed before the first catalogue"
    assert found(days[2], 2) == []


def test_cold_items_need_a_side_table_that_tells_of_them(raw_shop):
    recipes = {"gru": {"cold_items": "2d"}}
    assert raw_shop.with_changes(training={"recipes": recipes})
    with pytest.raises(ValueError, match=r"training.recipes.gru.cold_items recommends items by category"):
        raw_shop.with_changes(training={"recipes": recipes}, items={"columns": {"item_id": "item_id"}})
