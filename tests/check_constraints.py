"""Whether constraints.txt still answers pyproject.toml: every requirement is pinned, and its pin is allowed."""

import re
import sys
import tomllib
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent


def read_pins() -> dict[str, list[Requirement]]:
    """The lines of constraints.txt, by package."""
    pins: dict[str, list[Requirement]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            pins.setdefault(normal(pin.name), []).append(pin)
    return pins


def normal(name: str) -> str:
    """A package's name in the form that compares."""
    return re.sub(r"[-_.]+", "-", name).lower()


def faults() -> list[str]:
    """What does not fit, a line each."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    pins, found = read_pins(), []
    for requirement in map(Requirement, wanted):
        if normal(requirement.name) == normal(project["name"]):
            continue
        here = [
            p
            for p in pins.get(normal(requirement.name), [])
            if not p.marker or p.marker.evaluate(default_environment())
        ]
        versions = [spec.version for pin in here for spec in pin.specifier]
        if not versions:
            found.append(f"{requirement.name} is not pinned")
        elif not requirement.specifier.contains(versions[0], prereleases=True):
            found.append(f"{requirement} does not allow the pin {versions[0]}")
    paths = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "file:" in line or "/" in line]
    return found + [f"a path or address in constraints.txt: {line}" for line in paths]


if __name__ == "__main__":
    problems = faults()
    for problem in problems:
        sys.stderr.write(f"constraints.txt: {problem}. Run `make constraints`\n")
    sys.exit(bool(problems))
