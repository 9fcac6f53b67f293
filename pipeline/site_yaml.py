"""YAML of site files, within limits: a file that would crash or flood the reader is refused by its line.

Site files come from people and tools, and Airflow's processes read those of all sites again and again. Nesting is
counted on the parser's events, before anything is built: libyaml's composer recurses in C and ends the process when it
goes too deep. Aliases are counted by what they expand to.
"""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, NodeEvent
from yaml.nodes import MappingNode, Node

MOST_BYTES = 1_000_000
MOST_LEVELS = 50
MOST_NODES = 100_000
"""Keys, values and list members, those that aliases stand for counted each time."""
MERGE = "tag:yaml.org,2002:merge"
QUICK_AND_SAFE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""In C it takes a tenth of the time."""


def read_text(path: Path) -> tuple[str, bytes]:
    """A site file's text and bytes. Raises OSError, UnicodeDecodeError, or ValueError for one that is too large."""
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"it is larger than {MOST_BYTES:,} bytes, so it is no site file")
    return content.decode(), content


def parse(text: str) -> dict[Any, Any]:
    """The keys and values of a site file. Raises ValueError, in words that follow the file's name."""
    try:
        check_size(text)
        content = yaml.load(text, Loader=SiteLoader)
    except ConstructorError as error:
        place = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{place}{error.problem}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"it is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError("it must hold `key: value` lines, starting with `name:`")
    return content


def check_size(text: str) -> None:
    """Raise ValueError for more levels or nodes than a site file can need."""
    sizes: dict[str, int] = {}  # anchor -> nodes of its value
    open_nodes: list[tuple[str | None, int]] = []  # anchor of each open collection, and the count where it began
    num_nodes = 0
    for event in yaml.parse(text, Loader=QUICK_AND_SAFE):
        if isinstance(event, CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor is not None:
                sizes[anchor] = num_nodes - before
        elif isinstance(event, NodeEvent):
            is_alias = isinstance(event, AliasEvent)
            if is_alias and any(anchor == event.anchor for anchor, _ in open_nodes):
                raise ValueError(f"{line_of(event)}: the alias *{event.anchor} stands inside of what it names")
            before, num_nodes = num_nodes, num_nodes + (sizes.get(event.anchor or "", 1) if is_alias else 1)
            if isinstance(event, CollectionStartEvent):
                open_nodes.append((event.anchor, before))
            elif event.anchor is not None and not is_alias:
                sizes[event.anchor] = 1
            if len(open_nodes) > MOST_LEVELS:
                raise ValueError(f"{line_of(event)}: it is nested deeper than {MOST_LEVELS} levels")
            if num_nodes > MOST_NODES:
                raise ValueError(f"{line_of(event)}: it holds more than {MOST_NODES:,} values, aliases expanded")


def line_of(part: Any) -> str:
    """Where an event or a node of the parser begins."""
    return f"line {part.start_mark.line + 1}"


class SiteLoader(QUICK_AND_SAFE):  # type: ignore[misc]  # chosen at run time
    """Plain values only; a key that stands twice in one section is an error."""

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        """PyYAML's own constructors raise what their Python functions raise, as for the date 2026-99-99."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, AttributeError, KeyError, TypeError, OverflowError) as error:
            what = str(node.tag).rsplit(":", 1)[-1]
            raise ConstructorError(None, None, f"{str(node.value)[:40]!r} is no {what}", node.start_mark) from error

    def flatten_mapping(self, node: MappingNode) -> None:
        """Check the keys as they are written: a key may replace one that `<<` brings."""
        lines: dict[Hashable, int] = {}
        for key, _ in node.value:
            line, name = key.start_mark.line + 1, (key.tag, key.value)
            if isinstance(key.value, str) and key.tag != MERGE:
                if name in lines:
                    raise ConstructorError(
                        None, None, f"the key `{key.value}` stands twice, first on line {lines[name]}", key.start_mark
                    )
                lines[name] = line
        super().flatten_mapping(node)
