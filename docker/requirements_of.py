"""Print what some extras of pyproject.toml need, a line each, without what the package itself needs: `… EXTRA...`."""

import sys
import tomllib
from pathlib import Path

extras = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
for extra in sys.argv[1:]:
    sys.stdout.writelines(f"{requirement}\n" for requirement in extras[extra])
