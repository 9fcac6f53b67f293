"""What a DAG needs to know of each site file: name, store, time zone, recipes and schedule; nothing else is looked at.

Airflow's own processes read these files, often without the secrets that a step has: an unset ${VARIABLE} elsewhere in
the file does no harm here, and a wrong section that only a step reads is that step's to refuse.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from dags.settings import Schedule
from pipeline.settings import PipelineSite
from pipeline.site_file import VARIABLE, describe
from pipeline.site_yaml import parse, read_text
from training.recipes import RECIPES, SequenceRecipe
from training.settings import Training

DEFAULT_RECIPES = tuple(Training().recipes)


class Trainings(BaseModel):
    """The names of the recipes, and their seeds; what else they override is the training's concern."""

    model_config = ConfigDict(extra="ignore")

    recipes: dict[str, Any] = Field(default_factory=lambda: dict.fromkeys(DEFAULT_RECIPES), min_length=1)
    """Recipe -> its overrides."""
    seeds: list[int] = Field(default_factory=lambda: list(Training().seeds), min_length=1)
    """Each sequence recipe is trained once with each."""

    @field_validator("recipes", mode="before")
    @classmethod
    def empty_recipes(cls, value: object) -> object:
        """`recipes:` with nothing under it means the default ones."""
        return dict.fromkeys(DEFAULT_RECIPES) if value is None else value


class SiteHead(BaseModel):
    """The keys of a site file that decide what its DAGs look like."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,40}$")
    """Becomes the first part of the DAG ids."""
    store: object = None
    """Where its tables are, unchecked: only `make ui` looks there, for lists to show."""
    time_zone: str = "UTC"
    """A night starts after midnight of this zone."""
    training: Trainings = Trainings()
    schedule: Schedule = Schedule()

    @field_validator("time_zone")
    @classmethod
    def zone_exists(cls, value: str) -> str:
        """The same rule as for the whole site file."""
        return PipelineSite.zone_exists(value)

    @field_validator("training", "schedule", mode="before")
    @classmethod
    def empty_section(cls, value: object) -> object:
        """`schedule:` with nothing under it is the default."""
        return {} if value is None else value

    @property
    def recipes(self) -> list[str]:
        """The night's recipes, in the order of the file."""
        return list(self.training.recipes)

    @property
    def trainings(self) -> list[dict[str, str]]:
        """The options of each training: `recipe`, and `seed` where there are several."""
        return [
            {"recipe": name, **({} if seed is None else {"seed": str(seed)})}
            for name, overrides in self.training.recipes.items()
            for seed in self.seeds_of(name, overrides)
        ]

    def seeds_of(self, name: str, overrides: object) -> Sequence[int | None]:
        """The seeds of a recipe; None where the command knows the only one: of a baseline, or of its own."""
        has_own = isinstance(overrides, dict) and "seed" in overrides
        is_drawn = name not in RECIPES or isinstance(RECIPES[name](), SequenceRecipe)
        return self.training.seeds if len(self.training.seeds) > 1 and is_drawn and not has_own else [None]


@dataclass(frozen=True)
class SiteFiles:
    """The sites of a folder, and the files no DAG could be made of."""

    sites: Mapping[Path, SiteHead]
    faults: Mapping[Path, str]
    """File -> what is wrong with it."""


def conf_folder() -> Path:
    """Where the site files lie: NIGHTJAR_CONF, or the `conf` folder beside this one."""
    return Path(os.environ.get("NIGHTJAR_CONF") or Path(__file__).resolve().parent.parent / "conf").absolute()


def read_site_files(folder: Path) -> SiteFiles:
    """Every *.yaml of a folder. One broken file never hides the others."""
    sites: dict[Path, SiteHead] = {}
    faults: dict[Path, str] = {}
    owners: dict[str, Path] = {}
    for path in sorted(folder.glob("*.yaml")):
        try:
            site = read_head(path)
            if site.name in owners:
                raise ValueError(f"{path} has the name {site.name!r}, as {owners[site.name]} has; give it another one")
        except (OSError, ValueError) as error:
            faults[path] = describe(error, path, SiteHead) if isinstance(error, ValidationError) else f"{path}: {error}"
            continue
        owners[site.name] = path
        sites[path] = site
    return SiteFiles(sites, faults)


def read_head(path: Path) -> SiteHead:
    """The head of one site file; raises OSError, or ValueError on a broken one."""
    text, _ = read_text(path)
    return SiteHead.model_validate(parse(VARIABLE.sub(value_or_name, text), text))


def value_or_name(match: re.Match[str]) -> str:
    """A variable's value or default; where there is neither, its name stands for it."""
    name, default = match.groups()
    return os.environ.get(name) or default or f"${name}"
