"""Promotion night by night. How good each recipe is on the day is told, so that only the decision is tested."""

import dataclasses
import json
import shutil
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path

import polars as pl
import pytest
from mlflow.entities.model_registry import ModelVersion

from pipeline.errors import ConfigurationError, RetryableError
from pipeline.publish import open_store
from training import promote as promoting
from training.difference import Difference
from training.measure import HeldOutDay
from training.order import ShuffleTest
from training.outcomes import Outcomes, merge
from training.promote import promote
from training.recipes import PopularityRecipe, Recipe, SequenceRecipe
from training.refit import champion_of, standing_champion
from training.report import comparison_text, main_headings
from training.tracking import Tracking, data_through, newest

FIRST = date(2026, 3, 4)
METRIC = "next_mrr_at_20"
NO_ROWS = HeldOutDay(FIRST, *[pl.DataFrame()] * 5)
ORDER = ShuffleTest(20, 0.3, 0.2, Difference(0.1, 0.05, 0.15, 0.001), 120)


@dataclass
class Loaded:
    """What stands for a bundle."""

    version: ModelVersion
    recipe: Recipe = field(default_factory=PopularityRecipe)

    def __post_init__(self) -> None:
        if self.version.tags["recipe"] == "gru":
            self.recipe = SequenceRecipe(encoder="gru")


def outcomes(value: float, num_visitors: int = 60) -> Outcomes:
    rows = pl.DataFrame(
        {
            "visitor": [f"v{n}" for n in range(num_visitors)],
            "num_targets": [2] * num_visitors,
            "num_cold": [0] * num_visitors,
            METRIC: [2 * value + 0.01 * (n % 2) for n in range(num_visitors)],
            "protocol": ["all"] * num_visitors,
        },
        schema_overrides={"visitor": pl.String, METRIC: pl.Float64, "protocol": pl.String},
    )
    return Outcomes(rows, (METRIC,))


