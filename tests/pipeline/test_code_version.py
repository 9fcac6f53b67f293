import subprocess

import pytest

from pipeline import code_version as module
from pipeline.code_version import UNKNOWN, code_version, commit_of


@pytest.fixture
def repository(tmp_path):
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "code.py").write_text("1")
    git("add", ".")
    git("commit", "-qm", "first")
    return tmp_path, git("rev-parse", "HEAD")


def test_a_repository_tells_its_commit_and_whether_files_were_changed(repository):
    folder, commit = repository
    assert commit_of(folder) == commit
    (folder / "code.py").write_text("2")
    assert commit_of(folder) == f"{commit}-dirty"


def test_code_that_only_lies_in_a_repository_of_someone_has_no_commit(repository):
    folder, _ = repository
    (folder / "site-packages").mkdir()
    assert commit_of(folder / "site-packages") == UNKNOWN


def test_an_image_says_its_commit(monkeypatch):
    monkeypatch.setenv(module.COMMIT_FROM, "0123abc")
    assert code_version.__wrapped__()["code_commit"] == "0123abc"
