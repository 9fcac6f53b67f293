import sys
import urllib.request

import pytest

from dags import shop_pages as pages
from dags.ports import LOOPBACK
from dags.shop_pages import serve_command, shop_pages, sites_with_lists, those_up


@pytest.fixture
def sites(tmp_path, write_sites):
    """Five sites: two with lists, one before its first night, one far away, and one whose file is broken."""
    for store in ("store/shop", "elsewhere"):
        (tmp_path / "home" / store / "recommendations" / "_delta_log").mkdir(parents=True)
    return tmp_path / "home", write_sites(
        shop="name: shop\nstore: store/shop\n",
        other=f"name: other\nstore: {tmp_path / 'home' / 'elsewhere'}\n",
        young="name: young\nstore: store/young\n",
        far="name: far\nstore: s3://bucket/far\n",
        bad="name: bad\nstore: store/shop\nschedule: {x: 1}\n",
    )


def test_sites_whose_lists_lie_on_this_machine_are_served(sites):
    home, conf = sites
    assert sites_with_lists(home, conf) == {"shop": conf / "shop.yaml", "other": conf / "other.yaml"}


def test_an_endpoint_is_told_to_listen_on_loopback_only(tmp_path):
    command = serve_command(tmp_path / "shop.yaml", 8600)
    assert command[1:4] == ["serve", "--site", str(tmp_path / "shop.yaml")]
    assert command[4:] == ["--host", LOOPBACK, "--port", "8600"]


def test_an_endpoint_that_ends_is_told_and_the_others_answer(sites, tmp_path, monkeypatch, capsys):
    home, conf = sites

    def stand_in(file, port):
        program = ["-m", "http.server", "--bind", LOOPBACK, str(port)] if file.stem == "shop" else ["-c", "0/0"]
        return [sys.executable, *program]

    monkeypatch.setattr(pages, "serve_command", stand_in)
    with shop_pages(home, conf, tmp_path / "logs") as started:
        assert {page.site for page in started} == {"shop", "other"}
        [up] = those_up(started, seconds=120)
        assert up.site == "shop"
        with urllib.request.urlopen(up.address) as answer:
            assert answer.status == 200
    told = capsys.readouterr().err
    assert "other is not served: serve-other ended by itself with exit code 1" in told
    assert "ZeroDivisionError" in told
