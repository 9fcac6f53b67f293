"""What changed in the columns of raw files from one delivery to the next: new ones, missing ones, other types."""

import json

import polars as pl

from pipeline.raw_columns import TEXT_LIKE_FLOATS, about_float_ids, id_columns
from pipeline.raw_log import raw_columns
from pipeline.settings import Source

NO_IDS = ("bool", "list", "object", "Boolean")


def tell_columns(files: pl.DataFrame, source: Source) -> pl.DataFrame:
    """Files (with `path`) with `columns`: names and types as JSON, null where a file tells none."""
    found = [raw_columns(path, source) for path in files["path"]]
    told = [json.dumps(columns, ensure_ascii=False) if columns else None for columns in found]
    return files.with_columns(columns=pl.Series(told, dtype=pl.String))


def column_changes(new: pl.DataFrame, known: pl.DataFrame) -> list[str]:
    """A line for each column in which a new file differs from its own earlier state, or from the delivery before it.

    Both frames have delivery_date, path and columns. A file that is like any one of that delivery differs in nothing.
    """
    keys = ("delivery_date", "path", "columns")
    told = (
        pl.concat([known.select(keys), new.select(keys)]).drop_nulls("columns").unique().sort("delivery_date", "path")
    )
    changes: list[str] = []
    for day, path, columns in new.select(keys).drop_nulls("columns").sort("delivery_date", "path").rows():
        before = known.filter(pl.col("path") == path)["columns"].drop_nulls()
        if before.is_empty():
            earlier = told.filter(pl.col("delivery_date") < day)
            before = earlier.filter(pl.col("delivery_date") == pl.col("delivery_date").max())["columns"]
        if len(before) and columns not in before.to_list():
            changes += differences(path.rsplit("/", 1)[-1], json.loads(columns), json.loads(before[-1]))
    return changes


def differences(name: str, now: dict[str, str], before: dict[str, str]) -> list[str]:
    """How the columns of a file differ from those before; their order does not count."""
    return [
        *(f"{name}: column {column!r} is new" for column in now if column not in before),
        *(f"{name}: column {column!r} is missing" for column in before if column not in now),
        *(
            f"{name}: column {column!r} is now {kind}, was {before[column]}"
            for column, kind in now.items()
            if before.get(column, kind) != kind
        ),
    ]


def odd_ids(new: pl.DataFrame, source: Source) -> list[str]:
    """A line for each column of a new file that should hold ids and holds what is none, or what a tool has changed."""
    lines: list[str] = []
    for path, columns in new.select("path", "columns").drop_nulls("columns").sort("path").rows():
        kinds, name = json.loads(columns), path.rsplit("/", 1)[-1]
        for column in id_columns(source):
            kind = kinds.get(column, "")
            if kind == TEXT_LIKE_FLOATS:
                lines.append(about_float_ids(name, column))
            elif kind in NO_IDS:
                lines.append(
                    f"{name}: column {column!r} holds values of the type {kind}, which are no ids; such rows are "
                    "rejected as unparsable_row. Map a column (of JSON a path, like user.id) that holds text or whole "
                    "numbers"
                )
    return lines
