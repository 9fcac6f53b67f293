"""A whole night through Airflow's own machinery, every task the real command on a small shop."""

import shutil

import polars as pl
import pytest

from serving_export.reader import Recommendations
from training.tracking import Tracking

pytestmark = pytest.mark.slow  # each of nine commands imports what it needs anew: a minute in all

RECIPES = {"popularity": None}  # the quickest to import and to fit; other tests have the models


@pytest.fixture(scope="module")
def shop(raw_shop, load, write_site, tmp_path_factory):
    """Three days loaded, the fourth delivered."""
    home = tmp_path_factory.mktemp("night")
    shutil.copytree(raw_shop.home, home, dirs_exist_ok=True)
    shop = write_site(home, window={"length": "3d", "min_item_count": 2}, training={"recipes": RECIPES})
    load(shop, shop.days[:3])
    return shop


@pytest.fixture(scope="module")
def told(in_airflow, airflow_home, shop, tmp_path_factory):
    """A night without a champion, a retraining, and the night after it."""
    conf = tmp_path_factory.mktemp("conf")
    shutil.copy(shop.file, conf / "small.yaml")
    runs = [("nightly", 3), ("retrain", 3), ("nightly", 4)]
    arguments = [f"small__{kind}={shop.days[number]}" for kind, number in runs]
    return in_airflow("run_a_night.py", *arguments, NIGHTJAR_CONF=str(conf), NIGHTJAR_HOME=str(shop.home))


@pytest.fixture(scope="module")
def export(told):
    """What the second night's export said."""
    return told["runs"][2]["reports"]["export"]


def test_a_night_of_real_commands_ends_in_a_release(told, export, shop):
    assert [run["state"] for run in told["runs"]] == ["success"] * 3
    assert told["runs"][1]["labels"] == list(RECIPES)
    facts = Recommendations(shop.store.root).facts
    assert facts["data_through"] == str(shop.days[4])
    assert facts["table_version"] == export["table_version"]


def test_before_the_first_champion_lists_are_popular_ones(told):
    reports = told["runs"][0]["reports"]
    assert reports["refit"]["model_version"] is reports["export"]["model_version"] is None
    assert reports["export"]["users"] == reports["export"]["users_with_popular_only"] > 0


def test_the_release_was_made_by_the_champions_refit(told, shop):
    tracking = Tracking(shop.site)
    serving = tracking.by_alias("serving")
    assert serving.tags["parent_version"] == str(tracking.champion().version)
    assert Recommendations(shop.store.root).facts["model_version"] == str(serving.version)


def test_everyone_who_was_active_has_a_list(export, shop):
    users = pl.read_delta(f"{shop.store.root}/recommendations")["user_id"].unique()
    assert len(users) == export["users"] > 100
    ranks = Recommendations(shop.store.root).user(users[0])["rank"].to_list()
    assert ranks == list(range(1, shop.site.export.top_n + 1))


def test_jobs_downstream_hear_of_the_day(told, export, shop):
    name, key, extra = told["events"][-1]
    assert (name, key, extra["users"]) == ("small_recommendations", str(shop.days[4]), export["users"])
