"""A night's models beside each other: what the table, the page and the command tell."""

import json
import re

import numpy as np
import polars as pl
import pytest

import nightjar
from pipeline.errors import ConfigurationError
from training.compare import Compared, against, as_text, compare, draw, mean_outcomes, newest_runs, render
from training.outcomes import Outcomes
from training.tracking import Tracking

METRIC = "all/next_mrr_at_20"


def outcomes(seed: int, mrr: float) -> Outcomes:
    random = np.random.default_rng(seed)
    rows = {
        "visitor": [f"v{n}" for n in range(200)],
        "num_targets": [2] * 200,
        "num_cold": [0] * 200,
        "next_mrr_at_20": random.binomial(2, mrr, 200).astype(float),
        "next_recall_at_20": random.binomial(2, mrr, 200).astype(float),
        "protocol": ["all"] * 200,
    }
    return Outcomes(pl.DataFrame(rows), ("next_mrr_at_20", "next_recall_at_20"), {"all/coverage_at_20": mrr})


def compared(recipe: str, is_baseline: bool, *seeds: Outcomes) -> Compared:
    names = tuple(str(n + 1) for n in range(len(seeds)))
    return Compared(recipe, is_baseline, names, names, mean_outcomes(seeds), [seed.means() for seed in seeds])


def test_seeds_are_averaged_and_their_spread_is_told():
    first, second = outcomes(1, 0.4), outcomes(2, 0.6)
    row = compared("gru", False, first, second)
    values = [first.means()[METRIC], second.means()[METRIC]]
    assert row.numbers[METRIC] == pytest.approx(np.mean(values))
    assert row.numbers["all/coverage_at_20"] == pytest.approx(0.5)
    assert row.numbers["all/num_targets"] == 400
    assert row.spread(METRIC) == pytest.approx(np.std(values, ddof=1))
    assert compared("popularity", True, first).spread(METRIC) is None


def test_the_table_tells_the_difference_from_the_best_baseline(write_site, tmp_path):
    site = write_site(tmp_path).site
    best = compared("item_knn", True, outcomes(3, 0.3))
    rows = [against(row, best, METRIC) for row in (compared("gru", False, outcomes(1, 0.5), outcomes(2, 0.5)), best)]
    heading, ours, theirs = as_text(rows, site).splitlines()
    assert re.split(" {2,}", heading)[:5] == ["model", "role", "all/mrr_at_20", "minus best baseline", "p"]
    assert ours.startswith("gru (2 seeds)")
    assert " sd 0." in ours
    assert "  0.0001  " in ours
    difference = rows[0].numbers[METRIC] - best.numbers[METRIC]
    assert f"{difference:+.4f} (+" in ours
    assert "best baseline" in theirs


def test_the_page_escapes_every_value_and_needs_no_network(write_site, tmp_path):
    site = write_site(tmp_path).site
    rows = [compared("<script>alert(1)</script>", False, outcomes(1, 0.5)), compared("$x_{", True, outcomes(2, 0.3))]
    page = render(rows, draw(rows, site), site, "<b>title</b>", "gate \"'><script>")
    assert page.count("<script>") == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&lt;b&gt;title" in page
    assert not re.search(r"https?://|src=\"(?!data:)|@import|<link", page)
    assert page.count("data:image/png;base64,") == 4


def test_a_night_is_compared_from_its_runs(served_shop):
    tracking, night = Tracking(served_shop.site), served_shop.days[4]
    rows = compare(served_shop.site, tracking, night)
    assert sorted(row.recipe for row in rows) == ["gru", "popularity"]
    assert {row.role for row in rows} & {"champion", "challenger"}
    for row in rows:
        (run_id,) = row.run_ids
        logged = tracking.client.get_run(run_id).data.metrics
        for name in (METRIC, "all_by_length/2/next_recall_at_20", "all/coverage_at_20", "list/any_recall_at_20"):
            assert row.numbers[name] == pytest.approx(logged[name])
    baseline = next(row for row in rows if row.is_baseline)
    gru = next(row for row in rows if not row.is_baseline)
    assert gru.difference.value == pytest.approx(gru.numbers[METRIC] - baseline.numbers[METRIC])
    kept = tracking.client.list_artifacts(tracking.night_run(night).info.run_id)
    assert {"compare.html", "comparison.txt", "pictures"} <= {file.path for file in kept}
    assert (served_shop.home / "reports" / f"compare-small-{night}.html").exists()


def test_damaged_outcomes_are_refused_with_their_run(released):
    tracking, night = Tracking(released.site), released.days[3]
    (run,) = newest_runs(tracking, night, "nightly")
    tracking.client.set_tag(
        run.info.run_id, "outcomes_sha256", "0" * 64
    )  # the file is shared, so its record is changed
    with pytest.raises(ConfigurationError, match=rf"outcomes.parquet of run {run.info.run_id} .*damaged"):
        compare(released.site, tracking, night)
    tracking.client.delete_tag(run.info.run_id, "outcomes_sha256")
    assert compare(released.site, tracking, night), "runs of before have no checksum"


def test_the_experiment_tells_which_columns_to_show(served_shop):
    tracking = Tracking(served_shop.site)
    tags = tracking.client.get_experiment(tracking.experiment_id).tags
    assert "viewStateShareKey=models" in tags["mlflow.note.content"]
    told = json.loads(tags["mlflow.sharedViewState.models"])
    state = json.loads(told["state"])
    assert told["name"] == "All models, best first"
    assert state["orderByKey"] == f"metrics.`{METRIC}`"
    assert "tags.`seed`" in state["selectedColumns"]
    assert tracking.client.get_registered_model("nightjar-small").description.startswith("Models of one site")


def test_reports_and_seeds_are_apart_from_the_night(copy_shop):
    shop = copy_shop()
    site = shop.with_changes(training={"seeds": [1, 2]})
    assert site.training.seeds_of("gru") == (1, 2)
    assert site.training.seeds_of("popularity") == (1,)
    night = shop.days[3]
    nightjar.features(site, shop.store, night)
    for _ in range(2):
        told = nightjar.train(site, shop.store, night, "popularity", 1, nightjar.Purpose.report)
    tracking = Tracking(site)
    with pytest.raises(ConfigurationError, match="no finished run for 2026-03-04 with purpose nightly"):
        compare(site, tracking, night)
    (run,) = newest_runs(tracking, night, "report")
    assert run.info.run_id == told["run_id"]
    with pytest.raises(ConfigurationError, match="no version was trained"):
        nightjar.promote(site, shop.store, night)


@pytest.mark.parametrize("seeds", [[], [1, 1], [-1]])
def test_seeds_that_make_no_sense_are_refused(write_site, tmp_path, seeds):
    with pytest.raises(ConfigurationError, match="seeds"):
        write_site(tmp_path, training={"seeds": seeds})
