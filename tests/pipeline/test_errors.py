import os
import sqlite3
from pathlib import Path

import polars as pl
import pytest

from pipeline.errors import ConfigurationError, RetryableError, is_disk_full, kind_of, reason_of


def raised(action):
    try:
        action()
    except Exception as error:
        return error
    pytest.fail("nothing was raised")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize("by_polars", [True, False], ids=["rust", "python"])
def test_a_full_disk_is_known_where_polars_keeps_only_the_text(by_polars):
    rows = pl.DataFrame({"a": range(100_000)})

    def write():
        if by_polars:
            rows.write_parquet("/dev/full")
        with Path("/dev/full").open("wb") as file:
            rows.write_parquet(file)

    error = raised(write)
    assert is_disk_full(error)
    assert kind_of(error) is RetryableError


def test_a_cause_counts_as_well_as_the_exception_itself():
    def wrap():
        try:
            raise OSError(5, os.strerror(5))
        except OSError as error:
            raise ValueError("it did not work") from error

    assert kind_of(raised(wrap)) is RetryableError
    assert not is_disk_full(raised(wrap))


def test_what_stays_as_it_is_is_not_tried_again(tmp_path):
    assert kind_of(raised(lambda: (tmp_path / "none").read_text())) is ConfigurationError
    assert kind_of(ValueError("a number")) is ConfigurationError


def test_a_locked_database_may_be_free_later(tmp_path):
    file = tmp_path / "a.db"
    holder, other = sqlite3.connect(file), sqlite3.connect(file, timeout=0)
    holder.execute("create table t (a)")
    holder.execute("begin exclusive")
    assert kind_of(raised(lambda: other.execute("select * from t"))) is RetryableError


def test_a_reason_is_one_line_without_the_libraries_decoration():
    text = "Generic error\n     \x1b[31m↳\x1b[0m No such file (os error 2)\n   0: <unknown>\n   1: start_thread\n"
    assert reason_of(OSError(text)) == "Generic error No such file (os error 2)"
