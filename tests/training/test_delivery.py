"""Metrics that waited on disk and came to harm."""

from training.delivery import FOLDER, deliver_all, post


def wait(home, monkeypatch):
    """Metrics of two calls, kept because the server is away; their file."""
    monkeypatch.setattr("training.delivery.deliver", lambda file: None)
    for step in (1, 2):
        post(home, "http://127.0.0.1:1", "run", {"train_loss": 0.5}, step)
    monkeypatch.undo()
    return home / FOLDER / "run.jsonl"


def test_a_line_that_a_crash_has_cut_short_costs_no_other_line(tmp_path, monkeypatch, caplog):
    from training.delivery import read

    file = wait(tmp_path, monkeypatch)
    file.write_text(file.read_text()[:-20])
    post_again = file.read_text().count("uri")
    assert post_again == 2
    monkeypatch.setattr("training.delivery.deliver", lambda file: None)
    post(tmp_path, "http://127.0.0.1:1", "run", {"train_loss": 0.25}, 3)
    assert [line.step for line in read(file)] == [1, 3]
    assert "a line is damaged" in caplog.text


def test_a_damaged_file_stops_no_command(tmp_path, monkeypatch, caplog):
    file = wait(tmp_path, monkeypatch)
    for content in (b"", b"\xff\xfe{", b"{}\n[1]\n5\n"):
        file.write_bytes(content)
        deliver_all(tmp_path, "http://127.0.0.1:1")
    assert "a line is damaged" in caplog.text
