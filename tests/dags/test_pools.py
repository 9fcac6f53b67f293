"""Pools of a folder of site files, in an Airflow database of their own."""

import json
import subprocess
import sys

from dags.pools import main, named_pools

SITES = {
    "shop": "name: shop\nschedule: {gpu_pool: big}\n",
    "mail": "name: mail\nschedule: {gpu_pool: big}\n",
    "plain": "name: plain\n",
    "small": "name: small\nschedule: {gpu_steps: [], gpu_pool: never_used}\n",
    "broken": "name: 4\n",
}


def test_pools_of_sites_without_gpu_steps_are_not_asked_for(write_sites):
    assert named_pools(write_sites(**SITES)) == {"big": ["mail", "shop"], "gpu": ["plain"]}


def test_missing_pools_are_named_made_once_and_then_there(airflow_environment, airflow_home, write_sites):
    calls = "import json, dags.pools as p; print(json.dumps([p.main(a) for a in (['--check'], [], [], ['--check'])]))"
    ended = subprocess.run(
        [sys.executable, "-c", calls],
        env=airflow_environment | {"NIGHTJAR_CONF": str(write_sites(**SITES))},
        capture_output=True,
        text=True,
        check=True,
    )
    said = [line for line in ended.stderr.splitlines() if "pool" in line]
    assert json.loads(ended.stdout.splitlines()[-1]) == [2, 0, 0, 0]
    assert said[0].startswith("there is no pool 'big', so tasks of mail, shop would never start; make it with")
    assert said[1].startswith("there is no pool 'gpu', so tasks of plain would never start")
    assert said[2:] == ["made the pool 'big' with 1 slot", "made the pool 'gpu' with 1 slot"]


def test_another_option_is_refused(capsys):
    assert main(["--chekc"]) == 2
    assert capsys.readouterr().err == "usage: python -m dags.pools [--check]\n"
