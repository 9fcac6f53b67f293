import os
from pathlib import Path

import polars as pl
import pytest

from pipeline.durable import write_whole
from pipeline.publish import Store
from pipeline.tables import SITE


def test_what_is_written_whole_replaces_what_was_there_and_leaves_nothing_aside(tmp_path):
    target = tmp_path / "folder/page.html"
    for content in (b"old", b"new"):
        write_whole(target, content)
    assert target.read_bytes() == b"new"
    assert [*target.parent.iterdir()] == [target]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the system does not name open files")
def test_a_commit_is_synced_after_the_files_and_folders_that_it_names(tmp_path, monkeypatch):
    synced: list[str] = []
    fsync = os.fsync

    def watch(handle: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{handle}").readlink()).removeprefix(f"{tmp_path}/site"))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watch)
    facts = {"name": "shop", "buckets": 2, "user_id_secret": None}
    Store(str(tmp_path)).replace(SITE, pl.DataFrame([facts], schema=dict(SITE.columns)), {})
    file = next(path for path in synced if path.endswith(".parquet"))
    order = [file, "", "/_delta_log/00000000000000000001.json", "/_delta_log"]
    places = [len(synced) - 1 - synced[::-1].index(path) for path in order]
    assert places == sorted(places)
