"""Which raw files were delivered for a day, and which of them are new to the store.

A file is known by its content and by the rules it was judged by: settings of `source`, and, where unknown items are
rejected, the side table of its day. When either changes, the next ingest of its delivery day reads it again.
"""

import hashlib
from collections.abc import Iterator
from datetime import date

import fsspec
import polars as pl

from pipeline.errors import ConfigurationError, RetryableError, kind_of, reason_of
from pipeline.raw_log import log_format
from pipeline.settings import PipelineSite, Source
from pipeline.tables import FILES

RAW_FILE = {name: FILES.columns[name] for name in ("delivery_date", "path", "size", "sha256", "judged_by", "columns")}
CHUNK_BYTES = 32 * 2**20  # raw bytes (mostly packed) read at a time


def find_files(site: PipelineSite, day: date) -> pl.DataFrame:
    """The raw files delivered for a day; what `columns` they have is told for new ones only, later.

    Without `{date}` in the path a file belongs to the day on which its present content was first found.
    """
    pattern = site.resolve(site.source.events.replace("{date}", day.isoformat()))
    paths = sorted(expand(pattern))
    if not paths and not site.source.is_dated:
        raise ConfigurationError(f"no file matches {pattern} (source.events). {where_from(site)}")
    if not paths:
        raise ConfigurationError(
            f"no input for {day}: no file matches {pattern}. Wait for the delivery; "
            f"if {day} really had no events, deliver an empty file. {where_from(site)}"
        )
    rules = rules_digest(site, day)
    facts = [(day, path, *size_and_digest(path, "source.events"), rules, None) for path in paths]
    return pl.DataFrame(facts, schema=RAW_FILE, orient="row")


def rules_digest(site: PipelineSite, day: date) -> str:
    """What else than its content decides on the rows of a file of `day`."""
    told = [site.source.model_dump_json(exclude={"events"}, exclude_defaults=True), site.time_zone]
    if site.items is not None and site.items.unknown == "reject":
        told += [size_and_digest(path, "items.path")[1] for path in side_table_files(site, day)]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


def side_table_files(site: PipelineSite, day: date) -> list[str]:
    """Where the side table of a day lies. Raises ConfigurationError where there is none."""
    if site.items is None:
        return []
    pattern = site.resolve(site.items.path.replace("{date}", day.isoformat()))
    paths = sorted(expand(pattern))
    if not paths:
        raise ConfigurationError(
            f"no file matches {pattern} (items.path); the items of {day} are told by it. Deliver it, or mend "
            f"`items` in the site file. {where_from(site)}"
        )
    return paths


def where_from(site: PipelineSite) -> str:
    """What relative paths hang from, said in every message about a missing file."""
    return f"Relative paths hang from NIGHTJAR_HOME, now {site.home.resolve()}"


def expand(pattern: str) -> list[str]:
    """Files that match a pattern, here or in an object store. Raises RetryableError where that does not answer."""
    if "://" not in pattern:
        files, path = fsspec.core.url_to_fs(pattern)
        return list(files.glob(path))
    if (scheme := pattern.partition("://")[0]) not in fsspec.available_protocols():
        raise ConfigurationError(f"{pattern}: {scheme}:// is no scheme of an object store; write s3://, gs:// or az://")
    try:
        files, path = fsspec.core.url_to_fs(pattern)
        return [files.unstrip_protocol(each) for each in files.glob(path)]
    except Exception as error:  # each store's library has its own; one that is not installed is an ImportError
        raise RetryableError(
            f"cannot list {pattern}: {error}. Is the library installed (extras s3, gs, az), is the store there, "
            "and are the credentials in the environment?"
        ) from error


def size_and_digest(path: str, key: str) -> tuple[int, str]:
    """A file's bytes and sha256; `key` of the site file named it."""
    try:
        with fsspec.open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return file.tell(), digest
    except OSError as error:
        raise kind_of(error)(f"cannot read {path}: {reason_of(error)}. Mend it, or {key}") from error


def compare(present: pl.DataFrame, known: pl.DataFrame, day: date) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Files that are new or changed, or judged by other rules, and files of this delivery that are no longer there."""
    named = known.join(present.select("path", now="sha256", rules="judged_by"), on="path")
    is_other = (pl.col("sha256") != pl.col("now")) | pl.col("judged_by").ne_missing(pl.col("rules"))
    settled = named.filter(~is_other.any().over("path"))
    changed = present.join(settled, on="path", how="anti")
    delivered = known.filter(pl.col("delivery_date") == day).select(RAW_FILE.keys())
    return changed, delivered.join(present, on="path", how="anti").unique("path", maintain_order=True)


def chunks(files: pl.DataFrame, source: Source) -> Iterator[pl.DataFrame]:
    """Files in groups of one delivery day, one format and about CHUNK_BYTES."""
    formats = pl.Series([log_format(path, source) for path in files["path"]], dtype=pl.String)
    number = pl.col("size").cum_sum() // CHUNK_BYTES
    keys = ("delivery_date", formats.alias("format"), number.alias("number"))
    for _, group in files.group_by(*keys, maintain_order=True):
        yield group
