"""A site file with other fields of one recipe is otherwise the same, letter by letter."""

from pathlib import Path

import pytest
import yaml

import nightjar
from pipeline.errors import ConfigurationError
from training.site_recipe import difference, with_recipe

CONF = sorted((Path(__file__).parents[2] / "conf").glob("*.yaml"))


@pytest.mark.parametrize("file", CONF, ids=lambda file: file.stem)
def test_only_the_recipe_changes(file, tmp_path):
    site = nightjar.load_site(file, nightjar.Site, tmp_path)
    old = file.read_text()
    new = with_recipe(file, site, "gru", {"hidden_size": 64, "learning_rate": 0.0031, "dropout": 0.2})
    changed = [line for line in difference(old, new, file).splitlines()[2:] if line[:1] in "+-"]
    assert len([line for line in changed if line.startswith("+")]) <= 2
    assert all("gru" in line or "recipes" in line for line in changed), changed
    (tmp_path / "new.yaml").write_text(new)
    told = nightjar.load_site(tmp_path / "new.yaml", nightjar.Site, tmp_path).training.recipes
    assert told.pop("gru") == (site.training.recipes.get("gru") or {}) | {
        "hidden_size": 64,
        "learning_rate": 0.0031,
        "dropout": 0.2,
    }
    assert told == {name: fields for name, fields in site.training.recipes.items() if name != "gru"}


def written(tmp_path, text: str, name: str, **fields) -> dict:
    file = tmp_path / "site.yaml"
    file.write_text(
        "name: x\nstore: store\nsource: {events: a.csv, columns: {item_id: i, occurred_at: t, user_id: u}}\n" + text
    )
    site = nightjar.load_site(file, nightjar.Site, tmp_path)
    new = with_recipe(file, site, name, fields)
    assert with_recipe(file, site, name, fields) == new
    return yaml.safe_load(new)["training"]["recipes"]


def test_what_the_recipe_has_anyway_is_left_out(tmp_path):
    text = "training:\n  recipes:\n    gru: {dropout: 0.4, epochs: 9, patience: 3}  # mine\n"
    told = written(tmp_path, text, "gru", dropout=0.1, hidden_size=128, learning_rate=0.01)
    assert told == {"gru": {"epochs": 9, "patience": 3, "learning_rate": 0.01}}
    assert written(tmp_path, "training: {recipes: {gru: {dropout: 0.4}}}\n", "gru", dropout=0.1) == {"gru": None}


@pytest.mark.parametrize(
    "text", ["", "training: {}\n", "training: {metric_ks: [1, 20]}\n"], ids=["none", "empty", "other"]
)
def test_recipes_that_are_trained_unsaid_are_still_trained(text, tmp_path):
    told = written(tmp_path, text, "gru4rec", momentum=0.3)
    assert told == {"gru": None, "popularity": None, "recent_popularity": None, "gru4rec": {"momentum": 0.3}}


def test_a_file_that_is_yaml_only_with_its_variables_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("THE_NAME", "x")
    monkeypatch.setenv("REST", "training: {recipes: {gru: null}}")
    with pytest.raises(ConfigurationError, match=r"Write under training\.recipes\.gru: \{'dropout': 0\.2\}"):
        written(tmp_path, "${REST}\n", "gru", dropout=0.2)
