"""What a site's nights tell other DAGs: two assets, whose events have the day as partition key."""

from airflow.sdk import Asset

from dags.site_files import SiteHead


def sessions(site: SiteHead) -> Asset:
    """The sessions of a day have passed validation."""
    return Asset(name=f"{site.name}_sessions", uri=f"x-nightjar://{site.name}/sessions")


def recommendations(site: SiteHead) -> Asset:
    """The lists of a day are published."""
    return Asset(name=f"{site.name}_recommendations", uri=f"x-nightjar://{site.name}/recommendations")
