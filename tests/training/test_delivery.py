"""Metrics that waited on disk and came to harm."""

import pytest

from training import delivery

NOBODY = "http://127.0.0.1:1"


@pytest.fixture
def keep(tmp_path, monkeypatch):
    """Keep the metrics of a step, as if the server were away; their file."""

    def kept(step):
        with monkeypatch.context() as away:
            away.setattr(delivery, "deliver", lambda file, uri: None)
            delivery.post(tmp_path, NOBODY, "run", {"train_loss": 0.5}, step)
        return tmp_path / delivery.FOLDER / "run.jsonl"

    return kept


def test_a_line_that_a_crash_has_cut_short_costs_no_other_line(keep, caplog):
    keep(1)
    file = keep(2)
    file.write_text(file.read_text()[:-20])
    assert [line.step for line in delivery.read(keep(3))] == [1, 3]
    assert "a line is damaged" in caplog.text


@pytest.mark.parametrize("content", [b"", b"\xff\xfe{", b"{}\n[1]\n5\n"])
def test_a_damaged_file_stops_no_command(keep, tmp_path, content):
    keep(1).write_bytes(content)
    delivery.deliver_all(tmp_path, NOBODY)
