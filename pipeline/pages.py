"""HTML pages that open offline: a template beside the code that fills it, around it what all pages share (page.html).

Writes  reports/NAME.html under the site's home
"""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from pipeline.errors import ConfigurationError


def render(template: Path, **values: Any) -> str:
    """The page; jinja escapes every value that is not markup of our own."""
    folders = [template.parent, Path(__file__).parent]
    return Environment(loader=FileSystemLoader(folders), autoescape=True).get_template(template.name).render(**values)


def write_page(file: Path, page: str) -> Path:
    """Put a page in its place in one instant; return where it lies. ConfigurationError where that cannot be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(".part")
        unfinished.write_text(page, encoding="utf-8")
        unfinished.replace(file)
    except OSError as error:
        raise ConfigurationError(
            f"cannot write {file}: {error.strerror}. Set NIGHTJAR_HOME to another folder"
        ) from error
    return file
