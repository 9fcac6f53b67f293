"""The list of visitors who are to be forgotten (users, and anonymous sessions), and what ingest does with their rows.

The list holds a hash of each visitor, never the id. A row of theirs is counted as rejected for the reason `forgotten`,
on the day it would be booked on otherwise, and nothing of it is kept but its place in the raw file.
"""

import polars as pl

from pipeline.errors import RetryableError
from pipeline.ids import stable_id, visitor
from pipeline.normalise import text
from pipeline.privacy import NO_TEXT
from pipeline.publish import Store
from pipeline.settings import PipelineSite
from pipeline.tables import FORGOTTEN

REASON = "forgotten"


def forgotten_users(store: Store, version: int | None = None) -> pl.Series:
    """Who is to be forgotten: hashes as `hash_of` makes them."""
    return store.scan(FORGOTTEN, version).select("user").collect().to_series()


def hash_of(visitor: pl.Expr) -> pl.Expr:
    """How the list names a visitor; no other id of ours is made this way."""
    return stable_id(pl.lit(REASON), visitor)


def check_nobody_forgotten(pinned: Store) -> None:
    """Raise RetryableError if the list changed since the store was pinned: rows that were read may be theirs.

    Steps on other machines than that of `nightjar forget` call this just before they publish what names visitors.
    """
    if pinned.newest_version(FORGOTTEN) != pinned.version(FORGOTTEN):
        raise RetryableError(
            "somebody was forgotten while this step was at work, and it may have read rows of theirs. Nothing was "
            "published; run it again"
        )


def without_text(records: pl.DataFrame, users: pl.Series) -> pl.DataFrame:
    """Raw records; once anyone is to be forgotten, without the text of unparsable rows: it may name them."""
    if users.is_empty():
        return records
    is_unparsable = pl.col("fault").eq_missing(pl.lit("unparsable_row"))
    return records.with_columns(fields=pl.when(is_unparsable).then(pl.lit(NO_TEXT)).otherwise("fields"))


def blank_rejected(rejected: pl.DataFrame, records: pl.DataFrame, users: pl.Series, site: PipelineSite) -> pl.DataFrame:
    """Rows that normalise rejected, with nothing in those of forgotten users and in those whose text is not kept."""
    kept = rejected.with_columns(fields=pl.when(pl.col("fields") != NO_TEXT).then("fields"))
    if users.is_empty():
        return kept
    columns = site.source.columns
    named = visitor(text(columns.user_id), text(columns.session_id))
    theirs = records.filter(hash_of(named).is_in(users.implode())).select("source_file", "record")
    marked = kept.join(theirs.with_columns(is_theirs=True), on=["source_file", "record"], how="left")
    return blank(marked, pl.col("is_theirs").fill_null(False)).drop("is_theirs")


def part_forgotten(
    accepted: pl.DataFrame, refused: pl.DataFrame, users: pl.Series
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Move the rows of forgotten users from the accepted to the refused ones, and blank them there."""
    if users.is_empty():
        return accepted, refused
    is_theirs = hash_of(pl.col("visitor")).is_in(users.implode())
    moved = pl.concat([refused, accepted.filter(is_theirs)], how="diagonal_relaxed")
    return accepted.filter(~is_theirs), blank(moved, is_theirs)


def blank(rejected: pl.DataFrame, is_theirs: pl.Expr) -> pl.DataFrame:
    """Rejected rows; those that belong to a forgotten user say so, and nothing else."""
    return rejected.with_columns(
        reason=pl.when(is_theirs).then(pl.lit(REASON)).otherwise("reason"),
        detail=pl.when(~is_theirs).then("detail"),
        fields=pl.when(~is_theirs).then("fields"),
    )
