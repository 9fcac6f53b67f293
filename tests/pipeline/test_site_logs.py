"""Our site files of public logs, over a few made-up rows in the form of each log."""

import gzip
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from nightjar import Site
from pipeline.catalogue import latest_items, update_items
from pipeline.ingest import ingest
from pipeline.privacy import known_as
from pipeline.publish import Store, open_store
from pipeline.sessionize import sessionize_stale
from pipeline.site_file import load_site
from pipeline.tables import REJECTED, events_table, sessions_table

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A site file of ours, its log below a folder of its own."""
    monkeypatch.setenv("NIGHTJAR_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("NIGHTJAR_USER_ID_SECRET", "not much of a secret, but it is long enough")
    return lambda name: load_site(CONF / f"{name}.yaml", Site, tmp_path / "home")


def write(folder: Path, name: str, *lines: str) -> None:
    path = folder / "data" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))


def take(site: Site, day: date) -> tuple[dict[str, Any], Store]:
    store = open_store(site)
    counts = ingest(site, store, day)
    sessionize_stale(site, store, day)
    return counts, store


def test_entree_chicago(tmp_path, load):
    again = "02/Feb/1997:23:59:59 \th1.example\t0\t633N\t9L\t9L\t17"
    lines = [again, "02/Feb/1997:23:59:59 \t10.0.0.9\t5A\t1S\t-1", "02/Feb/1997:09:00:00 \th1.example\t0\t9M\t7"]
    bad = ["02/Feb/1997:09:00 \th2\t0\t9M\t7", "02/Feb/1997:09:00:00 \th2\t0\t9Z\t7", "02/Feb/1997:09:00:00 \th2\t0\t7"]
    write(tmp_path, "entree_chicago/session/session.1997-Q1.gz", *lines, *bad)
    write(tmp_path, "entree_chicago/session/session.1997-Q2.gz", again, "short")
    write(
        tmp_path, "entree_chicago/data/chicago.txt.gz", "0000009\tMade Up Diner\t001 002", "0000017\tNo Such Cafe\t003"
    )
    site, day = load("entree_chicago"), date(1997, 2, 2)
    counts, store = take(site, day)
    assert (counts["rows_read"], counts["events"], counts["duplicates"]) == (12, 5, 3)
    assert counts["rejected"] == {"bad_time": 1, "missing_item": 1, "unknown_event_type": 1, "unparsable_row": 1}
    sessions = store.scan(sessions_table(["entry"])).sort("started_at", "item_ids").collect()
    assert sessions.select("visitor", "item_ids", "event_types", "session_date").rows() == [
        (known_as(site, "h1.example"), ["0000009"], ["cheaper"], day),
        (known_as(site, "10.0.0.9"), ["0000001"], ["quieter"], day),
        (known_as(site, "h1.example"), ["0000633", "0000009", "0000009"], ["nicer", "browse", "browse"], day),
    ]
    assert sessions["offsets_seconds"].to_list()[2] == pytest.approx([0, 1e-6, 2e-6])
    update_items(site, store, day)
    written = pl.concat(
        [store.scan(table).select(pl.all().cast(pl.String)) for table in (events_table(["entry"]), REJECTED)],
        how="diagonal",
    )
    assert not [row for row in written.collect().rows() if "h1.example" in str(row) or "10.0.0.9" in str(row)]
    titles = latest_items(store, day).select("item_id", "title").drop_nulls().rows()
    assert sorted(titles) == [("0000009", "Made Up Diner"), ("0000017", "No Such Cafe")]


def test_online_retail(tmp_path, load):
    header = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country"
    rows = [
        '900001,11111A,"CUP, BLUE",6,2011-03-04 08:26:00,2.5,10001.0,Nowhere',
        "900001,22222,PLATE,1,2011-03-04 08:26:00,1.0,10001.0,Nowhere",
        "900001,22222,PLATE,1,2011-03-04 08:26:00,1.0,10001.0,Nowhere",
        "900002,22222,PLATE,1,2011-03-04 08:26:00,1.0,,Nowhere",
        "C900003,22222,PLATE,-1,2011-03-05 09:00:00,1.0,10001.0,Nowhere",
        "900004,POST,POSTAGE,1,2011-03-05 09:00:00,18.0,10001.0,Nowhere",
        "900004,m,Manual,1,2011-03-05 09:00:00,18.0,10001.0,Nowhere",
        "900004,POSTER,A POSTER,1,2011-03-05 09:00:00,18.0,10001.0,Nowhere",
        "900005,22222,lost,-9,2011-03-05 09:00:00,0.0,,Nowhere",
        "900006,22222,PLATE,1,2011-03-05 09:00:00,0.0,10001.0,Nowhere",
    ]
    write(tmp_path, "online_retail/online_retail.csv.gz", header, *rows)
    counts, store = take(load("online_retail"), date(2011, 3, 4))
    assert (counts["rows_read"], counts["events"], counts["duplicates"]) == (10, 4, 1)
    assert counts["rejected"] == {"cancelled": 1, "free": 1, "not_a_product": 2, "stock_adjustment": 1}
    assert store.scan(REJECTED).select(pl.col("event_date").unique()).collect().item() == date(2011, 3, 5)
    sessions = store.scan(sessions_table([])).select("visitor", "user_id", "num_events").sort("visitor").collect()
    assert sessions.rows() == [(" session:900002", None, 1), ("10001.0", "10001.0", 2)]


def test_globo_news(tmp_path, load):
    header = "user_id,session_id,session_start,session_size,click_article_id,click_timestamp,click_environment"
    rows = [
        "1,150,1506830000000,3,77,1506830400026,4,1,17,1,25,2",
        "1,150,1506830000000,3,78,1506830430026,4,1,17,1,25,2",
        "1,150,1506830000000,3,79,1509800000000,4,1,17,1,25,2",  # weeks late
    ]
    name = "globo_news/clicks/clicks_hour_000.csv.gz"
    write(tmp_path, name, f"{header},click_deviceGroup,click_os,click_country,click_region,click_referrer_type", *rows)
    write(tmp_path, "globo_news/articles_ids.csv.gz", "article_id;category_id", "77;5")
    counts, store = take(load("globo"), date(2017, 10, 1))
    assert (counts["rows_read"], counts["events"], counts["rejected"]) == (3, 3, {})
    days = store.scan(events_table([])).select("event_date").collect()["event_date"].sort().to_list()
    assert days == [date(2017, 10, 1), date(2017, 10, 1), date(2017, 11, 4)]
    sessions = store.scan(sessions_table([])).select("session_date", "num_events").collect()
    assert sessions.rows() == [(date(2017, 10, 1), 2)]  # the late click is a session of its own, on its own day
