"""What models read of events beside items: any model that items alone do for, with and without context."""

import math
from dataclasses import replace
from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest
import torch

from features.intents import MICROSECONDS_A_DAY, Definitions
from features.sequences import Sequences
from features.vocabulary import learn_vocabulary
from training.batch import Batch, gather
from training.bundle import Bundle, build, load_bundle, save_bundle
from training.fit import fit
from training.grow import grow
from training.models import MODELS
from training.models.context import Context, is_repeat
from training.models.item_table import ItemTable
from training.recipes import OF_PROPERTIES, RECIPES, SequenceRecipe
from training.units import carries_users

AS_OF = 1_772_323_200_000_000
NUM_CODES = 13
NAMES = ("event_type", "device", "hour", "weekday", "gap", "category", "price_band", "item_age", "new_or_repeat")
DEFINITIONS = Definitions(
    classes={
        "category": ("hats", "socks", "shoes"),
        "price_band": ("low", "high"),
        "item_age": ("new", "older", "old"),
        "new_or_repeat": ("new", "repeat"),
        "event_type": ("view", "cart"),
        "device": ("phone", "desk"),
    },
    columns=("event_type", "device"),
    age_edges=(1.0, 7.0),
    price_edges=(5.0,),
    intents=(),
    time_zone="Europe/Berlin",
)
DESCRIBED = {
    "category": np.array([0, *[1, 2, 3] * 4]),
    "price_band": np.array([0, *[1, 2] * 6]),
    "first_seen": np.array([0, 0, *AS_OF - np.arange(1, 12) * MICROSECONDS_A_DAY]),
}
ENCODERS = [name for name in MODELS if name not in OF_PROPERTIES]
of_every_encoder = pytest.mark.parametrize("encoder", ENCODERS)


def recipe_of(encoder: str = "gru", **fields: object) -> SequenceRecipe:
    recipe = RECIPES[encoder]()
    assert isinstance(recipe, SequenceRecipe)
    small = {"hidden_size": 8, "num_negatives": min(recipe.num_negatives, 8), "context": NAMES}
    small |= {"order": "chronological"} if recipe.order == "session_parallel" else {}
    return SequenceRecipe.model_validate(recipe.model_dump() | small | fields)


def make_model(encoder: str = "gru", **fields: object) -> ItemTable:
    """A model whose context counts from the start."""
    model = build(recipe_of(encoder, **fields), NUM_CODES, DEFINITIONS)
    assert isinstance(model, ItemTable)
    assert model.of_context is not None
    torch.nn.init.normal_(model.of_context.weight, std=0.5)
    model.describe_items(DESCRIBED)
    return model.eval()


def make_sequences(lengths: list[int], seed: int = 0) -> Sequences:
    random, num_events = np.random.default_rng(seed), sum(lengths)
    times = AS_OF + np.cumsum(random.integers(1, 4000, num_events)) * 1_000_000
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    visitors = pl.Series([f"v{n}" for n in range(len(lengths))])
    columns = {name: random.integers(0, 3, num_events) for name in ("event_type", "device")}
    return Sequences(random.integers(1, NUM_CODES, num_events), offsets, times, visitors, event_columns=columns)


@pytest.fixture
def sequences() -> Sequences:
    return make_sequences([6, 1, 3, 20, 9])


def everything(sequences: Sequences) -> Batch:
    return gather(sequences, np.arange(sequences.num_units))


@of_every_encoder
def test_a_model_begins_as_it_would_without_context(encoder, sequences):
    plain = build(recipe_of(encoder, context=()), NUM_CODES)
    model = build(recipe_of(encoder), NUM_CODES, DEFINITIONS)
    assert plain.state_dict().keys() < model.state_dict().keys()
    batch = everything(sequences)
    assert torch.equal(model.eval().states(batch), plain.eval().states(batch))
    assert torch.equal(model.item_vectors(AS_OF), plain.item_vectors(AS_OF))


