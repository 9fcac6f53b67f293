"""Records of JSON Lines, block by block: one object a line, columns are paths into it."""

import json
import re
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from pipeline.errors import ConfigurationError
from pipeline.raw_columns import Section, id_columns, raw_name, whole_number
from pipeline.separated_text import readable, white_lines_emptied, without_empty_lines
from pipeline.settings import Source

NUMBER = r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?"
NUMBER_ALONE = f"^({NUMBER})$"
COULD_BE_NO_ID = r"^(?:true$|false$|\[|\{|-?\d+[.e])"
"""How every JSON value begins that is neither text nor an integer, and some text too."""
ROUNDED_FROM = 10**15
"""From which whole number on the last digit of a JSON float is not always read as it stands."""
COULD_LOSE_DIGITS = r"\d{14}\.\d|\.(?:00|99)\d|\d[eE][-+]?\d"
"""Stands in every line with a number that reads as a whole one and is none: a float holds 15 digits."""
STEP = re.compile(r"""(?:^|\.)([^.\[\]]+)|\[(\d+)\]|\.?\["([^"]+)"\]|\.?\['([^']+)'\]""")


class JsonLines:
    """What turns blocks of text into records."""

    def __init__(self, source: Section) -> None:
        self.ids = id_columns(source)
        path = json_path if isinstance(source, Source) else key_path  # a side table is flat
        self.paths = {name: path(name) for name in source.named_columns}

    def parse(self, text: bytes, is_end: bool) -> tuple[pl.DataFrame, bytes]:
        """The records of a text, numbered from 1, and what is left of it: the beginning of a line."""
        if is_end and text and not text.endswith(b"\n"):
            text += b"\n"
        cut = text.rfind(b"\n") + 1
        line = pl.col("line")
        read = non_blank(as_lines(without_empty_lines(white_lines_emptied(readable(text[:cut]))))).select(
            "line",
            *(line.str.json_path_match(path).alias(raw_name(name)) for name, path in self.paths.items()),
            is_object=is_object(line),
        )
        ids = read.select(json_id(line, pl.col(raw_name(name)), self.paths[name]) for name in self.ids)
        has_odd_id = pl.any_horizontal(read[name].is_not_null() & ids[name].is_null() for name in ids.columns)
        records = read.with_columns(pl.coalesce(ids[name], name) for name in ids.columns).select(
            *map(raw_name, self.paths),
            record=pl.int_range(1, pl.len() + 1),
            fault=pl.when(~pl.col("is_object") | has_odd_id).then(pl.lit("unparsable_row")),
            fields=pl.when("is_object").then("line").otherwise(pl.struct("line").struct.json_encode()),
        )
        return records, text[cut:]


def non_blank(lines: pl.DataFrame) -> pl.DataFrame:
    """Lines without the white space around them, and only those that have anything else."""
    return lines.select(pl.col("line").str.strip_chars()).filter(pl.col("line") != "")


def is_object(line: pl.Expr) -> pl.Expr:
    """Whether a line is a JSON object. One that is nested more than 127 deep is not: nobody can read it safely."""
    return (line.str.starts_with("{") & line.str.json_path_match("$").is_not_null()).fill_null(False)


def json_id(line: pl.Expr, value: pl.Expr, path: str) -> pl.Expr:
    """An id from the value at a path of JSON lines: text as it is, a whole number by its digits; null for all else.

    1.0 and 1e0 are the id 1. A number that loses digits as a float is no id: two ids would become one. Most values are
    plainly text or integers; only the lines of others are looked at again.
    """
    is_unsure = value.str.contains(COULD_BE_NO_ID)
    is_text = pl.when(is_unsure).then(line).str.json_path_match(f"{path}[?(@ >= '')]").is_not_null()
    whole = whole_number(value.str.extract(NUMBER_ALONE).cast(pl.Float64, strict=False), ROUNDED_FROM)
    is_exact = ~loses_digits(pl.when(is_unsure & line.str.contains(COULD_LOSE_DIGITS)).then(line)).fill_null(False)
    return pl.when(is_text | ~is_unsure).then(value).when(is_exact).then(whole)


def loses_digits(line: pl.Expr) -> pl.Expr:
    """Whether any number of a line reads as a whole number and is none: a float holds 15 digits of it."""
    number = pl.element()
    as_float = number.cast(pl.Float64, strict=False)
    digits = number.str.replace(r"[eE].*$", "").str.replace_all(r"[-.]", "").str.len_bytes()
    is_near = (as_float - as_float.round()).abs() <= as_float.abs() * 1e-15
    is_rounded = is_near & (digits > 15) & ~number.str.contains(r"^-?\d+(\.0*)?$")
    is_rounded |= (as_float == 0) & number.str.contains(r"^[^eE]*[1-9]")  # too small for a float
    return line.str.extract_all(NUMBER).list.eval(is_rounded).list.any()


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


def key_path(key: str) -> str:
    """The JSON path of a key of the whole object."""
    return "$" + quoted(key)


def quoted(key: str) -> str:
    """A key in the quotes that it does not hold itself."""
    mark = '"' if "'" in key else "'"
    return f"[{mark}{key}{mark}]"


def in_fields(column: str) -> list[pl.Expr]:
    """An id column as the `fields` of a rejected row have it: by its name, and by the path that the name is."""
    fields = pl.col("fields")
    paths = (key_path(column), json_path(column))
    return [json_id(fields, fields.str.json_path_match(path), path).str.strip_chars() for path in paths]


def json_types(text: bytes, source: Source) -> dict[str, str]:
    """The type of each mapped path in the first line that has it: text, number, bool, list or object."""
    lines = non_blank(as_lines(readable(text + b"\n"))).filter(is_object(pl.col("line")))["line"]
    found: dict[str, str] = {}
    for line in lines:
        told = json.loads(line)
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
