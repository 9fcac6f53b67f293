import numpy as np
import polars as pl
import pytest

from features.sequences import Sequences
from training import batch as batches
from training.batch import all_batches, gather, plan_batches

SEQUENCES = Sequences(
    np.array([1, 2, 3, 4, 5, 6, 7]),
    np.array([0, 3, 4, 4, 7]),
    np.arange(7) * 10,
    pl.Series(["a", "b", "c", "d"]),
)


def test_a_batch_holds_the_chosen_sessions_in_the_chosen_order():
    batch = gather(SEQUENCES, np.array([3, 0]))
    assert batch.item_codes.tolist() == [5, 6, 7, 1, 2, 3]
    assert batch.offsets.tolist() == [0, 3, 6]
    assert batch.occurred_at.tolist() == [40, 50, 60, 0, 10, 20]
    assert batch.as_of == 0


def test_targets_never_cross_a_sessions_border():
    batch = gather(SEQUENCES, np.array([0, 1, 2, 3]))
    assert batch.target_mask.tolist() == [True, True, False, False, True, True, False]
    assert batch.targets().tolist() == [2, 3, 6, 7]
    assert batch.lengths.tolist() == [3, 1, 0, 3]


def test_empty_sessions_at_either_end_take_no_targets():
    ends = Sequences(np.array([8, 9]), np.array([0, 0, 2, 2]), np.arange(2), pl.Series(["a", "b", "c"]))
    batch = gather(ends, np.arange(3))
    assert batch.target_mask.tolist() == [True, False]
    assert batch.targets().tolist() == [9]


def test_moving_a_batch_keeps_all_of_it():
    batch = gather(SEQUENCES, np.array([0]))
    moved = batch.to("cpu")
    assert moved.item_codes.tolist() == batch.item_codes.tolist()
    assert moved.target_mask.tolist() == batch.target_mask.tolist()
    assert moved.user_offsets is None


@pytest.mark.parametrize("order", ["chronological", "shuffled"])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("num_sessions", [3, 8, 9, 10, 13, 25])
def test_every_session_comes_once_and_every_rank_has_equal_steps(order, world_size, batch_size, num_sessions):
    plans = [
        plan_batches(
            np.ones(num_sessions, dtype=np.int64), batch_size, order, seed=1, epoch=2, rank=rank, world_size=world_size
        )
        for rank in range(world_size)
    ]
    assert len({len(plan) for plan in plans}) == 1
    batches = [part for plan in plans for part in plan]
    assert sorted(np.concatenate(batches).tolist()) == list(range(num_sessions))
    assert all(1 <= len(part) <= batch_size + 1 for part in batches)


def test_one_rank_fills_every_batch_but_the_last():
    sizes = [len(part) for part in plan_batches(np.full(10, 2), 4, "chronological", seed=1, epoch=0)]
    assert sizes == [4, 4, 2]


def test_a_plan_is_a_function_of_seed_and_epoch():
    def plan(seed: int, epoch: int) -> list[list[int]]:
        return [part.tolist() for part in plan_batches(np.full(20, 2), 6, "shuffled", seed=seed, epoch=epoch)]

    assert plan(1, 0) == plan(1, 0)
    assert plan(1, 0) != plan(1, 1)
    assert plan(1, 0) != plan(2, 0)


def test_chronological_order_is_the_order_of_sessions():
    parts = plan_batches(np.full(7, 2), 3, "chronological", seed=9, epoch=9)
    assert [part.tolist() for part in parts] == [[0, 1, 2], [3, 4, 5], [6]]


def test_no_sessions_make_no_batches_and_too_few_for_the_devices_are_refused():
    assert plan_batches(np.full(0, 2), 4, "shuffled", seed=1, epoch=0) == []
    assert list(all_batches(SEQUENCES.at_least(9), 4)) == []
    with pytest.raises(ValueError, match="2 sessions or users cannot keep 3 devices busy"):
        plan_batches(np.full(2, 2), 4, "shuffled", seed=1, epoch=0, rank=0, world_size=3)


@pytest.mark.parametrize("order", ["chronological", "shuffled"])
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_budget_of_events_bounds_batches_and_a_long_session_goes_alone(order, world_size):
    lengths = np.random.default_rng(3).geometric(0.3, 200)
    lengths[[7, 150]] = 400
    plans = [
        plan_batches(lengths, 16, order, seed=1, epoch=0, rank=rank, world_size=world_size, batch_events=40)
        for rank in range(world_size)
    ]
    batches = [part for plan in plans for part in plan]
    assert sorted(np.concatenate(batches).tolist()) == list(range(200))
    assert len({len(plan) for plan in plans}) == 1
    assert all(1 <= len(part) <= 16 for part in batches)
    if world_size == 1:
        assert all(lengths[part].sum() <= 40 or len(part) == 1 for part in batches)
        assert len(batches) < 2 * lengths.clip(max=40).sum() / 40, "batches are not filled"
    if order == "chronological" and world_size == 1:
        assert np.concatenate(batches).tolist() == list(range(200))


def test_shuffled_sessions_under_a_budget_go_with_others_as_long():
    lengths = np.random.default_rng(3).geometric(0.2, 500)

    def plan(epoch: int) -> list[list[int]]:
        parts = plan_batches(lengths, 99, "shuffled", seed=1, epoch=epoch, batch_events=60)
        return [part.tolist() for part in parts]

    assert max(np.ptp(lengths[part]) for part in plan(0) if lengths[part].max() < 12) <= 1
    assert plan(0) == plan(0)
    assert plan(0) != plan(1)
    means = [lengths[part].mean() for part in plan(0)]
    assert means != sorted(means), "short sessions always come first"


USERS = Sequences(
    np.arange(1, 10),
    np.array([0, 2, 5, 6, 7, 9]),
    np.array([0, 10, 20, 30, 40, 50, 60, 5, 15]),
    pl.Series(["a", "a", "b", "c", "c"]),
    user_offsets=np.array([0, 2, 3, 5]),
    is_history=np.array([True, False, False, True, False]),
)


def test_a_batch_of_users_holds_all_their_sessions_and_no_target_in_history():
    batch = gather(USERS, np.array([2, 0]))
    assert batch.item_codes.tolist() == [7, 8, 9, 1, 2, 3, 4, 5]
    assert batch.offsets.tolist() == [0, 1, 3, 5, 8]
    assert batch.user_offsets.tolist() == [0, 2, 4]
    assert batch.targets().tolist() == [9, 4, 5]
    assert batch.item_codes[batch.last_events].tolist() == [9, 5]
    assert batch.to("cpu").user_offsets.tolist() == [0, 2, 4]


def test_batches_of_users_are_planned_by_all_their_events(monkeypatch):
    assert USERS.unit_lengths.tolist() == [5, 1, 3]
    assert [units.tolist() for units, _ in all_batches(USERS, 2)] == [[0, 1], [2]]
    monkeypatch.setattr(batches, "USER_EVENTS_AT_ONCE", 5)
    assert [units.tolist() for units, _ in all_batches(USERS, 3)] == [[0], [1, 2]]


def test_targets_in_time_are_all_targets_each_part_from_its_first_on():
    batch = gather(USERS, np.arange(3))
    parts = batch.targets_in_time(2)
    assert [(batch.targets()[rows].tolist(), as_of) for rows, as_of in parts] == [([9, 4], 5), ([5], 30)]
    assert [rows.tolist() for rows, _ in batch.targets_in_time(9)] == [[2], [0], [1]]
