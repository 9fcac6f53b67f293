"""What holds for the files of the page without a browser; test_page_in_a_browser.py uses the page."""

import re
import subprocess
from pathlib import Path

import playwright
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from serving_export.online.page import FILES, add_page

MODULES = sorted(FILES.glob("*.js"))
TEXTS = sorted(file for file in FILES.iterdir() if file.suffix in {".html", ".css", ".js"})
NODE = Path(playwright.__file__).parent / "driver" / "node"


@pytest.fixture(scope="module")
def client():
    app = FastAPI()
    add_page(app)
    return TestClient(app)


def test_the_page_may_load_and_run_nothing_but_its_own_files(client):
    answer = client.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.split(maxsplit=1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy.pop("default-src") == "'none'"
    assert policy.pop("require-trusted-types-for") == "'script'"  # the browser itself refuses innerHTML and its like
    assert set(policy.values()) == {"'none'", "'self'"}
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"


def test_a_browser_asks_each_time_whether_a_file_has_changed(client):
    for path in ("/", "/static/page.js"):
        first = client.get(path)
        assert first.headers["cache-control"] == "no-cache"
    again = client.get("/static/page.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.headers["cache-control"]) == (304, "no-cache")


def test_every_file_that_is_named_is_sent_with_its_type(client):
    page = (FILES / "page.html").read_text()
    named = {Path(name).name for name in re.findall(r'(?:href|src)="static/([^"]+)"', page)}
    imported = {name for module in MODULES for name in re.findall(r'from "\./([^"]+)"', module.read_text())}
    assert named | imported | {"page.html"} == {file.name for file in FILES.iterdir()}
    types = {name: client.get(f"/static/{name}").headers["content-type"] for name in named | imported}
    kinds = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}
    assert types == {name: kinds[Path(name).suffix] for name in types}
    assert client.get("/static/../page.py").status_code == client.get("/static/%2e%2e/page.py").status_code == 404


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: file.name)
def test_no_file_turns_text_into_markup_or_names_another_place(file):
    markup = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function|\sstyle=|\son\w+="
    assert re.findall(rf"{markup}|https?:|url\(|@import", file.read_text()) == []


def test_every_element_that_the_scripts_ask_for_is_in_the_page():
    ids = set(re.findall(r'\bid="([^"]+)"', (FILES / "page.html").read_text()))
    asked = {name for module in MODULES for name in re.findall(r'(?:\bat|\bchosen)\("([\w-]+)"\)', module.read_text())}
    assert len(asked) > 20
    assert asked - ids == set()


@pytest.mark.parametrize("module", MODULES, ids=lambda file: file.name)
def test_scripts_are_whole(module):
    command = [str(NODE), "--input-type=module", "--check"]
    told = subprocess.run(command, input=module.read_text(), capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
