"""Read a site file: YAML with ${VARIABLE:-default}, checked key by key.

A misspelt key is an error that names the key, the file and the nearest right key.
"""

import difflib
import hashlib
import os
import re
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pipeline.errors import ConfigurationError
from pipeline.site_yaml import parse, read_text

SiteT = TypeVar("SiteT", bound=BaseModel)
VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def load_site(path: Path, model: type[SiteT], home: Path) -> SiteT:
    """The site of a file as `model`; relative paths hang from `home`.

    Raises ConfigurationError: the file is missing, is no YAML, or says something that `model` does not allow.
    """
    try:
        text, raw = read_text(path)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"cannot read the site file {path}: {getattr(error, 'strerror', error)}. "
            "Give --site a file like conf/demo.yaml"
        ) from error
    try:
        content = parse(expand_variables(text, path), text)
    except ValueError as error:
        raise ConfigurationError(f"{path} is not a valid site file:\n  {error}") from error
    return check_content(content, path, model, home, hashlib.sha256(raw).hexdigest())


def check_content(content: dict[Any, Any], path: Path, model: type[SiteT], home: Path, digest: str = "") -> SiteT:
    """The site that the keys and values of a file describe. Raises ConfigurationError, which names the key."""
    if "home" in content:
        raise ConfigurationError(f"{path}: `home` is not set here; set the environment variable NIGHTJAR_HOME")
    if "file_sha256" in content:
        raise ConfigurationError(f"{path}: `file_sha256` is not set here; it is measured")
    try:
        return model.model_validate(content | {"home": home, "file_sha256": digest})
    except ValidationError as error:
        raise ConfigurationError(describe(error, path, model)) from error
    except ConfigurationError as error:
        raise ConfigurationError(f"{path} is not a valid site file:\n  {error}") from error


def expand_variables(text: str, path: Path) -> str:
    """`${NAME}` and `${NAME:-default}` replaced from the environment."""

    def value(match: re.Match[str]) -> str:
        name, default = match.groups()
        found = os.environ.get(name) or default
        if found is None:
            raise ConfigurationError(
                f"{path} uses ${{{name}}}, which is not set. Set it, or write ${{{name}:-default}}"
            )
        return found

    return VARIABLE.sub(value, text)


def describe(error: ValidationError, path: Path, model: type[BaseModel]) -> str:
    """All faults of a site file, a line each."""
    lines = [describe_fault(fault, model) for fault in error.errors()]
    return f"{path} is not a valid site file:\n" + "\n".join(f"  {line}" for line in lines)


def describe_fault(fault: Any, model: type[BaseModel]) -> str:
    """One fault: the key's place, what is wrong, and the nearest right key for a misspelt one."""
    place = ".".join(str(part) for part in fault["loc"])
    if fault["type"] != "extra_forbidden":
        message = fault["msg"].removeprefix("Value error, ")
        return f"{place}: {message}" if place else message
    known = known_keys(model, fault["loc"][:-1])
    nearest = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
    hint = f"did you mean `{nearest[0]}`?" if nearest else f"known keys: {', '.join(known)}"
    return f"{place}: unknown key; {hint}"


def known_keys(model: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    """The keys that may stand at a place of the file."""
    section: Any = model
    for part in place:
        if isinstance(part, int):  # a place in a list, whose members are what the field before said
            continue
        field = getattr(section, "model_fields", {}).get(part)
        section = next((t for t in candidates(field.annotation) if hasattr(t, "model_fields")), None) if field else None
    return [name for name in getattr(section, "model_fields", {}) if name not in ("home", "file_sha256")]


def candidates(annotation: Any) -> list[Any]:
    """An annotation's types, with those inside unions and containers."""
    inner = getattr(annotation, "__args__", ())
    return [annotation, *(found for part in inner for found in candidates(part))]
