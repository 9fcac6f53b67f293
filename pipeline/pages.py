"""HTML pages that open offline: a template beside the code that fills it, around it what all pages share (page.html).

Writes  reports/NAME.html under the site's home
"""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from pipeline.durable import write_whole
from pipeline.errors import kind_of, reason_of


def render(template: Path, **values: Any) -> str:
    """The page; jinja escapes every value that is not markup of our own."""
    folders = [template.parent, Path(__file__).parent]
    return Environment(loader=FileSystemLoader(folders), autoescape=True).get_template(template.name).render(**values)


def write_page(file: Path, page: str) -> Path:
    """Put a page in its place in one instant; return where it lies. An error of ours where that cannot be written."""
    try:
        write_whole(file, page.encode())
    except OSError as error:
        raise kind_of(error)(
            f"cannot write {file}: {reason_of(error)}. Make room, or set NIGHTJAR_HOME to another folder"
        ) from error
    return file
