"""Records of JSON Lines, block by block: one object a line, columns are paths into it."""

import json
import re
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from pipeline.errors import ConfigurationError
from pipeline.raw_columns import id_columns, raw_name
from pipeline.separated_text import readable
from pipeline.settings import Source

STEP = re.compile(r"""(?:^|\.)([^.\[\]]+)|\[(\d+)\]|\.?\["([^"]+)"\]|\.?\['([^']+)'\]""")


class JsonLines:
    """What turns blocks of text into records."""

    def __init__(self, source: Source) -> None:
        self.ids = id_columns(source)
        self.paths = {name: json_path(name) for name in source.named_columns}

    def parse(self, text: bytes, is_end: bool) -> tuple[pl.DataFrame, bytes]:
        """The records of a text, numbered from 1, and what is left of it: the beginning of a line."""
        if is_end and text and not text.endswith(b"\n"):
            text += b"\n"
        cut = text.rfind(b"\n") + 1
        line = pl.col("line")
        lines = as_lines(readable(text[:cut])).select(line.str.strip_chars()).filter(line != "")
        is_object = line.str.starts_with("{") & line.str.json_path_match("$").is_not_null()
        read = lines.select(
            "line",
            *(line.str.json_path_match(path).alias(raw_name(name)) for name, path in self.paths.items()),
            is_object=is_object.fill_null(False),
        )
        is_good = pl.col("is_object") & ~pl.any_horizontal(is_rounded(raw_name(name)) for name in self.ids)
        records = read.select(
            *map(raw_name, self.paths),
            record=pl.int_range(1, pl.len() + 1),
            fault=pl.when(~is_good).then(pl.lit("unparsable_row")),
            fields=pl.when("is_object").then("line").otherwise(pl.struct("line").struct.json_encode()),
        )
        return records, text[cut:]


def is_rounded(column: str) -> pl.Expr:
    """Whether an id is a number that is not told as the line has it: it has a fraction or too many digits."""
    is_float = pl.col(column).str.contains(r"^-?\d+(\.\d+)?(e[+-]?\d+)?$") & pl.col(column).str.contains(r"[.e]")
    return (is_float & ~pl.col("line").str.contains(pl.col(column), literal=True)).fill_null(False)


def as_lines(text: bytes) -> pl.DataFrame:
    """A text as a column of lines, without a copy of it."""
    ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n")) + 1
    offsets = np.concatenate(([0], ends)).astype(np.int64)
    lines = pa.LargeStringArray.from_buffers(len(ends), pa.py_buffer(offsets), pa.py_buffer(text))
    return pl.DataFrame({"line": pl.from_arrow(lines)})


def json_steps(name: str) -> list[str | int]:
    """The keys and places that a name like `context.page.id`, `items[0].id` or `["a.b"].c` goes through."""
    steps: list[str | int] = []
    place = 0
    while place < len(name):
        found = STEP.match(name, place)
        if found is None or (found[1] is not None and name[place] != "." and place):
            raise ConfigurationError(
                f"{name!r} is no path into a JSON object; write keys with dots between them, places as [0], "
                'and a key that holds a dot or a bracket as ["a.b"]'
            )
        key, index, double, single = found.groups()
        steps.append(int(index) if index is not None else key or double or single)
        place = found.end()
    return steps


def json_path(name: str) -> str:
    """The same as a JSON path in which every key is quoted."""
    return "$" + "".join(f"[{step}]" if isinstance(step, int) else quoted(step) for step in json_steps(name))


def quoted(key: str) -> str:
    """A key in the quotes that it does not hold itself."""
    mark = '"' if "'" in key else "'"
    return f"[{mark}{key}{mark}]"


def in_fields(column: str) -> list[pl.Expr]:
    """A column of the log as the `fields` of a rejected row tell it: by its name, and by the path that the name is."""
    paths = ("$" + quoted(column), json_path(column))
    return [pl.col("fields").str.json_path_match(path).str.strip_chars() for path in paths]


def json_types(lines: list[str], source: Source) -> dict[str, str]:
    """The type of each mapped path in the first line that has it: text, number, bool, list or object."""
    found: dict[str, str] = {}
    for line in lines:
        try:
            told = json.loads(line)
        except ValueError:
            continue
        for name in source.named_columns:
            value = follow(told, json_steps(name))
            if name not in found and value is not None:
                found[name] = type_name(value)
    return {name: found[name] for name in source.named_columns if name in found}


def follow(value: Any, steps: list[str | int]) -> Any:
    """What lies at the end of a path; None if it ends before."""
    for step in steps:
        if isinstance(step, int):
            value = value[step] if isinstance(value, list) and step < len(value) else None
        else:
            value = value.get(step) if isinstance(value, dict) else None
    return value


def type_name(value: Any) -> str:
    """JSON's word for a value's type."""
    names = {bool: "bool", int: "number", float: "number", str: "text", list: "list", dict: "object"}
    return names[type(value)]
