"""Promotion night by night. How good each recipe is on the day is told, so that only the decision is tested."""

import shutil
from datetime import date, timedelta
from pathlib import Path

import polars as pl
import pytest
from mlflow.entities.model_registry import ModelVersion

from pipeline.errors import ConfigurationError, RetryableError
from training import promote as promoting
from training.difference import Difference
from training.measure import HeldOutDay
from training.order import ShuffleTest
from training.outcomes import Outcomes
from training.promote import promote
from training.refit import champion_of, standing_champion
from training.report import comparison_text, main_headings
from training.tracking import Tracking, data_through, newest

FIRST = date(2026, 3, 4)
METRIC = "next_mrr_at_20"
NO_ROWS = HeldOutDay(FIRST, *[pl.DataFrame()] * 4)
ORDER = ShuffleTest(20, 0.3, 0.2, Difference(0.1, 0.05, 0.15, 0.001), 120)


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
        self.tracking = Tracking(shop.site)
        self.values: dict[str, float] = {}
        self.num_visitors = 60
        self.measured: list[tuple[str, date]] = []
        monkeypatch.setattr(Tracking, "load", lambda self, version: version)
        monkeypatch.setattr(promoting, "read_held_out_day", lambda site, store, day: NO_ROWS._replace(day=day))
        monkeypatch.setattr(promoting, "measure_bundle", self.measure)
        monkeypatch.setattr(promoting, "shuffle_test", lambda *_: ORDER)
        self.tracking.client.create_registered_model(self.tracking.model_name)

    def measure(self, version: ModelVersion, held_out: HeldOutDay, ks) -> Outcomes:
        assert data_through(version) < held_out.day
        self.measured.append((version.tags["recipe"], data_through(version)))
        return outcomes(self.values[version.tags["recipe"]], self.num_visitors)

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
            **tags,
        }
        version = self.tracking.client.create_model_version(self.tracking.model_name, "nowhere", tags=told)
        return int(version.version)

    def promote(self, night: date, **values: float) -> dict[str, object]:
        self.values |= values
        return promote(self.shop.site, self.shop.store, night)

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
        "version 1 stays champion; gru (version 2) is not better: all/next_mrr_at_20 -0.1"
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
