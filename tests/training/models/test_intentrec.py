from dataclasses import replace
from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest
import torch

from features.intents import MICROSECONDS_A_DAY, Definitions
from features.sequences import Sequences
from features.vocabulary import learn_vocabulary
from training.batch import gather
from training.bundle import Bundle, build, load_bundle, save_bundle
from training.fit import fit
from training.grow import grow
from training.models.context import mean_of_classes
from training.models.intentrec import IntentRec
from training.models.transformer import Block, group_sessions
from training.recipes import SequenceRecipe

AS_OF = 1_772_323_200_000_000
NUM_CODES = 13
VARIANTS = ("next_item", "multitask", "hierarchical", "short_term")
DEFINITIONS = Definitions(
    classes={
        "category": ("hats", "socks", "shoes"),
        "price_band": ("low", "high"),
        "item_age": ("new", "older", "old"),
        "new_or_repeat": ("new", "repeat"),
        "event_type": ("view", "cart"),
    },
    columns=("event_type",),
    age_edges=(1.0, 7.0),
    price_edges=(5.0,),
    intents=("event_type", "category", "item_age", "new_or_repeat"),
    time_zone="Europe/Berlin",
)
DESCRIBED = {
    "category": np.array([0, *[1, 2, 3] * 4]),
    "price_band": np.array([0, *[1, 2] * 6]),
    "first_seen": np.array([0, *AS_OF - np.arange(12) * MICROSECONDS_A_DAY]),
}


def recipe_of(variant: str = "short_term", **fields: object) -> SequenceRecipe:
    return SequenceRecipe(encoder="intentrec", variant=variant, hidden_size=16, learning_rate=5e-3, **fields)


def make_model(variant: str = "short_term", **fields: object) -> IntentRec:
    model = build(recipe_of(variant, **fields), NUM_CODES, DEFINITIONS)
    assert isinstance(model, IntentRec)
    model.describe_items(DESCRIBED)
    return model.eval()


def make_sequences(lengths: list[int], seed: int = 0) -> Sequences:
    random, num_events = np.random.default_rng(seed), sum(lengths)
    times = AS_OF + np.cumsum(random.integers(1, 400, num_events)) * 1_000_000
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    visitors = pl.Series([f"v{n}" for n in range(len(lengths))])
    columns = {"event_type": random.integers(0, 3, num_events)}
    return Sequences(random.integers(1, NUM_CODES, num_events), offsets, times, visitors, event_columns=columns)


@pytest.fixture
def sequences():
    return make_sequences([6, 1, 3, 40, 9])


def test_a_property_is_that_of_its_own_event(sequences):
    model = make_model()
    sequences = replace(sequences, item_codes=np.array([1, 2, 1, 12, 3, 2, *sequences.item_codes[6:]]))
    found = model.told.properties(gather(sequences, np.array([0])))
    assert found["category"].tolist() == [1, 2, 1, 3, 3, 2]
    assert found["new_or_repeat"].tolist() == [1, 1, 2, 1, 1, 2]
    assert found["item_age"].tolist() == [1, 2, 1, 3, 2, 2]
    assert found["event_type"].tolist() == sequences.event_columns["event_type"][:6].tolist()


def test_labels_are_of_the_next_event_and_missing_ones_have_no_loss(sequences):
    model, batch = make_model(intent_weight=1.0), gather(sequences, np.array([0, 2, 4]))
    logits, expected = model.read(batch).logits["event_type"], []
    for place in batch.target_mask.nonzero()[:, 0].tolist():
        label = int(batch.event_columns["event_type"][place + 1])
        expected += [-float(logits[place].detach().log_softmax(0)[label - 1])] if label else []
    assert 0 < len(expected) < int(batch.target_mask.sum())
    terms = model.extra_terms(batch)
    assert terms["train_intent_event_type"].item() == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    untold = replace(batch, event_columns={})
    assert model.extra_terms(untold)["train_intent_event_type"].item() == 0


SEVERAL = DEFINITIONS.model_copy(update={"category_separator": "|", "num_categories": 2})
SECOND = np.array([0, 0, 3, 0, *[0] * 9])


