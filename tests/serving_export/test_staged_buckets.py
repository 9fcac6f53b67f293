"""What an export had staged before it was killed, and came to harm before the next one."""

import shutil
from pathlib import Path

import polars as pl
import pytest

from pipeline.publish import Store
from serving_export.staged_buckets import Progress
from serving_export.tables import TRIGGERS

COUNTS = {"users": 1, "rows": 1}


@pytest.fixture
def progress(tmp_path):
    """An export with two finished buckets of a row each."""
    store = Store(str(tmp_path))
    progress = Progress(store, ["inputs"])
    for bucket in (0, 1):
        row = {"user_bucket": bucket, "user_id": "u", "trigger": "viewed_again", "rank": 1, "item_id": "a"}
        rows = pl.DataFrame([row]).join(TRIGGERS.empty(), on=list(row), how="left")
        progress.write(bucket, {TRIGGERS.name: store.stage(TRIGGERS, rows)}, COUNTS)
    return progress


def test_a_bucket_that_is_as_it_was_written_is_taken(progress):
    staged = progress.read(0, [TRIGGERS])
    assert staged is not None
    assert staged.counts == COUNTS


def test_a_staged_file_with_flipped_bytes_is_made_again(progress):
    (file,) = Path(progress.store.table_uri(TRIGGERS.name), "user_bucket=0").iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(bytes(content))
    assert progress.read(0, [TRIGGERS]) is None
    assert progress.read(1, [TRIGGERS]) is not None


def test_a_record_that_was_changed_or_is_another_buckets_is_not_taken(progress):
    shutil.copy(progress.address(0), progress.address(1))
    assert progress.read(1, [TRIGGERS]) is None
    file = Path(progress.address(0))
    file.write_text(file.read_text().replace('"users": 1', '"users": 7'))
    assert progress.read(0, [TRIGGERS]) is None
    file.write_text("[]")
    assert progress.read(0, [TRIGGERS]) is None
