"""Put tuned fields into the recipes of a site file; its comments, its order and all else stay as they are."""

import difflib
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError
from ruamel.yaml.util import load_yaml_guess_indent

from pipeline.errors import ConfigurationError
from training.recipes import RECIPES
from training.search_space import Value, present
from training.settings import TrainingSite

NO_FOLDING = 10**6


def with_recipe(file: Path, site: TrainingSite, recipe_name: str, fields: Mapping[str, Value]) -> str:
    """The text of a site file in which a recipe has these fields; what the recipe has anyway is left out.

    Raises ConfigurationError for a file that is YAML only after its variables are replaced.
    """
    text = file.read_text(encoding="utf-8")
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, NO_FOLDING
    try:
        _, indent, offset = load_yaml_guess_indent(text)
        yaml.indent(mapping=2, sequence=indent or 2, offset=offset or 0)
        content = yaml.load(text)
    except YAMLError as error:
        raise ConfigurationError(
            f"{file} cannot be rewritten: it is YAML only after its ${{…}} are replaced. Write under "
            f"training.recipes.{recipe_name}: {dict(fields)}"
        ) from error
    before = dumped(yaml, content)
    training = section(content, "training")
    if training.get("recipes") is None:  # without the key some recipes are trained, which it would take away
        training["recipes"] = CommentedMap(dict.fromkeys(site.training.recipes))
    put(section(training["recipes"], recipe_name), recipe_name, fields)
    if not training["recipes"][recipe_name]:
        training["recipes"][recipe_name] = None
    return merged(text, before, dumped(yaml, content))


def dumped(yaml: YAML, content: CommentedMap) -> str:
    """Content as text."""
    written = StringIO()
    yaml.dump(content, written)
    return written.getvalue()


def merged(text: str, before: str, after: str) -> str:
    """The changes between two texts in a third, which is the first but for how some lines are written (`null`)."""
    old, one, other = (each.splitlines(keepends=True) for each in (text, before, after))
    if len(old) != len(one):
        return after
    found = []
    for kind, first, last, start, stop in difflib.SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
        found += old[first:last] if kind == "equal" else other[start:stop]
    return "".join(found)


def section(parent: CommentedMap, key: str) -> CommentedMap:
    """What a key holds; a new one where it holds nothing."""
    if parent.get(key) is None:
        parent[key] = CommentedMap()
        parent[key].fa.set_flow_style()
    found: CommentedMap = parent[key]
    return found


def put(overrides: Any, recipe_name: str, fields: Mapping[str, Value]) -> None:
    """Set fields, and take away those that are as the recipe's function says."""
    usual = present(RECIPES[recipe_name]())
    for field, value in fields.items():
        if value != usual[field]:
            overrides[field] = value
        else:
            overrides.pop(field, None)


def difference(old: str, new: str, file: Path) -> str:
    """What changes from one text of a file to another, as `diff -u` shows it; empty if nothing does."""
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), str(file), f"{file} (best)", lineterm="")
    return "\n".join(lines)
