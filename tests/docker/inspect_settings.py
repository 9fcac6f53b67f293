"""Prints which of the given Airflow variables name no option, and what DAG files import that servers do not have."""

import json
import re
import sys
from importlib import import_module
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

from airflow.configuration import conf
from airflow.dag_processing.importers import get_importer_registry
from airflow.sdk import DAG  # noqa: F401 (what it loads, Airflow has)
from packaging.requirements import Requirement

already = set(sys.modules)
for file in get_importer_registry().list_dag_files("dags", safe_mode=True):
    import_module(f"dags.{Path(file).stem}")

PREFIX = re.compile(r"AIRFLOW__([A-Z0-9_]+?)__([A-Z0-9_]+)")
variables, installed = json.loads(sys.argv[1])


def is_option(variable):
    """Whether Airflow, or one of its installed providers, has an option of that name."""
    section, option = (part.lower() for part in PREFIX.fullmatch(variable).groups())
    if section == "celery_broker_transport_options":  # handed on to the broker as they are
        return True
    return option in conf.configuration_description.get(section, {}).get("options", {})


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(requirements):
    """The distributions that come with some requirements."""
    found, waiting = set(), [Requirement(text) for text in requirements]
    while waiting:
        wanted = waiting.pop()
        for extra in wanted.extras | {""}:
            if wanted.marker and not wanted.marker.evaluate({"extra": extra}):
                continue
            if (normal(wanted.name), extra) in found:
                continue
            found.add((normal(wanted.name), extra))
            for text in distribution(wanted.name).requires or []:
                needed = Requirement(text)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    waiting.append(Requirement(str(needed).split(";")[0]))
    return {name for name, _ in found}


owners = packages_distributions()
modules = {name.partition(".")[0] for name in set(sys.modules) - already}
imported = {normal(owner) for module in modules for owner in owners.get(module, [])}
print()
print(
    json.dumps(
        {
            "unknown": [variable for variable in variables if not is_option(variable)],
            "missing": sorted(imported - closure(installed) - {"nightjar"}),
        }
    )
)