class Nights:
    """A site whose nights are decided by told metrics."""

    def __init__(self, shop, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shop = shop
        open_store(shop.site)
        self.tracking = Tracking(shop.site)
        self.values: dict[str, float] = {}
        self.lists: dict[str, Outcomes] = {}
        self.index_recall: float | None = None
        self.num_visitors = 60
        self.measured: list[tuple[str, date]] = []
        monkeypatch.setattr(Tracking, "load", lambda self, version: Loaded(version))
        monkeypatch.setattr(promoting, "read_held_out_day", lambda site, store, day: NO_ROWS._replace(day=day))
        monkeypatch.setattr(promoting, "measure_bundle", self.measure)
        monkeypatch.setattr(promoting, "shuffle_test", lambda *_: ORDER)
        self.tracking.client.create_registered_model(self.tracking.model_name)

    def measure(self, bundle: Loaded, held_out: HeldOutDay, ks) -> Outcomes:
        recipe, through = bundle.version.tags["recipe"], data_through(bundle.version)
        assert through < held_out.day
        self.measured.append((recipe, through))
        told = outcomes(self.values[recipe], self.num_visitors)
        return merge([told, self.lists[recipe]]) if recipe in self.lists else told

    def register(self, night: date, recipe: str, kind: str = "train", **tags: str) -> int:
        """A version without a model."""
        through = night - timedelta(days=kind == "train")
        told = {
            "recipe": recipe,
            "seed": "1",
            "purpose": "nightly",
            "night": str(night),
            "data_through": str(through),
            "kind": kind,
            "store": self.tracking.store.id,
            **tags,
        }
        version = self.tracking.client.create_model_version(self.tracking.model_name, "nowhere", tags=told)
        return int(version.version)

    def promote(self, night: date, **values: float) -> dict[str, object]:
        self.values |= values
        return promote(self.shop.site, self.shop.store, night, lambda version: self.index_recall)

    def two_nights(self, gate: dict[str, float] | None = None, **values: float) -> dict[str, object]:
        """The verdict of a night in which gru challenges popularity, the champion."""
        self.shop = dataclasses.replace(self.shop, site=self.shop.with_changes(training={"gate": gate or {}}))
        self.register(FIRST, "popularity")
        self.promote(FIRST, **values)
        self.register(FIRST + timedelta(days=1), "gru")
        return self.promote(FIRST + timedelta(days=1))

    def champion(self) -> int | None:
        version = self.tracking.champion()
        return None if version is None else int(version.version)

    def promoted(self) -> dict[int, str]:
        return {int(v.version): v.tags["promoted"] for v in self.tracking.versions() if "promoted" in v.tags}


@pytest.fixture
def nights(tmp_path, write_site, empty_mlflow, monkeypatch):
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    return Nights(write_site(tmp_path), monkeypatch)


def test_nothing_trained_is_an_error_that_says_what_to_run(nights):
    with pytest.raises(ConfigurationError, match=r"no version was trained for 2026-03-04. Run `nightjar train`"):
        nights.promote(FIRST)


def test_the_first_night_has_a_champion(nights):
    nights.register(FIRST, "gru")
    nights.register(FIRST, "popularity")
    verdict = nights.promote(FIRST, gru=0.3, popularity=0.2)
    assert verdict["promoted"] is True
    assert verdict["model_version"] == nights.champion() == 1
    assert "first champion" in verdict["reason"]
    assert nights.promoted() == {1: "2026-03-04"}


def test_a_better_challenger_takes_over_and_a_worse_one_does_not(nights):
    nights.register(FIRST, "popularity")
    nights.promote(FIRST, popularity=0.2)
    second, third = FIRST + timedelta(days=1), FIRST + timedelta(days=2)
    nights.register(second, "gru")
    verdict = nights.promote(second, gru=0.1)
    assert verdict["promoted"] is False
    assert verdict["model_version"] == 2
    assert verdict["reason"].startswith(
        "version 1 stays champion; gru (version 2) is not shown to be better: all/next_mrr_at_20 -0.1"
    )
    assert verdict["difference"] == pytest.approx(-0.1)
    assert verdict["p_value"] == 0.0001
    assert ", p 0.0001, " in verdict["reason"]
    assert nights.champion() == 1
    nights.register(third, "gru")
    verdict = nights.promote(third, gru=0.25)
    assert verdict["reason"].startswith("gru (version 3) takes over from version 1: all/next_mrr_at_20 +0.05")
    assert nights.champion() == 3
    assert nights.promoted() == {1: "2026-03-04", 3: "2026-03-06"}


def test_an_equal_challenger_does_not_take_over(nights):
    nights.register(FIRST, "popularity")
    nights.promote(FIRST, popularity=0.2)
    nights.register(FIRST + timedelta(days=1), "gru")
    verdict = nights.promote(FIRST + timedelta(days=1), gru=0.2)
    assert (verdict["promoted"], verdict["difference"], verdict["interval"]) == (False, 0, [0, 0])
    assert verdict["p_value"] == 1


def spread(value: float, num_visitors: int = 60) -> Outcomes:
    """Visitors who differ so much that nothing small can be shown."""
    told = outcomes(0, num_visitors)
    values = [2 * value + (0.4 if n % 2 else -0.4) * (1 if n % 4 < 2 else -1) for n in range(num_visitors)]
    return Outcomes(told.rows.with_columns(pl.Series(METRIC, values)), told.metrics)


def test_a_gain_must_be_shown_and_not_only_found(nights, monkeypatch):
    nights.register(FIRST, "popularity")
    nights.promote(FIRST, popularity=0.2)
    nights.register(FIRST + timedelta(days=1), "gru")
    told = {"popularity": outcomes(0.2), "gru": spread(0.21)}
    monkeypatch.setattr(promoting, "measure_bundle", lambda bundle, *_: told[bundle.version.tags["recipe"]])
    verdict = nights.promote(FIRST + timedelta(days=1))
    low, high = verdict["interval"]
    assert low < 0 < high
    assert verdict["promoted"] is False
    assert "is not shown to be better" in verdict["reason"]


@pytest.mark.parametrize(
    ("margin", "gru", "promoted"),
    [(0.0, 0.2, False), (0.0, 0.21, True), (0.1, 0.2, True), (0.1, 0.19, True), (0.1, 0.17, False)],
    ids=lambda told: str(told),
)
def test_a_margin_lets_pass_what_surely_loses_no_more(nights, margin, gru, promoted):
    verdict = nights.two_nights({"margin": margin}, popularity=0.2, gru=gru)
    assert verdict["promoted"] is promoted
    assert verdict["margin"] == margin
    assert nights.champion() == (2 if promoted else 1)
    if margin and not promoted:
        assert "gru (version 2) may lose more than 0.1 of its value: all/next_mrr_at_20 -0.03" in verdict["reason"]


def lists(recall: float = 0.3, num_visitors: int = 60, **figures: float) -> Outcomes:
    """Outcomes of the lists of the evening before."""
    rows = pl.DataFrame(
        {
            "visitor": [f"v{n}" for n in range(num_visitors)],
            "num_targets": [1] * num_visitors,
            "num_cold": [0] * num_visitors,
            "any_recall_at_20": [recall + 0.01 * (n % 2) for n in range(num_visitors)],
            "protocol": ["list"] * num_visitors,
        }
    )
    told = {"num_items": 100.0, "gini": 0.5, "fallback_share": 0.1} | figures
    return Outcomes(rows, ("any_recall_at_20",), {f"list/{name}_at_20": value for name, value in told.items()})


@pytest.mark.parametrize(
    ("figures", "broken", "told"),
    [
        ({"num_items": 49.0}, "coverage_kept", "is 0.49, allowed is at least 0.5"),
        ({"gini": 0.8}, "evenness_kept", "is 0.4, allowed is at least 0.5"),
        ({"fallback_share": 0.6}, "fallback_share", "is 0.6, allowed is at most 0.5"),
        ({"recall": 0.1}, "list_kept", "allowed is at least 0.5"),
        ({}, "index_recall", "is 0.9, allowed is at least 0.99"),
    ],
    ids=["coverage", "evenness", "fallback", "lists", "index"],
)
def test_a_better_challenger_that_breaks_a_guard_does_not_take_over(nights, figures, broken, told):
    nights.lists = {"popularity": lists(), "gru": lists(**figures)}
    nights.register(FIRST, "popularity")
    nights.promote(FIRST, popularity=0.2)
    nights.index_recall = 0.9 if broken == "index_recall" else None
    second = FIRST + timedelta(days=1)
    nights.register(second, "gru")
    verdict = nights.promote(second, gru=0.3)
    assert verdict["promoted"] is False
    assert nights.champion() == 1
    assert verdict["reason"].startswith(f"version 1 stays champion; gru (version 2) broke a guard: {broken} (")
    assert told in verdict["reason"]
    assert [guard["name"] for guard in verdict["guards"] if not guard["held"]] == [broken]
    nights.lists["gru"], nights.index_recall = lists(), 0.995
    verdict = nights.promote(second)
    assert verdict["promoted"] is True
    assert {guard["name"] for guard in verdict["guards"]} >= {"coverage_kept", "evenness_kept", "fallback_share"}


def test_the_first_champion_is_the_best_that_holds_the_guards(nights):
    nights.register(FIRST, "gru")
    nights.register(FIRST, "popularity")
    nights.lists = {"gru": lists(fallback_share=0.7), "popularity": lists()}
    verdict = nights.promote(FIRST, gru=0.3, popularity=0.2)
    assert nights.champion() == 2
    assert verdict["reason"].startswith("popularity (version 2) is the first champion: all/next_mrr_at_20 0.2")
    assert "gru (version 1): fallback_share" in verdict["reason"]
    nights.lists["popularity"] = lists(fallback_share=0.7)
    again = nights.promote(FIRST)
    assert again["promoted"] is False
    assert again["reason"].startswith("there is no champion: each model broke a guard. gru (version 1)")
    assert nights.champion() is None
    assert again["alerts"] == [f"small, 2026-03-04: {again['reason']}"]


def test_decision_numbers_and_reason_stand_on_versions_and_runs(nights):
    nights.lists = {"popularity": lists(), "gru": lists()}
    nights.register(FIRST, "popularity")
    nights.promote(FIRST, popularity=0.2)
    second = FIRST + timedelta(days=1)
    nights.register(second, "popularity")
    nights.register(second, "gru")
    verdict = nights.promote(second, gru=0.3)
    popularity, gru = (nights.tracking.client.get_model_version("nightjar-small", n) for n in ("2", "3"))
    assert gru.tags["gate.promoted"] == "True"
    assert gru.tags["gate.reason"] == verdict["reason"]
    assert float(gru.tags["gate.difference"]) == pytest.approx(0.1)
    assert json.loads(gru.tags["gate.guards"]) == verdict["guards"]
    assert popularity.tags["gate.promoted"] == "False"
    assert popularity.tags["gate.reason"] == "gru (version 3) was the challenger of the night"
    run = nights.tracking.client.get_run(verdict["run_id"])
    assert run.data.tags["gate.guards"] == gru.tags["gate.guards"]
    assert run.data.metrics["gate/difference"] == pytest.approx(0.1)
    assert run.data.metrics["gate/low"] > 0
    assert run.data.metrics["gate/coverage_kept"] == 1
    nights.promote(second, gru=0.1)  # the other one is the challenger now
    gru = nights.tracking.client.get_model_version("nightjar-small", "3")
    assert (gru.tags["gate.promoted"], gru.tags["gate.difference"]) == ("False", "")


def test_a_champion_below_the_best_baseline_for_days_raises_an_alert(nights):
    nights.register(FIRST, "gru")
    assert nights.promote(FIRST, gru=0.3)["alerts"] == [], "no baseline beside it"
    told = {}
    for n, value in enumerate((0.301, 0.301, 0.2, 0.301, 0.301, 0.301, 0.301), 1):
        night = FIRST + timedelta(days=n)
        nights.register(night, "popularity")
        nights.lists = {"popularity": lists(num_items=1.0), "gru": lists()}  # a guard keeps it from taking over
        told[n] = nights.promote(night, popularity=value)["alerts"]
    assert [n for n, alerts in told.items() if alerts] == [6, 7]
    assert told[6] == [
        "small: the champion was below the best baseline on 3 compared days in a row, on 2026-03-10 by 0.0010 in "
        "all/next_mrr_at_20 (the baseline is popularity (version 7))"
    ]
    assert nights.promote(FIRST + timedelta(days=6))["alerts"], "an earlier night that is run again is judged as then"


def test_a_baseline_that_is_champion_is_not_below_itself(nights):
    for n in range(4):
        nights.register(FIRST + timedelta(days=n), "popularity")
        verdict = nights.promote(FIRST + timedelta(days=n), popularity=0.2 + 0.0001 * n)
    assert verdict["alerts"] == []


def test_equal_challengers_go_by_the_order_of_the_site_file(nights):
    nights.register(FIRST, "popularity")
    nights.register(FIRST, "gru")
    assert nights.promote(FIRST, gru=0.2, popularity=0.2)["challenger"] == "gru"


def test_the_champion_stands_as_its_newest_refit_that_has_not_seen_the_day(nights):
    nights.register(FIRST, "popularity")
    nights.promote(FIRST, popularity=0.2)
    for refitted in (FIRST, FIRST + timedelta(days=1)):
        nights.register(refitted, "popularity", kind="refit", parent_version="1")
    nights.register(FIRST + timedelta(days=1), "gru")
    nights.measured.clear()
    verdict = nights.promote(FIRST + timedelta(days=1), gru=0.3)
    assert nights.measured == [("gru", FIRST), ("popularity", FIRST)]
    assert "takes over from version 2" in verdict["reason"]


def test_running_a_night_again_judges_it_as_before(nights):
    nights.register(FIRST, "popularity")
    nights.promote(FIRST, popularity=0.2)
    second = FIRST + timedelta(days=1)
    nights.register(second, "gru")
    first = nights.promote(second, gru=0.3)
    again = nights.promote(second)
    assert {k: again[k] for k in again if k != "run_id"} == {k: first[k] for k in first if k != "run_id"}
    newer = nights.register(second, "gru")
    assert "takes over from version 1" in nights.promote(second)["reason"]
    assert nights.champion() == newer
    assert nights.promoted() == {1: "2026-03-04", newer: "2026-03-05"}


def test_a_night_that_is_lost_when_run_again_gives_the_alias_back(nights):
    nights.register(FIRST, "popularity")
    nights.promote(FIRST, popularity=0.2)
    second = FIRST + timedelta(days=1)
    nights.register(second, "gru")
    nights.promote(second, gru=0.3)
    assert nights.champion() == 2
    verdict = nights.promote(second, gru=0.1)
    assert verdict["promoted"] is False
    assert nights.champion() == 1
    assert nights.promoted() == {1: "2026-03-04"}


def test_an_old_night_leaves_a_newer_champion_but_has_its_own(nights):
    nights.register(FIRST, "popularity")
    nights.promote(FIRST, popularity=0.2)
    old = FIRST - timedelta(days=2)
    nights.register(old, "gru")
    verdict = nights.promote(old, gru=0.9)
    assert verdict["promoted"] is False
    assert "the alias stays with version 1, trained through 2026-03-03" in verdict["reason"]
    assert nights.champion() == 1
    assert int(champion_of(nights.tracking, old).version) == 2
    assert int(champion_of(nights.tracking, FIRST).version) == 1


def test_the_champion_of_an_old_night_is_the_one_with_the_latest_data_not_the_last_made(nights):
    later = FIRST + timedelta(days=1)
    nights.register(later, "gru")
    nights.promote(later, gru=0.3)
    nights.register(FIRST, "popularity")
    nights.promote(FIRST, popularity=0.2)
    after = later + timedelta(days=1)
    nights.register(after, "popularity")
    nights.promote(after, popularity=0.4)
    assert int(champion_of(nights.tracking, after).version) == 3
    assert int(champion_of(nights.tracking, later).version) == 1
    assert int(champion_of(nights.tracking, FIRST).version) == 2
    assert champion_of(nights.tracking, date(2026, 3, 2)) is None


def test_a_night_that_is_run_again_starts_from_the_champion_that_stood_before_it(nights):
    for number, recipe in enumerate(["gru", "popularity", "gru"]):
        night = FIRST + timedelta(days=number)
        nights.register(night, recipe)
        nights.promote(night, **{recipe: 0.2 + number / 10})
        assert int(champion_of(nights.tracking, night).version) == number + 1
    assert [int(v.version) for v in standing(nights, 1, 2, 3)] == [1, 2, 3]
    assert standing(nights, 0) == [None]


def standing(nights, *numbers):
    return [standing_champion(nights.tracking, FIRST + timedelta(days=number)) for number in numbers]


def test_a_day_without_visitors_keeps_the_champion(nights):
    nights.num_visitors = 0
    nights.register(FIRST, "gru")
    nights.register(FIRST, "popularity")
    first = nights.promote(FIRST, popularity=0.2, gru=0.3)
    assert (first["promoted"], first["challenger"]) == (True, "gru")
    assert "nothing on the day to measure all/next_mrr_at_20 on" in first["reason"]
    nights.register(FIRST + timedelta(days=1), "popularity")
    second = nights.promote(FIRST + timedelta(days=1))
    assert second["promoted"] is False
    assert "0 visitors" in second["reason"]
    assert nights.champion() == 1


def test_the_nights_run_tells_the_last_verdict_only(nights):
    nights.register(FIRST, "popularity")
    nights.promote(FIRST, popularity=0.2)
    second = FIRST + timedelta(days=1)
    nights.register(second, "gru")
    for value in (0.3, 0.1):
        run_id = nights.promote(second, gru=value)["run_id"]
        run = nights.tracking.client.get_run(run_id)
        assert run.data.tags["gate.promoted"] == str(value > 0.2)
        assert run.data.metrics[f"all/{METRIC}"] == pytest.approx(value, abs=0.01)
        assert run.data.tags["night"] == str(second)
        assert run.data.metrics["order/shuffled_next_mrr_at_20"] == 0.2
        assert run.data.metrics["order/p_value"] == 0.001
    text = nights.tracking.client.download_artifacts(run_id, "comparison.txt")
    assert "gru v2" in Path(text).read_text()
    assert (
        nights.tracking.client.get_run(nights.tracking.night_run(FIRST).info.run_id).data.tags["gate.difference"] == ""
    )


def test_versions_that_were_never_finished_are_not_seen(nights):
    nights.register(FIRST, "gru")
    unfinished = nights.register(FIRST, "popularity")
    nights.tracking.client.delete_model_version_tag(nights.tracking.model_name, str(unfinished), "kind")
    assert [int(v.version) for v in nights.tracking.versions()] == [1]
    assert nights.promote(FIRST, gru=0.3)["challenger"] == "gru"


def test_a_tracking_server_that_fails_is_no_site_without_a_champion(nights, monkeypatch):
    from mlflow.exceptions import MlflowException

    def fail(*_: object) -> None:
        raise MlflowException("connection refused")

    assert nights.champion() is None
    monkeypatch.setattr(nights.tracking.client, "get_model_version_by_alias", fail)
    with pytest.raises(RetryableError, match=r"alias 'champion' of nightjar-small.*connection refused"):
        nights.tracking.champion()


def test_a_run_that_fails_is_marked_as_failed(nights):
    with pytest.raises(RuntimeError), nights.tracking.run(FIRST, "gru", {"recipe": "gru"}) as run_id:
        raise RuntimeError
    run = nights.tracking.client.get_run(run_id)
    assert run.info.status == "FAILED"
    assert run.data.tags["mlflow.parentRunId"] == nights.tracking.night_run(FIRST).info.run_id
    assert run.data.tags["test_day"] == str(FIRST)


def test_the_newest_version_has_seen_the_latest_day(nights):
    nights.register(FIRST, "gru")
    nights.register(FIRST - timedelta(days=1), "gru")
    nights.register(FIRST, "popularity")
    assert int(newest(nights.tracking.versions()).version) == 3
    assert newest([]) is None


def test_the_table_has_a_line_a_model():
    row = {
        "model": "gru",
        "version": 7,
        "metrics": {"all/next_recall_at_5": 0.25},
        "intervals": {"all/next_recall_at_5": (0.2, 0.3)},
    }
    heads, line = comparison_text([row], main_headings(5)).splitlines()
    assert heads.split()[:3] == ["model", "all/recall_at_5", "all/mrr_at_5"]
    assert line.split()[:4] == ["gru", "v7", "0.2500", "±0.0500"]