def several(variant: str = "short_term") -> IntentRec:
    model = build(recipe_of(variant), NUM_CODES, SEVERAL)
    assert isinstance(model, IntentRec)
    model.describe_items(DESCRIBED | {"category_2": SECOND})
    return model.eval()


def test_each_of_several_categories_is_read_and_is_a_label():
    model, one = several(), make_model()
    one.load_state_dict({k: v for k, v in model.state_dict().items() if not k.endswith("category_2")})
    sequences = make_sequences([2, 2, 2])
    sequences.item_codes[:] = [5, 2, 2, 7, 4, 0]
    batch = gather(sequences.take(np.array([0, 1])), np.arange(2))
    assert model.told.labels("category", batch).tolist() == [[2, 0], [2, 3], [2, 3], [1, 0]]
    assert model.told.labels("event_type", batch).shape == (4, 1)
    rows = model.told.told["category"].weight
    both = mean_of_classes(rows, torch.tensor([[2, 3], [2, 0], [0, 0], [0, 1]]))
    torch.testing.assert_close(both, torch.stack([(rows[2] + rows[3]) / 2, rows[2], rows[0], rows[1]]))
    logits = model.read(batch).logits["category"].log_softmax(1)
    expected = -((logits[0, 1] + logits[0, 2]) / 2 + logits[2, 0]) / 2
    torch.testing.assert_close(model.extra_terms(batch)["train_intent_category"], model.intent_weight * expected)
    ours, theirs = model.item_vectors(0), one.item_vectors(0)
    is_same = (ours == theirs).all(1)
    assert is_same.tolist() == [code != 2 for code in range(NUM_CODES)]
    torch.testing.assert_close(model.item_vectors(0, torch.tensor([2, 9])), ours[[2, 9]])
    heads = model.class_rows("category")
    moved = ours[2] - theirs[2]
    gain = model.gains["category"]
    torch.testing.assert_close(moved[16:32], gain * ((heads[2] + heads[3]) / 2 - heads[2])[:-1])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_later_event_changes_no_state_and_no_intent_before_it(variant, sequences):
    model = make_model(variant)
    place = 3
    changed = replace(
        sequences,
        item_codes=np.where(np.arange(59) == place, 5, sequences.item_codes),
        occurred_at=sequences.occurred_at + (np.arange(59) == place) * 500_000,
        event_columns={"event_type": np.where(np.arange(59) == place, 0, sequences.event_columns["event_type"])},
    )
    batches = [gather(each, np.arange(5)) for each in (sequences, changed)]
    before, after = (model.states(batch) for batch in batches)
    torch.testing.assert_close(before[:place], after[:place])
    torch.testing.assert_close(before[6:], after[6:])
    assert not torch.allclose(before[place], after[place])
    for one, other in zip(*(model.intents(batch).values() for batch in batches), strict=True):
        torch.testing.assert_close(one[:place], other[:place])


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_stands_beside_a_session_does_not_matter(variant, sequences):
    model = make_model(variant)
    together = model.states(gather(sequences, np.arange(5)))
    alone = torch.cat([model.states(gather(sequences, np.array([n]))) for n in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=2e-6)


def test_a_user_is_read_as_one_long_session(sequences):
    model = make_model()
    grouped = replace(sequences, user_offsets=np.array([0, 3, 5]))
    states = model.states(gather(grouped, np.array([0, 1])))
    alone = model.states(gather(grouped, np.array([1])))
    torch.testing.assert_close(states[10:], alone, rtol=1e-5, atol=2e-6)
    assert not torch.allclose(states[6:10], model.states(gather(sequences, np.arange(5)))[6:10])


def test_the_variants_have_what_the_paper_gives_them(sequences):
    batch = gather(sequences, np.arange(5))
    readings = {variant: make_model(variant).read(batch) for variant in VARIANTS}
    assert readings["next_item"].logits == {}
    assert make_model("next_item").extra_terms(batch) == {}
    for variant in VARIANTS[1:]:
        assert {name: each.shape[1] for name, each in readings[variant].logits.items()} == {
            "event_type": 2,
            "category": 3,
            "item_age": 3,
            "new_or_repeat": 2,
        }
    assert readings["multitask"].weights_TM is None
    torch.testing.assert_close(readings["hierarchical"].weights_TM.sum(1), torch.ones(59))
    sizes = [sum(w.numel() for w in make_model(variant).parameters()) for variant in VARIANTS]
    assert sizes == sorted(sizes)


def test_the_intents_reach_the_item_in_the_hierarchical_variants_only(sequences):
    batch = gather(sequences, np.arange(5))
    for variant in VARIANTS[1:]:
        model = make_model(variant)
        before = model.states(batch)
        with torch.no_grad():
            model.heads["category"].bias += torch.tensor([5.0, 0.0, -5.0])
        assert torch.equal(before, model.states(batch)) == (variant == "multitask")


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_item_is_raised_by_how_likely_its_category_is(variant, sequences):
    batch, model = gather(sequences, np.arange(5)), make_model(variant)
    model.told.category[4] = 0  # an item without a category
    classes = model.told.category[1:]

    def scores() -> torch.Tensor:
        return model.states(batch) @ model.item_vectors(0)[1:].T

    with_gain = scores()
    if variant in VARIANTS[:2]:
        assert not model.gains
        assert with_gain.shape == (59, len(classes))
        return
    with torch.no_grad():
        gain = float(model.gains["category"])
        model.gains["category"].zero_()
    raised = with_gain - scores()
    log_p = model.read(batch).logits["category"].log_softmax(1)
    log_p = torch.cat([log_p.mean(1, keepdim=True), log_p], dim=1)[:, classes]
    constant = (raised - gain * log_p).std(1)
    torch.testing.assert_close(constant, torch.zeros(59), atol=1e-5, rtol=0)
    assert raised.std(1).min() > 1e-3
    codes = torch.tensor([3, 1])
    torch.testing.assert_close(model.item_vectors(0, codes), model.item_vectors(0)[codes])


def test_the_short_term_encoder_looks_no_further_back_than_its_window(sequences):
    offsets, at = torch.from_numpy(sequences.offsets), torch.from_numpy(sequences.occurred_at)
    window = 300_000_000
    block, inputs = Block(8, 2, 0.0).eval(), torch.randn(59, 8)
    heard = block(inputs, group_sessions(offsets, at, window))
    session = sequences.session_of_event()
    for place in (5, 9, 30, 49, 58):
        seen = (session == session[place]) & (np.arange(59) <= place)
        seen &= sequences.occurred_at[place] - sequences.occurred_at <= window
        alone = block(inputs[torch.from_numpy(seen)], group_sessions(torch.tensor([0, int(seen.sum())])))
        torch.testing.assert_close(heard[place], alone[-1], rtol=1e-5, atol=1e-6)


def test_clocks_that_go_backwards_and_items_from_the_future_give_finite_states(sequences):
    backwards = replace(sequences, occurred_at=sequences.occurred_at[::-1].copy() - 40 * MICROSECONDS_A_DAY)
    states = make_model().states(gather(backwards, np.arange(5)))
    assert states.isfinite().all()


def test_a_list_of_item_ids_alone_is_enough(sequences):
    bare = replace(sequences, event_columns={}, occurred_at=np.full(59, AS_OF))
    states = make_model().states(gather(bare, np.arange(5)))
    assert states.isfinite().all()


def test_a_saved_bundle_keeps_definitions_and_what_is_known_of_items(sequences, sessions_of, tmp_path):
    sessions = sessions_of([[f"i{n:02d}" for n in range(NUM_CODES - 1)]])
    catalogue = pl.DataFrame({"item_id": [f"i{n:02d}" for n in range(NUM_CODES - 1)]}).with_columns(
        category=pl.Series(["hats", "socks", "boats"] * 4), price=pl.lit(7.0), first_seen=pl.lit(date(2026, 2, 1))
    )
    vocabulary = learn_vocabulary(sessions, 1).describe(DEFINITIONS, catalogue)
    model = build(recipe_of(), NUM_CODES, DEFINITIONS)
    model.describe_items(vocabulary.described())
    save_bundle(Bundle(model.eval(), vocabulary, "r", recipe_of(), date(2026, 3, 1), AS_OF), tmp_path / "bundle")
    loaded = load_bundle(tmp_path / "bundle")
    assert loaded.vocabulary.definitions == DEFINITIONS
    assert loaded.recommender.told.category.tolist() == [0, *[1, 2, 0] * 4], "boats are no class of these definitions"
    batch = gather(sequences, np.arange(5))
    assert torch.equal(loaded.recommender.states(batch), model.states(batch))


def test_growing_describes_new_items_and_keeps_known_ones(sessions_of):
    names = [f"i{n:02d}" for n in range(NUM_CODES)]
    catalogue = pl.DataFrame({"item_id": names}).with_columns(
        category=pl.lit("socks"), price=pl.lit(7.0), first_seen=pl.lit(date(2026, 2, 1))
    )
    old = learn_vocabulary(sessions_of([names[:-1]]), 1).describe(DEFINITIONS, catalogue)
    new = learn_vocabulary(sessions_of([names]), 1).describe(DEFINITIONS, catalogue)
    model = make_model()
    grown = grow(Bundle(model, old, "r", recipe_of(), date(2026, 3, 1), AS_OF), new, recipe_of())
    assert torch.equal(grown.items.weight[:NUM_CODES], model.items.weight)
    assert grown.told.category.tolist() == [0, *[2] * NUM_CODES]


def test_intents_that_can_be_known_are_learnt(tmp_path):
    """After a cart comes a hat, and after anything else none: category of the next event, from the type of this one."""
    random = np.random.default_rng(1)
    lengths = random.integers(3, 8, 150)
    types = random.integers(1, 3, lengths.sum())
    is_after_cart = np.roll(types, 1) == 2
    hats, others = 1 + 3 * random.integers(0, 4, len(types)), np.array([2, 3, 5, 6])[random.integers(0, 4, len(types))]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    sequences = Sequences(
        np.where(is_after_cart, hats, others),
        offsets,
        AS_OF + np.arange(len(types)) * 1_000_000,
        pl.Series([str(n) for n in range(150)]),
        event_columns={"event_type": types},
    )
    model = make_model(dropout=0.0)
    losses = fit(model, sequences, recipe_of(dropout=0.0, batch_size=32, intent_weight=1.0), 6, tmp_path)
    assert {f"train_intent_{name}" for name in DEFINITIONS.intents} < losses.keys()
    batch = gather(sequences, np.arange(150))
    is_hat = model.intents(batch)["category"].argmax(1)[batch.target_mask] == 0
    assert (is_hat == (batch.event_columns["event_type"][batch.target_mask] == 2)).float().mean() > 0.95


@pytest.mark.parametrize("sequence", ["session", "user"])
def test_durations_weigh_in_every_loss(sequence, tmp_path):
    sequences = make_sequences([5] * 6, seed=3)
    sequences = sequences if sequence == "session" else replace(sequences, user_offsets=np.array([0, 2, 6]))
    fields = {"sequence": sequence, "prior_half_life": "1h", "dropout": 0.0}
    losses = []
    for cap in (None, "1m"):
        recipe = recipe_of(**fields, **({"duration_cap": cap} if cap else {}))
        model = build(recipe, NUM_CODES, DEFINITIONS)
        model.describe_items(DESCRIBED)
        losses.append(fit(model, sequences, recipe, 1, tmp_path / str(cap)))
    assert losses[0].keys() == losses[1].keys()
    assert all(losses[0][name] != pytest.approx(losses[1][name], rel=1e-6) for name in losses[0])


@pytest.mark.parametrize("left", ["few labels", "no labels", "no intents"])
def test_it_is_trained_whatever_is_left_of_the_labels(left, tmp_path):
    sequences = make_sequences([5] * 12, seed=3)
    recipe = recipe_of(batch_size=3, intent_weight=1.0)
    intents = () if left == "no intents" else ("category",)
    model = build(recipe, NUM_CODES, DEFINITIONS.model_copy(update={"intents": intents}))
    labels = np.zeros(NUM_CODES, dtype=np.int64)
    labels[1:2] = left == "few labels"
    model.describe_items(DESCRIBED | {"category": labels})
    losses = fit(model, sequences, recipe, 2, tmp_path)
    assert set(losses) == {"train_loss", *(["train_intent_category"] if intents else [])}
    assert all(np.isfinite(list(losses.values())))
    if intents:
        assert (losses["train_intent_category"] > 0) == (left == "few labels")


def test_the_window_of_the_recipe_is_the_model_s():
    assert make_model(short_term_window=timedelta(minutes=3)).window == 180_000_000
