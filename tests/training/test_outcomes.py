import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from pipeline.errors import ConfigurationError
from pipeline.ids import stable_id
from pipeline.publish import Store
from training.outcomes import NUM_RESAMPLES, Outcomes, known_key, load_outcomes, merge, outcome_key

KEY = b"k" * 32

METRIC = "all/next_recall_at_20"


def list_outcomes(recalls: dict[str, float]) -> Outcomes:
    rows = pl.DataFrame(
        {"visitor": list(recalls), "num_targets": 1, "num_cold": 0, "any_recall_at_20": list(recalls.values())}
    )
    return Outcomes(rows.with_columns(protocol=pl.lit("list")), ("any_recall_at_20",))


def test_intervals_hold_the_mean_and_shrink_with_data(random_outcomes):
    widths = []
    for num_visitors in (50, 5000):
        outcomes = random_outcomes(num_visitors, seed=1)
        low, high = outcomes.intervals()[METRIC]
        assert low < outcomes.means()[METRIC] < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 5


def test_intervals_do_not_depend_on_the_order_of_visitors(random_outcomes):
    outcomes = random_outcomes(200, seed=2)
    assert Outcomes(outcomes.rows.reverse(), outcomes.metrics).intervals() == outcomes.intervals()


def test_intervals_are_those_of_a_plain_poisson_bootstrap(random_outcomes):
    outcomes = random_outcomes(300, seed=6)
    random = np.random.default_rng(9)
    sums, counts = outcomes.rows["next_recall_at_20"].to_numpy(), outcomes.rows["num_targets"].to_numpy()
    drawn = []
    for _ in range(NUM_RESAMPLES):
        visitors = np.repeat(np.arange(300), random.poisson(1, 300))
        drawn.append(sums[visitors].sum() / counts[visitors].sum())
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert outcomes.intervals()[METRIC] == pytest.approx((low, high), abs=0.004)


def test_merged_protocols_keep_their_own_metrics(random_outcomes):
    merged = merge([random_outcomes(10, seed=1), list_outcomes({"v0": 0.5, "w": 1.0})])
    means = merged.means()
    assert means["list/any_recall_at_20"] == 0.75
    assert means["list/num_targets"] == 2
    assert not {"list/next_recall_at_20", "all/any_recall_at_20"} & (set(means) | set(merged.intervals()))
    assert merged.of_visitors(pl.Series(["v0"])).means()["list/any_recall_at_20"] == 0.5


def test_numbers_are_means_and_bounds_and_figures_of_the_whole(random_outcomes):
    outcomes = random_outcomes(50, seed=3)
    whole = Outcomes(outcomes.rows, outcomes.metrics, {"all/coverage_at_20": 0.25})
    numbers = whole.numbers()
    low, high = outcomes.intervals()[METRIC]
    assert numbers == {
        METRIC: outcomes.means()[METRIC],
        f"{METRIC}_low": low,
        f"{METRIC}_high": high,
        "all/num_targets": outcomes.rows["num_targets"].sum(),
        "all/cold_share": 0,
        "all/coverage_at_20": 0.25,
    }
    assert "all/coverage_at_20" not in whole.of_visitors(outcomes.rows["visitor"].head(5)).numbers()


def test_saved_outcomes_name_no_visitor_and_tell_the_same(tmp_path, random_outcomes):
    outcomes = merge([random_outcomes(40, seed=4), list_outcomes({"v0": 0.5, "w": 1.0})])
    outcomes = Outcomes(outcomes.rows, outcomes.metrics, {"all/coverage_at_20": 0.25})
    outcomes.save(tmp_path / "outcomes.parquet", KEY)
    loaded = load_outcomes(tmp_path / "outcomes.parquet")
    assert loaded.means() == outcomes.means()
    assert loaded.metrics == outcomes.metrics
    assert b"v12" not in (tmp_path / "outcomes.parquet").read_bytes()
    assert not set(loaded.rows["visitor"]) & set(outcomes.rows["visitor"])
    assert loaded.rows["visitor"].n_unique() == outcomes.rows["visitor"].n_unique()


def test_who_has_the_outcomes_alone_cannot_try_ids(tmp_path, random_outcomes):
    outcomes = random_outcomes(40, seed=4)
    hashed = set(outcomes.rows.select(stable_id(pl.col("visitor"))).to_series())
    names = {}
    for key in (KEY, b"another"):
        outcomes.save(tmp_path / "outcomes.parquet", key)
        assert key not in (tmp_path / "outcomes.parquet").read_bytes()
        names[key] = set(load_outcomes(tmp_path / "outcomes.parquet").rows["visitor"])
        assert not names[key] & hashed
    assert not names[KEY] & names[b"another"]


def test_a_file_of_another_store_is_refused(tmp_path, random_outcomes):
    random_outcomes(4, seed=4).save(tmp_path / "outcomes.parquet", KEY)
    with pytest.raises(ConfigurationError, match="written by another store"):
        load_outcomes(tmp_path / "outcomes.parquet", b"another")


def test_the_key_of_a_store_is_made_once(tmp_path):
    store = Store(str(tmp_path / "store"))
    assert known_key(store) is None
    assert not (tmp_path / "store").exists(), "to ask makes none"
    key = outcome_key(store)
    assert len(key) == 32
    assert key == outcome_key(store) == known_key(Store(store.root))


def test_two_who_make_the_key_at_once_agree(tmp_path):
    """The second one writes after it saw none, and after the first one wrote."""
    store, found = Store(str(tmp_path / "store")), []

    class Late(Store):
        def replace(self, *args, **kwargs):
            found.append(outcome_key(store))
            return super().replace(*args, **kwargs)

    assert outcome_key(Late(store.root)) == found[0] == known_key(store)


def test_processes_that_make_the_key_at_once_agree(tmp_path):
    code = "import sys; from pipeline.publish import Store; from training.outcomes import outcome_key; "
    code += "print(outcome_key(Store(sys.argv[1])).hex())"
    both = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "store")], stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    assert len({process.communicate()[0] for process in both}) == 1
    assert [process.returncode for process in both] == [0, 0]


def test_a_day_without_targets_has_no_numbers(tmp_path, random_outcomes):
    nothing = random_outcomes(0, seed=1)
    assert nothing.numbers() == {}
    nothing.save(tmp_path / "outcomes.parquet", KEY)
    assert load_outcomes(tmp_path / "outcomes.parquet").numbers() == {}
