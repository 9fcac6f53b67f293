import subprocess
import sys
from datetime import timedelta

import pytest

from dags.settings import Schedule
from dags.site_files import DEFAULT_RECIPES, conf_folder, read_site_files


def only_site(conf):
    found = read_site_files(conf)
    assert not found.faults
    (site,) = found.sites.values()
    return site


def test_a_name_is_enough(write_sites):
    site = only_site(write_sites(shop="name: shop\n"))
    assert (site.name, site.time_zone, site.recipes) == ("shop", "UTC", list(DEFAULT_RECIPES))
    assert site.schedule == Schedule()


def test_recipes_keep_the_order_of_the_file(write_sites):
    site = only_site(write_sites(shop="name: shop\ntraining: {window: 7d, recipes: {stan: , gru: {hidden_size: 8}}}\n"))
    assert site.recipes == ["stan", "gru"]


@pytest.mark.parametrize(
    ("training", "trainings"),
    [
        ("{recipes: {gru: , stan: }}", [{"recipe": "gru"}, {"recipe": "stan"}]),
        ("{recipes: {gru: , stan: }, seeds: [7]}", [{"recipe": "gru"}, {"recipe": "stan"}]),
        (
            "{recipes: {gru: , stan: , rnn: {seed: 3}}, seeds: [1, 2]}",
            [{"recipe": "gru", "seed": "1"}, {"recipe": "gru", "seed": "2"}, {"recipe": "stan"}, {"recipe": "rnn"}],
        ),
    ],
    ids=["one seed", "another one seed", "two seeds"],
)
def test_each_recipe_is_trained_with_each_seed_that_it_draws_from(write_sites, training, trainings):
    assert only_site(write_sites(shop=f"name: shop\ntraining: {training}\n")).trainings == trainings


def test_empty_sections_mean_the_defaults(write_sites):
    site = only_site(write_sites(shop="name: shop\nschedule:\ntraining:\n"))
    assert site.recipes == list(DEFAULT_RECIPES)


def test_variables_that_only_a_step_needs_do_no_harm(write_sites, monkeypatch):
    monkeypatch.delenv("SECRET_OF_A_STEP", raising=False)
    monkeypatch.setenv("ZONE", "Europe/Berlin")
    text = "name: ${SITE:-shop}\nstore: {path: ${SECRET_OF_A_STEP}, other: ${X:-y}}\ntime_zone: ${ZONE}\n"
    site = only_site(write_sites(shop=text))
    assert (site.name, site.time_zone) == ("shop", "Europe/Berlin")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: bad\nschedule: {start_aftr: 1h}\n", ["bad.yaml", "schedule.start_aftr", "did you mean `start_after`?"]),
        ("name: bad\nschedule: {start_after: 24h}\n", ["schedule.start_after", "less than 24h"]),
        ("name: bad\nschedule: {step_timeout: 0s}\n", ["schedule.step_timeout", "above zero"]),
        ("name: bad\nschedule: {tables_by: 06:00}\n", ["schedule", "tables_by needs `alerts`"]),
        (
            "name: bad\nschedule: {alerts: [{notifier: a.B}], fresh_within: 24h}\n",
            ["schedule.fresh_within", "like 30h"],
        ),
        (
            "name: bad\nschedule: {alerts: [{notifier: a.B, argument: {}}]}\n",
            ["schedule.alerts.0.argument", "did you mean `arguments`?"],
        ),
        ("name: bad\nschedule: {retrain_on: [sunday]}\n", ["schedule.retrain_on"]),
        ("name: bad\nschedule: {gpu_steps: [lunch]}\n", ["schedule.gpu_steps"]),
        ("name: Bad Name\n", ["bad.yaml", "name"]),
        ("name: bad\ntime_zone: Mars/Base\n", ["Mars/Base", "no time zone"]),
        ("name: bad\ntraining: {recipes: {}}\n", ["training.recipes"]),
        ("- a list\n", ["bad.yaml", "starting with `name:`"]),
        ("name: [\n", ["bad.yaml"]),
        ("name: shop\n", ["bad.yaml", "shop.yaml", "another one"]),
    ],
)
def test_a_broken_file_is_named_and_hides_no_other(write_sites, text, words):
    found = read_site_files(write_sites(a_shop="name: a_shop\n", a_first="name: shop\n", bad=text))
    if text != "name: shop\n":
        assert [site.name for site in found.sites.values()] == ["shop", "a_shop"]
    (fault,) = found.faults.values()
    assert all(word in fault for word in words if word != "shop.yaml")


def test_a_time_of_day_needs_no_quotes(write_sites):
    schedule = "{tables_by: 16:30, alerts: [{notifier: a.B}]}"
    assert only_site(write_sites(shop=f"name: shop\nschedule: {schedule}\n")).schedule.tables_by == "16:30"


def test_start_after_is_a_duration(write_sites):
    site = only_site(write_sites(shop="name: shop\nschedule: {start_after: 2h30m}\n"))
    assert site.schedule.start_after == timedelta(hours=2, minutes=30)


def test_the_conf_folder_is_a_setting(monkeypatch, tmp_path):
    monkeypatch.setenv("NIGHTJAR_CONF", str(tmp_path))
    assert conf_folder() == tmp_path
    monkeypatch.delenv("NIGHTJAR_CONF")
    assert conf_folder().name == "conf"


def test_reading_site_files_needs_no_heavy_package():
    code = (
        "import sys, dags.site_files; print([m for m in ('airflow', 'polars', 'torch', 'mlflow') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


@pytest.mark.parametrize("secret", ["*hush", "!hush", "hush: hush", "x\n*hush"])
def test_a_variable_that_breaks_a_site_file_is_not_shown(write_sites, monkeypatch, secret):
    monkeypatch.setenv("SHOP_SECRET", secret)
    conf = write_sites(shop="name: shop\nstore: ${SHOP_SECRET}\n")
    (fault,) = read_site_files(conf).faults.values()
    assert "no YAML" in fault
    assert "hush" not in fault
