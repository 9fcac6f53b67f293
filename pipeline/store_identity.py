"""Which store this is: models and runs carry its id, because several stores of one site name may share an MLflow.

The id is the one that Delta gave the table `site` when the store was made. Rewriting the table keeps it, a store that
is moved keeps it, and a copy of a store has the same one: a restored backup goes on with its models.
"""

from dataclasses import dataclass

from pipeline.errors import ConfigurationError
from pipeline.publish import Store
from pipeline.settings import PipelineSite
from pipeline.tables import SITE


@dataclass(frozen=True)
class StoreIdentity:
    """A store's id and when it was made."""

    id: str
    root: str
    made_at: int
    """Milliseconds since 1970."""


def store_identity(site: PipelineSite) -> StoreIdentity:
    """The identity of the site's store; raises ConfigurationError where there is none."""
    store = Store(site.resolve(site.store))
    table = store.open(SITE)
    if table is None:
        raise ConfigurationError(
            f"there is no store at {store.root}, so it is not known which models of {site.name} are its own. Run "
            f"`nightjar run` for the site first, or set NIGHTJAR_HOME, now {site.home.absolute()}"
        )
    metadata = table.metadata()
    return StoreIdentity(str(metadata.id), store.root, metadata.created_time or 0)