@of_every_encoder
def test_context_reaches_its_own_state_and_later_ones_only(encoder, sequences):
    model, place = make_model(encoder), 3
    types = sequences.event_columns["event_type"].copy()
    types[place] = (types[place] + 1) % 3
    changed = replace(sequences, event_columns=sequences.event_columns | {"event_type": types})
    before, after = (model.states(everything(each)) for each in (sequences, changed))
    torch.testing.assert_close(before[:place], after[:place])
    torch.testing.assert_close(before[6:], after[6:])
    assert not torch.allclose(before[place], after[place])


@of_every_encoder
def test_a_saved_bundle_reads_the_same_context(encoder, sequences, sessions_of, tmp_path):
    names = [f"i{n:02d}" for n in range(NUM_CODES - 1)]
    catalogue = pl.DataFrame({"item_id": names}).with_columns(
        category=pl.Series(["hats", "socks", "boats"] * 4), price=pl.lit(7.0), first_seen=pl.lit(date(2026, 2, 1))
    )
    vocabulary = learn_vocabulary(sessions_of([names]), 1).describe(DEFINITIONS, catalogue)
    model, recipe = make_model(encoder), recipe_of(encoder)
    model.describe_items(vocabulary.described())
    bundle = Bundle(model, vocabulary, "r", recipe, date(2026, 3, 1), AS_OF)
    save_bundle(bundle, tmp_path / "bundle")
    loaded = load_bundle(tmp_path / "bundle")
    assert loaded.recipe == recipe
    assert loaded.recommender.context.category.tolist() == [0, *[1, 2, 0] * 4], "boats are no class"
    batch = everything(sequences)
    assert torch.equal(loaded.recommender.states(batch), model.states(batch))
    larger = learn_vocabulary(sessions_of([[*names, "new"]]), 1).describe(
        DEFINITIONS, pl.concat([catalogue, catalogue.head(1).with_columns(item_id=pl.lit("new"))])
    )
    grown = grow(bundle, larger, recipe).eval()
    assert grown.context.category.tolist()[-1] == 1
    assert torch.equal(grown.states(batch), model.states(batch))


@of_every_encoder
def test_a_model_that_reads_context_keeps_no_state(encoder):
    """It would go on without what is told of the next event."""
    model = make_model(encoder)
    with pytest.raises(NotImplementedError):
        model.new_carry(1)
    with pytest.raises(NotImplementedError):
        model.advance(torch.tensor([1]))
    assert not carries_users(recipe_of(encoder))


def by_hand(context: Context, sequences: Sequences) -> list[list[float]]:
    """What is told of each event, one number after the other."""
    rows = []
    for start, stop in zip(sequences.offsets[:-1], sequences.offsets[1:], strict=True):
        for place in range(start, stop):
            item, at = int(sequences.item_codes[place]), int(sequences.occurred_at[place])
            days = (at - int(DESCRIBED["first_seen"][item])) / MICROSECONDS_A_DAY
            is_known = DESCRIBED["first_seen"][item] > 0
            codes = {
                "category": DESCRIBED["category"][item],
                "price_band": DESCRIBED["price_band"][item],
                "item_age": 1 + (days >= 1) + (days >= 7) if is_known else 0,
                "new_or_repeat": 2 if item in sequences.item_codes[start:place] else 1,
                "event_type": sequences.event_columns["event_type"][place],
                "device": sequences.event_columns["device"][place],
            }
            row = [number for name in codes for number in context.told[name].weight[int(codes[name])].tolist()]
            local = datetime.fromtimestamp(at / 1e6, UTC).astimezone(ZoneInfo("Europe/Berlin"))
            row += context.hours.weight[local.hour].tolist() + context.weekdays.weight[local.weekday()].tolist()
            gap = 0 if place == start else (at - int(sequences.occurred_at[place - 1])) / 1e6
            row += [math.log1p(gap) / 10]
            row += [math.log1p(max(days, 0) * 24) / 10 * is_known, float(is_known)]
            rows.append(row)
    return rows


def test_what_is_told_of_an_event_is_that_of_a_plain_loop(sequences):
    model = make_model()
    told_TF = model.context(everything(sequences))
    assert told_TF.shape[1] == model.context.width
    torch.testing.assert_close(told_TF, torch.tensor(by_hand(model.context, sequences)).float(), rtol=1e-4, atol=1e-5)


