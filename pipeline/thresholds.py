"""What limits for bots would cut, told from the raw files of a day before anything is ingested; writes nothing."""

import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.bots import measure, suggest
from pipeline.ingest import parse, read_aside, split_duplicates
from pipeline.normalise import event_id
from pipeline.raw_files import find_files
from pipeline.settings import Bots, PipelineSite


def suggest_thresholds(site: PipelineSite, day: date) -> list[dict[str, Any]]:
    """Per measure and quantile a limit, and how many visitors and what share of the day's events it would cut.

    All rows count that could be events, those of present bots too; of a log with delivery days, those that happened on
    the day itself.
    """
    unjudged = site.model_copy(update={"source": site.source.model_copy(update={"bots": Bots()})})
    only = [day] if site.source.is_dated else None
    with tempfile.TemporaryDirectory(prefix="nightjar-thresholds-") as folder:
        aside = Path(folder)
        parse(unjudged, find_files(site, day), aside, users=pl.Series(dtype=pl.String), only=only)
        days = [measured(unjudged, bucket) for bucket in sorted(aside.glob("candidates-*"))]
    return suggest(pl.concat(days), site.source.bots) if days else []


def measured(site: PipelineSite, bucket: Path) -> pl.DataFrame:
    """The measures of a bucket's visitors, exact duplicates left out."""
    unique, _ = split_duplicates(read_aside(bucket).with_columns(event_id=event_id(site.source.context)))
    return measure(unique)
