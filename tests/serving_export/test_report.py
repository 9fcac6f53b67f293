import json
import re
import shutil
from html.parser import HTMLParser

import polars as pl
import pytest

from pipeline.forget import remove_pages
from pipeline.tables import ITEMS
from serving_export.quality import RULES
from serving_export.report import write_report
from serving_export.tables import LIST_CHECKS, RECOMMENDATIONS

ATTACK = "<script>alert('x')</script>"


class Reader(HTMLParser):
    """What a browser would see."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href") and value]

    def handle_data(self, data):
        self.words.append(data.strip())


@pytest.fixture(scope="module")
def shop(tmp_path_factory, served_shop, write_site):
    """A copy of two nights in which every item is titled to break the page."""
    home = tmp_path_factory.mktemp("report") / "home"
    shutil.copytree(served_shop.home / "store", home / "store")
    shutil.copy(served_shop.home / "mlflow.db", home / "mlflow.db")
    shop = write_site(home)
    items = shop.store.scan(ITEMS).collect()
    days = items["snapshot_date"].unique().to_list()
    titled = items.with_columns(title=pl.format("{} " + ATTACK, "item_id"), category=pl.lit('"><img src=x>'))
    shop.store.replace(ITEMS, titled, {"snapshot_date": days})
    return shop


@pytest.fixture(scope="module")
def page(shop) -> str:
    return write_report(shop.site, shop.store, shop.days[4]).read_text(encoding="utf-8")


def test_it_loads_nothing_and_runs_nothing(page):
    seen = Reader(page)
    assert "script" not in seen.tags
    assert seen.links, "there are pictures"
    assert [link[:40] for link in seen.links if not link.startswith("data:image/png;base64,")] == []
    assert re.findall(r"url\(|@import|https?://(?!www\.w3\.org)", page) == []
    assert any(ATTACK in text for text in seen.words), "the title is there, as text"


def test_it_tells_data_models_lists_and_users(page, shop):
    words = " ".join(Reader(page).words)
    release = shop.store.scan(RECOMMENDATIONS).collect()
    assert f"{shop.days[4]}" in words
    for told in ("gru", "popularity", "passed", "held", *(rule for rule in RULES if rule != "fallback_share")):
        assert told in words, told
    users = [user for user in release["user_id"].unique() if user in words]
    assert len(users) == 10
    best = release.filter((pl.col("user_id") == users[0]) & (pl.col("rank") == 1))["item_id"][0]
    assert f"{best} {ATTACK}" in words
    assert "±" in words
    assert page.count("data:image/png") == 6


def test_lists_that_were_refused_are_told(shop):
    day = shop.days[5]
    bad = {"data_through": day, "channel": "home", "rule": "items_unseen", "value": 3.0, "low": None, "high": 0.0}
    rows = pl.DataFrame([bad | {"held": False}], schema=dict(LIST_CHECKS.columns))
    shop.store.replace(LIST_CHECKS, rows, {"data_through": [day]})
    words = " ".join(filter(None, Reader(write_report(shop.site, shop.store, day).read_text()).words))
    assert "No lists were published for this day" in words
    assert "No model was trained for this day" in words
    assert "broken home items_unseen" in words


def test_the_command_says_where_the_page_lies(shop, command):
    code, out, err = command(shop.home, "report", "--site", shop.file, "--date", shop.days[4])
    assert code == 0, err
    assert json.loads(out)["page"] == str(shop.home / "reports" / "report-small-2026-03-05.html")
    code, out, err = command(shop.home, "report", "--site", shop.file, "--date", "2020-01-01")
    assert (code, out) == (2, "")
    assert "the store knows nothing of 2020-01-01" in err


def test_forgetting_a_user_removes_the_pages_of_the_site(shop):
    pages = shop.home / "reports"
    write_report(shop.site, shop.store, shop.days[4])
    (pages / "compare-small-2026-03-05.html").touch()
    (pages / "report-other-2026-03-05.html").touch()
    remove_pages(shop.site, [])
    assert {file.name for file in pages.iterdir()} == {"compare-small-2026-03-05.html", "report-other-2026-03-05.html"}
