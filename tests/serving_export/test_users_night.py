"""A night whose only sequence model reads users, by the commands that people give."""

import json

import polars as pl
import pytest

from pipeline.tables import sessions_table
from serving_export.tables import RECOMMENDATIONS, USER_STATES
from training.tracking import Tracking


@pytest.mark.slow
def test_a_model_of_users_goes_the_whole_way(copy_shop, command):
    recipe = {"hidden_size": 8, "epochs": 2, "batch_size": 16, "max_sessions": 3, "propagate": "all"}
    shop = copy_shop(training={"recipes": {"hrnn": recipe}})
    night = shop.days[4]

    def nightjar(step: str, *options: str) -> dict:
        code, told, errors = command(
            shop.home, step, "--site", shop.file, *(() if step == "recommend" else ("--date", str(night))), *options
        )
        assert code == 0, errors
        return json.loads(told.splitlines()[-1])

    nightjar("features")
    trained = nightjar("train", "--recipe", "hrnn")
    metrics = trained["metrics"]
    targets = [metrics[f"all_by_history/{band}/num_targets"] for band in ("0", "1", "2", "3_or_more")]
    assert sum(targets) == metrics["all/num_targets"] > 0
    assert metrics["list/num_targets"] > 0
    tuned = nightjar("train", "--recipe", "hrnn", "--purpose", "tune")
    assert tuned["best_epoch"] >= 1
    assert nightjar("promote")["promoted"]
    refitted = nightjar("refit")
    made = nightjar("export")
    lists = shop.store.scan(RECOMMENDATIONS).collect()
    assert "model" in lists["source"].to_list()
    states = shop.store.scan(USER_STATES).collect()
    assert made["users_with_state"] == states.height > 0
    assert states["model_version"].unique().to_list() == [refitted["model_version"]]
    assert states["num_sessions"].max() == 3
    newest = shop.store.scan(sessions_table([])).filter(pl.col("session_date") == night).collect()
    assert states["last_session_id"].is_in(newest["session_id"].implode()).any()
    assert nightjar("export")["sessions_read"] == 0, "nothing has changed"
    run = Tracking(shop.site).client.get_run(trained["run_id"])
    assert run.data.params["sequence"] == "user"
    answer = nightjar("recommend", "--json", "--item", lists["item_id"][0])
    assert answer["source"] == "model"
