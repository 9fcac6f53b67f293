"""The pools that site files name: `python -m dags.pools` makes the missing ones, with `--check` it names them.

Airflow leaves a task whose pool does not exist `scheduled` for ever, and tells only the scheduler's log. Run this where
Airflow's database can be reached: before Airflow starts, and after a site file has named a new pool. A pool that
exists keeps its slots: `airflow pools set gpu 4 "steps on the GPU"` for four GPUs.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

from dags.site_files import conf_folder, read_site_files

SLOTS = 1
DESCRIPTION = "nightjar: steps on the GPU"


def named_pools(conf: Path) -> dict[str, list[str]]:
    """Pool -> the sites that name it, of all site files of a folder that can be read."""
    pools: dict[str, list[str]] = {}
    for site in read_site_files(conf).sites.values():
        if site.schedule.gpu_steps:
            pools.setdefault(site.schedule.gpu_pool, []).append(site.name)
    return pools


def existing_pools() -> set[str]:
    """The pools in Airflow's database."""
    from airflow.models.pool import Pool

    return {pool.pool for pool in Pool.get_pools()}


def make_pools(names: Iterable[str]) -> None:
    """Add pools of one slot to Airflow's database."""
    from airflow.models.pool import Pool

    for name in names:
        Pool.create_or_update_pool(name, SLOTS, DESCRIPTION, include_deferred=False)


def main(arguments: list[str]) -> int:
    """Exit code 0 when every pool exists, 2 when --check finds one that does not."""
    if arguments not in ([], ["--check"]):
        sys.stderr.write("usage: python -m dags.pools [--check]\n")
        return 2
    existing = existing_pools()
    missing = {name: sites for name, sites in named_pools(conf_folder()).items() if name not in existing}
    if not arguments:
        make_pools(missing)
        sys.stderr.writelines(f"made the pool {name!r} with {SLOTS} slot\n" for name in missing)
        return 0
    for name, sites in missing.items():
        sys.stderr.write(
            f"there is no pool {name!r}, so tasks of {', '.join(sites)} would never start; make it with "
            f'`python -m dags.pools`, or `airflow pools set {name} {SLOTS} "{DESCRIPTION}"`\n'
        )
    return 2 if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
