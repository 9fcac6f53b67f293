"""Shows site files that no DAG can be made of as an import error in Airflow.

It has no DAG of its own on purpose: Airflow takes away all DAGs of a file with an import error, and the other sites'
DAGs are in nightly.py.
"""

from dags.site_files import conf_folder, read_site_files


def check() -> None:
    """Raise ValueError with every fault of every site file."""
    faults = read_site_files(conf_folder()).faults
    if faults:
        raise ValueError("\n".join(["these sites have no nights until their files are mended:", *faults.values()]))


check()