def test_only_what_the_recipe_names_is_read(sequences):
    model = make_model(context=("gap", "device"))
    assert list(model.context.told) == ["device"]
    assert (model.context.hours, model.context.weekdays, model.context.has_age) == (None, None, False)
    before = model.states(everything(sequences))
    other = {"event_type": (sequences.event_columns["event_type"] + 1) % 3}
    changed = replace(sequences, event_columns=sequences.event_columns | other)
    assert torch.equal(model.states(everything(changed)), before)
    later = replace(sequences, occurred_at=sequences.occurred_at + 7 * 3_600_000_000)
    assert torch.equal(model.states(everything(later)), before)


def test_of_users_the_gap_reaches_over_sessions():
    told = Sequences(np.array([1, 2, 3]), np.array([0, 1, 3]), np.array([0, 60, 65]) * 10**6, pl.Series(["u"] * 2))
    model = make_model("sasrec", sequence="user", context=("gap",))
    gaps = (model.context(everything(told.by_user()))[:, -1] * 10).expm1()
    torch.testing.assert_close(gaps, torch.tensor([0.0, 60.0, 5.0]), rtol=1e-4, atol=1e-4)


@of_every_encoder
def test_what_is_missing_counts_as_missing_and_clocks_may_go_backwards(encoder, sequences):
    model = make_model(encoder)
    missing = {name: np.zeros_like(column) for name, column in sequences.event_columns.items()}
    untold = model.states(everything(replace(sequences, event_columns={})))
    assert torch.equal(model.states(everything(replace(sequences, event_columns=missing))), untold)
    backwards = replace(sequences, occurred_at=sequences.occurred_at[::-1].copy() - 40 * MICROSECONDS_A_DAY)
    assert model.states(everything(backwards)).isfinite().all()


def test_what_the_log_tells_is_blanked_in_some_sessions_of_a_training():
    model, batch = make_model(context=("device", "category")), everything(make_sequences([2] * 400))
    batch = replace(batch, event_columns={"device": torch.ones(800, dtype=torch.int64)})
    blank = model.context.told["device"].weight[0]
    is_blank_T = (model.train().context(batch)[:, 16:32] == blank).all(1)
    assert 15 < int(is_blank_T[::2].sum()) < 75
    assert torch.equal(is_blank_T[::2], is_blank_T[1::2]), "a session as a whole"
    assert not (model.eval().context(batch)[:, 16:32] == blank).all(1).any()


def test_a_repeat_is_one_of_its_own_session():
    told = Sequences(np.array([1, 2, 1, 1, 2]), np.array([0, 3, 5]), np.arange(5), pl.Series(["a", "b"]))
    assert is_repeat(everything(told)).tolist() == [False, False, True, False, False]


def test_where_the_window_told_nothing_the_model_reads_items_only(sequences):
    nothing = Definitions(classes={})
    model = build(recipe_of(context=("category", "event_type")), NUM_CODES, nothing)
    assert model.context is None
    assert model.eval().states(everything(sequences)).isfinite().all()


@pytest.mark.parametrize("encoder", ["gru", "sasrec"])
def test_what_only_the_context_tells_is_learnt(encoder, tmp_path):
    """The next item is the one of the event's type; items themselves are drawn."""
    random = np.random.default_rng(1)
    types = random.integers(1, 3, (300, 4))
    first = random.integers(1, NUM_CODES, (300, 1))
    codes = np.concatenate([first, np.where(types[:, :-1] == 1, 5, 9)], axis=1).ravel()
    offsets, times = np.arange(0, 1201, 4), AS_OF + np.arange(1200) * 1_000_000
    visitors = pl.Series([str(n) for n in range(300)])
    sequences = Sequences(codes, offsets, times, visitors, event_columns={"event_type": types.ravel()})
    recipe = recipe_of(encoder, context=("event_type",), dropout=0.0, batch_size=32, learning_rate=1e-2)
    model = build(recipe, NUM_CODES, DEFINITIONS)
    fit(model, sequences, recipe, 8, tmp_path)
    batch = everything(sequences)
    best = model.recommend_targets(batch, 1, AS_OF).codes_RN[:, 0]
    assert (best == batch.targets()).float().mean() > 0.95, "without the type it is one in two"
