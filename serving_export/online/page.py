"""The page at `/`: files beside this module, sent as they are, under a policy that lets nothing else load or run."""

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles

FILES = Path(__file__).with_name("static")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
FRESH = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
"""A browser asks each time whether a file has changed, so that it never mixes those of two versions."""


class FreshFiles(StaticFiles):
    """The parts of the page."""

    def file_response(self, *arguments: Any, **named: Any) -> Response:
        """A file, or that it has not changed."""
        response = super().file_response(*arguments, **named)
        response.headers.update(FRESH)
        return response


def add_page(app: FastAPI) -> None:
    """Let an app answer `/` with the page, and `/static/…` with its parts."""
    app.mount("/static", FreshFiles(directory=FILES))

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        headers = {**FRESH, "Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer"}
        return FileResponse(FILES / "page.html", headers=headers)
