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
def night(in_airflow, airflow_home, shop, tmp_path_factory):
    conf = tmp_path_factory.mktemp("conf")
    shutil.copy(shop.file, conf / "small.yaml")
    arguments = ["small__nightly", str(shop.days[3])]
    return in_airflow("run_a_night.py", *arguments, NIGHTJAR_CONF=str(conf), NIGHTJAR_HOME=str(shop.home))


def test_a_night_of_real_commands_ends_in_a_release(night, shop):
    assert night["keyed"]["state"] == "success"
    assert sorted(night["keyed"]["labels"]) == sorted(RECIPES)
    facts = Recommendations(shop.store.root).facts
    assert facts["data_through"] == str(shop.days[3])
    assert facts["table_version"] == night["keyed"]["export"]["table_version"]


def test_the_release_was_made_by_the_champions_refit(night, shop):
    tracking = Tracking(shop.site)
    serving = tracking.by_alias("serving")
    assert serving.tags["parent_version"] == str(tracking.champion().version)
    assert Recommendations(shop.store.root).facts["model_version"] == str(serving.version)


def test_everyone_who_was_active_has_a_list(night, shop):
    users = pl.read_delta(f"{shop.store.root}/recommendations")["user_id"].unique()
    assert len(users) == night["keyed"]["export"]["users"] > 100
    ranks = Recommendations(shop.store.root).user(users[0])["rank"].to_list()
    assert ranks == list(range(1, shop.site.export.top_n + 1))


def test_jobs_downstream_hear_of_the_day(night, shop):
    [(key, told)] = night["events"]
    assert (key, told["users"]) == (str(shop.days[3]), night["keyed"]["export"]["users"])
