"""Let an earlier champion stand again, or a later one that was rolled back from.

The aliases `champion` and `serving` move, and every version that became champion after it is tagged `withdrawn`, with
its refits: no step takes those up again until a rollback to one of them removes the tag.
"""

from typing import Any

from mlflow.entities.model_registry import ModelVersion

from pipeline.errors import ConfigurationError
from pipeline.terminal import log
from training.settings import TrainingSite
from training.tracking import WITHDRAWN, Tracking, newest, number


def rollback_model(site: TrainingSite, to: int | None = None) -> dict[str, Any]:
    """Make an earlier champion, by default the one before the newest, stand and serve; return from which to which.

    `to` is a version that was champion, or a refit of one, which then serves. Where it stands already the aliases and
    tags are set once more and nothing changes, so that a rollback that was killed can be run again. Raises
    ConfigurationError where there is no such version, or where it cannot be loaded any more.
    """
    tracking = Tracking(site)
    versions = tracking.versions(withdrawn=True)
    standing, served = tracking.champion(), tracking.by_alias("serving")
    if standing is None:
        raise ConfigurationError(f"{site.name} has no champion yet: there is nothing to roll back from")
    champions = sorted((v for v in versions if v.tags.get("promoted")), key=rank)
    serving = choose(site, champions, versions, standing, to)
    champion = parent_of(serving, versions)
    tracking.load(serving)  # a version whose files are gone is refused before anything moves
    left = withdraw(tracking, versions, champions, champion, serving)
    tracking.set_alias("champion", number(champion))
    tracking.set_alias("serving", number(serving))
    log.info(
        "version %d (%s, promoted %s) is champion instead of version %d; version %d serves. Withdrawn: %s. To undo "
        "this: --to %d. Published lists stay as they are: `nightjar rollback recommendations` takes them back, "
        "`nightjar export` makes new ones",
        *(number(champion), champion.tags["recipe"], champion.tags["promoted"], number(standing), number(serving)),
        ", ".join(map(str, left)) or "none",
        number(served or standing),
    )
    moved_from = (number(standing), number(served) if served else None)
    return {
        "changed": moved_from != (number(champion), number(serving)),
        "from_champion": number(standing),
        "from_serving": number(served) if served else None,
        "champion": number(champion),
        "serving": number(serving),
        "withdrawn": left,
    }


def rank(version: ModelVersion) -> tuple[str, int]:
    """The order in which champions came."""
    return version.tags["promoted"], number(version)


def parent_of(version: ModelVersion, versions: list[ModelVersion]) -> ModelVersion:
    """The champion that a version is a refit of, or the version itself."""
    return next((v for v in versions if str(v.version) == version.tags.get("parent_version")), version)


def choose(
    site: TrainingSite,
    champions: list[ModelVersion],
    versions: list[ModelVersion],
    standing: ModelVersion,
    to: int | None,
) -> ModelVersion:
    """The version that is to serve."""
    told = ", ".join(str(number(v)) for v in champions)
    if to is None:
        newest_champion = max([*champions, standing], key=rank_of_champion)
        taken_back = {number(newest_champion), *(number(v) for v in champions if WITHDRAWN in v.tags)}
        earlier = [v for v in champions if number(v) not in taken_back]
        if not earlier:
            raise ConfigurationError(
                f"{site.name}: no version was champion before version {number(newest_champion)}; champions were {told}"
            )
        return newest_refit(earlier[-1], versions)
    found = next((v for v in versions if number(v) == to), None)
    if found is None or parent_of(found, versions).tags.get("promoted") is None:
        raise ConfigurationError(
            f"{site.name}: version {to} was never champion nor a refit of one; champions were {told}"
        )
    return found if found.tags["kind"] == "refit" else newest_refit(found, versions)


def rank_of_champion(champion: ModelVersion) -> tuple[str, int]:
    """The place of a champion among all that there were; one that was promoted by hand comes last."""
    return rank(champion) if champion.tags.get("promoted") else ("9999", number(champion))


def newest_refit(champion: ModelVersion, versions: list[ModelVersion]) -> ModelVersion:
    """The state in which a champion would serve now."""
    refits = [v for v in versions if v.tags.get("parent_version") == str(champion.version)]
    return newest([champion, *refits]) or champion


def withdraw(
    tracking: Tracking,
    versions: list[ModelVersion],
    champions: list[ModelVersion],
    champion: ModelVersion,
    serving: ModelVersion,
) -> list[int]:
    """Tag what came after a champion and what serves of it, and no other version; return what is tagged."""
    later = {str(v.version) for v in champions if rank(v) > rank(champion)}
    siblings = [v for v in versions if v.tags.get("parent_version") == str(champion.version)]
    newer = {number(v) for v in siblings if number(v) > number(serving) != number(champion)}
    gone = {number(v) for v in versions if str(v.version) in later or v.tags.get("parent_version") in later} | newer
    for version in versions:
        name, told = tracking.model_name, str(version.version)
        if number(version) in gone:
            tracking.client.set_model_version_tag(name, told, WITHDRAWN, f"for version {number(serving)}")
        elif WITHDRAWN in version.tags:
            tracking.client.delete_model_version_tag(name, told, WITHDRAWN)
    return sorted(gone)
