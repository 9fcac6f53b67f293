"""Which code is at work: what releases and runs are told, so that it can be found again."""

import os
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parent.parent
COMMIT_FROM = "NIGHTJAR_COMMIT"
"""The environment variable that says the commit where the code lies without its repository, as in an image."""
UNKNOWN = "unknown"


@cache
def code_version() -> dict[str, str]:
    """`nightjar`: the package's version; `code_commit`: the commit, with `-dirty` behind it if files were changed."""
    return {"nightjar": metadata.version("nightjar"), "code_commit": os.environ.get(COMMIT_FROM) or commit_of(ROOT)}


def commit_of(folder: Path) -> str:
    """The commit of a folder that is a repository of its own; `unknown` for one that only lies in someone's."""
    if not (folder / ".git").exists():
        return UNKNOWN
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git, or a repository that it does not trust
        return UNKNOWN
    return told or UNKNOWN
