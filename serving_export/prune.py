"""What old nights left and nobody needs any more: sequences, item indexes, checkpoints, MLflow's runs and versions.

Reads   `recommendations` (which releases can be restored), the registered model, its runs
Writes  `vocabulary` and `sequences` without old nights; removes the rest

Old is what belongs to a night longer than `training.keep_runs_for` before a day that is given; the clock is not asked.
An item index, which the next export makes anew, goes as soon as nothing of what is kept below needs it.
Kept whatever their age: the champion, what serves, the champion that old nights within that time start from, what a
release that can be restored was made by, with their parents and runs; and all runs for a report. Where another store
of the same site name uses this MLflow, what does not carry a store's id stays too: it may be the other's.
"""

import re
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from typing import Any

import fsspec
import polars as pl
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from features.tables import SEQUENCES, VOCABULARY
from pipeline.publish import Store
from pipeline.terminal import log
from serving_export.history import releases
from training.settings import TrainingSite
from training.tracking import Tracking, data_through, newest, number

KEPT_PURPOSE = "report"


@dataclass(frozen=True)
class Old:
    """What is removed."""

    nights: list[date]
    """Partitions of `vocabulary` and `sequences`."""
    item_indexes: list[int]
    """By model version."""
    versions: list[ModelVersion]
    runs: list[Run]
    checkpoints: list[str]
    """Folders of nights whose training was never finished."""

    def facts(self) -> dict[str, Any]:
        """As a command reports it."""
        return {
            "nights": [str(night) for night in self.nights],
            "item_indexes": self.item_indexes,
            "model_versions": [number(version) for version in self.versions],
            "runs": len(self.runs),
            "checkpoints": self.checkpoints,
        }


def prune(site: TrainingSite, store: Store, day: date, *, dry_run: bool) -> dict[str, Any]:
    """Remove what is old on `day`, or with `dry_run` only tell it."""
    tracking = Tracking(site)
    old = find_old(site, store, tracking, day - site.training.keep_runs_for)
    if not dry_run:
        remove_nights(store, old.nights)
        remove_indexes(store, old.item_indexes)
        for version in old.versions:
            remove_version(tracking, version)
        for run in old.runs:
            remove_artifacts(run.info.artifact_uri)
            tracking.client.delete_run(run.info.run_id)
        for folder in old.checkpoints:
            shutil.rmtree(checkpoints_of(site) / folder, ignore_errors=True)
    told = old.facts()
    log.info("%s: %s", "would remove" if dry_run else "removed", told)
    return told


def find_old(site: TrainingSite, store: Store, tracking: Tracking, first_kept: date) -> Old:
    """All that belongs to nights before `first_kept` and is not needed."""
    versions = tracking.versions(withdrawn=True)
    needed = needed_versions(tracking, store, versions, first_kept)
    old = [v for v in versions if is_old(v.tags, first_kept) and number(v) not in needed]
    old_versions = [version for version in old if tracking.surely_own(version.tags)]
    gone = {number(version) for version in old_versions}
    kept_runs = {version.run_id for version in versions if number(version) not in gone}
    return Old(
        old_nights(store, first_kept),
        sorted(number for number in known_indexes(store) if number not in needed and number < max(needed, default=0)),
        old_versions,
        old_runs(tracking, kept_runs, first_kept),
        old_checkpoints(site, first_kept),
    )


def needed_versions(tracking: Tracking, store: Store, versions: Sequence[ModelVersion], first_kept: date) -> set[int]:
    """The versions that stay whatever their age."""
    of_releases = {str(each["model_version"]) for each in releases(store) if each["is_restorable"]}
    standing = newest(v for v in versions if v.tags.get("promoted") and data_through(v) < first_kept)
    named = [tracking.champion(), tracking.by_alias("serving"), standing]
    told = {str(version.version) for version in named if version is not None} | of_releases
    parents = {v.tags["parent_version"] for v in versions if str(v.version) in told and "parent_version" in v.tags}
    return {number(version) for version in versions if str(version.version) in told | parents}


def is_old(tags: dict[str, str], first_kept: date) -> bool:
    """Whether the tags of a run or version name an old night, and no report."""
    return "night" in tags and tags["night"] < str(first_kept) and tags.get("purpose") != KEPT_PURPOSE


def old_runs(tracking: Tracking, kept_runs: set[str], first_kept: date) -> list[Run]:
    """Runs of old nights; a night's own run stays as long as one of the runs below it does."""
    runs = list(tracking.runs())
    removable = [run for run in runs if is_old(run.data.tags, first_kept) and tracking.surely_own(run.data.tags)]
    old = [run for run in removable if run.info.run_id not in kept_runs]
    going = {run.info.run_id for run in old}
    parents = {run.data.tags.get("mlflow.parentRunId") for run in runs if run.info.run_id not in going}
    return [run for run in old if run.info.run_id not in parents]


def old_nights(store: Store, first_kept: date) -> list[date]:
    """Nights whose features are old."""
    nights = store.scan(VOCABULARY).select("night").unique().collect()["night"]
    return sorted(nights.filter(nights < first_kept).to_list())


def remove_nights(store: Store, nights: list[date]) -> None:
    """Take nights out of the tables of features; earlier versions keep them until they are vacuumed."""
    for table in (VOCABULARY, SEQUENCES):
        here = store.scan(table).filter(pl.col("night").is_in(nights)).select("night").unique().collect()["night"]
        if len(here):
            store.commit(table, [], {"night": sorted(here.to_list())})


def known_indexes(store: Store) -> list[int]:
    """The model versions of the item indexes that there are."""
    files, root = fsspec.core.url_to_fs(f"{store.root}/item_index")
    names: Iterable[str] = ()
    with suppress(FileNotFoundError):
        names = (path.rstrip("/").rsplit("/", 1)[-1] for path in files.ls(root, detail=False))
    return [int(name) for name in names if name.isdigit()]


def remove_indexes(store: Store, versions: list[int]) -> None:
    """Remove item indexes."""
    files, root = fsspec.core.url_to_fs(f"{store.root}/item_index")
    for version in versions:
        files.rm(f"{root}/{version}", recursive=True)


def remove_version(tracking: Tracking, version: ModelVersion) -> None:
    """Remove a version first, so that nobody takes it up, and then what it consists of."""
    tracking.client.delete_model_version(version.name, str(version.version))
    if model_id := logged_model(version):
        remove_artifacts(tracking.client.get_logged_model(model_id).artifact_location)
        tracking.client.delete_logged_model(model_id)


def logged_model(version: ModelVersion) -> str | None:
    """The id of the model that a version shows: MLflow 3.17 tells it in the source alone."""
    found = re.fullmatch("models:/(m-[0-9a-f]+)", version.source or "")
    return found[1] if found else None


def remove_artifacts(address: str) -> None:
    """Remove files that MLflow itself would keep until its own `gc`; one that cannot remove them is told."""
    try:
        get_artifact_repository(address).delete_artifacts()
    except FileNotFoundError:
        return
    except (MlflowException, NotImplementedError, OSError) as error:
        log.warning("cannot remove %s: %s; `mlflow gc` can", address, error)


def checkpoints_of(site: TrainingSite) -> Any:
    """Where trainings keep their checkpoints: a folder a night."""
    return site.home / "checkpoints" / site.name


def old_checkpoints(site: TrainingSite, first_kept: date) -> list[str]:
    """Nights with checkpoints of trainings that nobody will finish."""
    folder = checkpoints_of(site)
    return sorted(path.name for path in folder.glob("????-??-??") if path.name < str(first_kept))
