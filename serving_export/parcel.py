"""What is sent out of the store: some channels of one release, in one of two forms, in parts of bounded size.

rows      a row per user, channel and rank: the columns of `recommendations`, and the release's facts
nested    a row per user and channel: `items` is a list of item_id, score, source and because, best first
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl
import pyarrow.compute as pc

from serving_export.reader import SHOWN, Recommendations, nested

Form = Literal["rows", "nested"]
ROWS_AT_ONCE = 200_000
COLUMNS = ("user_id", "channel", "rank", "item_id", "score", "source", "because", "session_id")
NESTED = ("user_id", "channel", "session_id", "items")


@dataclass(frozen=True)
class Parcel:
    """Channels of a release on their way out."""

    site: str
    lists: Recommendations
    channels: tuple[str, ...]
    form: Form
    is_whole: bool = True
    """Whether these are all channels of the release."""

    @property
    def facts(self) -> dict[str, Any]:
        """What the release was made from, and the version of the table."""
        return {name: self.lists.facts[name] for name in (*SHOWN, "table_version")}

    @property
    def columns(self) -> tuple[str, ...]:
        """Of every part."""
        return (*(NESTED if self.form == "nested" else COLUMNS), *SHOWN)

    def parts(self) -> Iterator[pl.DataFrame]:
        """All rows in order of buckets and users; a user's rows come together. An empty release has one empty part."""
        parts = self.flat_parts() if self.form == "rows" else map(in_lists, self.flat_parts())
        for part in parts:
            yield part.with_columns(**{name: pl.lit(self.facts[name], pl.String) for name in SHOWN}).select(
                self.columns
            )

    def flat_parts(self) -> Iterator[pl.DataFrame]:
        """The rows as the table has them, in parts that end where a user's rows do."""
        is_ours = pc.field("channel").isin(list(self.channels))
        schema = self.lists.dataset().schema
        empty = pl.DataFrame(schema.empty_table()).select(COLUMNS)
        num_parts = 0
        for fragment in self.lists.dataset().get_fragments():
            rest = empty
            for batch in fragment.to_batches(schema=schema, columns=list(COLUMNS), filter=is_ours):
                rest = pl.concat([rest, pl.DataFrame(batch)])
                if rest.height >= ROWS_AT_ONCE:
                    is_last = pl.col("user_id") == pl.col("user_id").last()
                    yield rest.filter(~is_last)
                    rest, num_parts = rest.filter(is_last), num_parts + 1
            if rest.height:
                yield rest
                num_parts += 1
        if not num_parts:
            yield empty


def in_lists(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows as one row a user and channel."""
    return nested(rows).collect()


def items_as_json(part: pl.DataFrame) -> pl.DataFrame:
    """Nested rows with `items` as JSON, for targets that know no lists; rows of the other form stay as they are."""
    if "items" not in part.columns:
        return part
    wrapped = pl.struct("items").struct.json_encode()
    return part.with_columns(items=wrapped.str.strip_prefix('{"items":').str.strip_suffix("}"))


def pack(site: str, lists: Recommendations, channel: str | None, form: Form) -> Parcel:
    """One channel of a release, or all. Raises LookupError for a channel that the release does not have."""
    if channel is not None:
        lists.channel(channel)
        return Parcel(site, lists, (channel,), form, is_whole=False)
    names = lists.facts.get("quality") or lists.rows().select(pl.col("channel").unique()).collect()["channel"]
    return Parcel(site, lists, tuple(sorted(names)), form)
