"""A whole site in a bucket: raw files, side table and store, on a local stand-in for S3."""

import gzip
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from typing import Any

import fsspec
import polars as pl
import pytest

from pipeline.catalogue import update_items
from pipeline.errors import ConfigurationError, NightjarError, RetryableError
from pipeline.ingest import ingest
from pipeline.publish import Store, open_store
from pipeline.sessionize import sessionize_stale
from pipeline.settings import PipelineSite
from pipeline.tables import DAYS, ITEMS, REJECTED, events_table, sessions_table
from pipeline.validate import validate_stale

DAY = date(2026, 3, 1)
ROWS = [f"u{n % 5},i{n % 7},2026-03-01T{n % 24:02}:00:00Z" for n in range(60)]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where the stand-in listens."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(address: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A bucket of the test's own; credentials and address come from the environment only."""
    told = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    name = request.node.originalname.replace("_", "-")[:40]
    fsspec.filesystem("s3").mkdir(name)
    return f"s3://{name}"


def make_site(bucket: str, **changes: Any) -> PipelineSite:
    source = {
        "events": f"{bucket}/raw/clicks-{{date}}*",
        "columns": {"user_id": "user", "item_id": "item", "occurred_at": "time"},
    }
    items = {"path": f"{bucket}/items.csv", "columns": {"item_id": "id", "title": "title"}}
    values = {"name": "shop", "store": f"{bucket}/store", "buckets": 2, "source": source, "items": items}
    return PipelineSite.model_validate(values | changes)


def put(address: str, content: bytes) -> None:
    with fsspec.open(address, "wb") as file:
        file.write(content)


def deliver(bucket: str) -> None:
    """Three files of three formats, one of them cut, and a side table."""
    text = "\n".join(["user,item,time", *ROWS[:40], "bad", ""])
    put(f"{bucket}/raw/clicks-2026-03-01-a.csv.gz", gzip.compress(text.encode()))
    cells = [row.split(",") for row in ROWS[40:]]
    typed = pl.DataFrame(cells, schema=["user", "item", "time"], orient="row")
    put(f"{bucket}/raw/clicks-2026-03-01-b.jsonl", typed[:10].write_ndjson().encode())
    with fsspec.open(f"{bucket}/raw/clicks-2026-03-01-c.parquet", "wb") as file:
        typed[10:].write_parquet(file)
    put(f"{bucket}/raw/clicks-2026-03-01-d.csv.gz", gzip.compress(text.encode())[:-40])
    put(f"{bucket}/items.csv", b"id,title\ni0,Nought\n")


def take_in(bucket: str) -> tuple[PipelineSite, Store, dict[str, Any]]:
    deliver(bucket)
    site = make_site(bucket)
    store = open_store(site)
    counts = ingest(site, store, DAY)
    update_items(site, store, DAY)
    sessionize_stale(site, store, DAY)
    return site, store, counts


def test_raw_files_in_a_bucket_become_sessions_in_the_bucket(bucket):
    _, store, counts = take_in(bucket)
    assert counts["rows_read"] == counts["events"] + counts["duplicates"] + sum(counts["rejected"].values())
    assert counts["files"] == 4
    assert counts["rejected"]["truncated_file"] == 1
    assert store.scan(events_table([])).collect().height == counts["events"] == len(set(ROWS))
    assert store.scan(REJECTED).collect()["source_file"].str.starts_with(f"{bucket}/raw/clicks-").all()
    assert store.scan(ITEMS).filter(pl.col("item_id") == "i0").collect()["title"].item() == "Nought"
    assert store.scan(sessions_table([])).select(pl.col("num_events").sum()).collect().item() == counts["events"]
    assert all(path.startswith(bucket.removeprefix("s3://")) for path in fsspec.filesystem("s3").find(bucket))


@pytest.mark.slow
def test_a_day_in_a_bucket_is_validated(bucket, tmp_path):
    site, store, _ = take_in(bucket)
    site = site.model_copy(update={"home": tmp_path})
    assert validate_stale(site, store, DAY)["verdict"] == "passed"
    assert store.scan(DAYS).collect()["verdict"].to_list() == ["passed"]


def test_of_writers_at_one_moment_each_commits_or_is_refused_and_nothing_is_lost(bucket):
    """S3 has no rename: a commit is a put that fails if the log's next entry is there already."""
    store = Store(f"{bucket}/store")
    day_of = [date(2026, 3, 1 + n) for n in range(8)]
    store.replace(DAYS, DAYS.empty(), {"event_date": day_of})

    def write(day: date) -> None:
        store.replace(DAYS, pl.DataFrame([{"event_date": day}], schema=dict(DAYS.columns)), {"event_date": [day]})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, day_of))
    assert sorted(store.scan(DAYS).collect()["event_date"]) == day_of
    assert store.version(DAYS) == 9


def test_a_store_that_cannot_be_reached_is_named(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(
        RetryableError, match=rf"cannot read {bucket}/store/site: .*are the credentials in the environment"
    ):
        open_store(make_site(bucket))


def test_a_bucket_without_raw_files_is_no_input(bucket):
    site = make_site(bucket)
    with pytest.raises(
        NightjarError, match=rf"no input for 2026-03-01: no file matches {bucket}/raw/clicks-2026-03-01"
    ):
        ingest(site, open_store(site), DAY)


def test_a_missing_bucket_is_named(bucket):
    site = make_site(f"{bucket}-gone")
    with pytest.raises(NightjarError, match=f"{bucket}-gone"):
        open_store(site)


def test_raw_files_that_cannot_be_listed_are_named(bucket, tmp_path, monkeypatch):
    site = make_site(bucket, store=str(tmp_path / "store"))
    store = open_store(site)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(RetryableError, match=rf"cannot list {bucket}/raw/.*: Unable to locate credentials"):
        ingest(site, store, DAY)


def test_a_store_that_no_library_knows_says_what_to_install(bucket):
    site = make_site("gs://somewhere", store=f"{bucket}/store")
    with pytest.raises(RetryableError, match=r"cannot list gs://.* Is the library installed \(extras s3, gs, az\)"):
        ingest(site, open_store(site), DAY)


def test_an_address_of_no_object_store_is_refused(bucket):
    site = make_site("nosuch://somewhere", store=f"{bucket}/store")
    with pytest.raises(ConfigurationError, match="nosuch:// is no scheme of an object store; write s3://"):
        ingest(site, open_store(site), DAY)
