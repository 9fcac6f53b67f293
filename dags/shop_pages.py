"""The endpoint of each site that has lists, with its page, beside the local Airflow: `nightjar serve` on loopback.

One that ends takes nothing with it: the nights go on.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dags.ports import LOOPBACK, StackError, claimed_port, wait_until_listening
from dags.processes import ServerEndedError, kept
from dags.site_files import SiteHead, read_site_files

FIRST_PORT = 8600


@dataclass(frozen=True)
class ShopPage:
    """An endpoint that comes up, or is there."""

    site: str
    port: int
    check: Callable[[], None]
    """Raises ServerEndedError once it has ended by itself."""

    @property
    def address(self) -> str:
        """Of its page."""
        return f"http://{LOOPBACK}:{self.port}"


@contextlib.contextmanager
def shop_pages(home: Path, conf: Path, logs: Path) -> Iterator[list[ShopPage]]:
    """Start an endpoint for each site of a folder of site files that has lists; they run until the block ends."""
    environment = {**os.environ, "NIGHTJAR_HOME": str(home)}
    with contextlib.ExitStack() as running:
        pages = []
        for name, file in sites_with_lists(home, conf).items():
            port = running.enter_context(claimed_port(FIRST_PORT))
            servers = {f"serve-{name}": serve_command(file, port)}
            pages.append(ShopPage(name, port, running.enter_context(kept(servers, environment, logs))))
        yield pages


def sites_with_lists(home: Path, conf: Path) -> dict[str, Path]:
    """Name -> site file, of the sites whose store on this machine holds published lists."""
    return {site.name: file for file, site in read_site_files(conf).sites.items() if has_lists(home, site)}


def has_lists(home: Path, site: SiteHead) -> bool:
    """Whether a site's store holds lists; one that is not on this machine is not looked at."""
    return isinstance(site.store, str) and (home / site.store / "recommendations" / "_delta_log").is_dir()


def serve_command(file: Path, port: int) -> list[str]:
    """What answers for a site."""
    nightjar = str(Path(sys.executable).with_name("nightjar"))
    return [nightjar, "serve", "--site", str(file), "--host", LOOPBACK, "--port", str(port)]


def those_up(pages: Iterable[ShopPage], seconds: float) -> Iterator[ShopPage]:
    """The pages that answer, each after a wait of `seconds` at most; why the others do not is told on stderr."""
    for page in pages:
        try:
            wait_until_listening(page.port, page.check, seconds)
        except (ServerEndedError, StackError) as error:
            sys.stderr.write(f"{page.site} is not served: {error}\n")
        else:
            yield page
