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
    if not path.is_file() and path.exists():
        raise ValueError("it is no regular file")  # a pipe would be waited for
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"it is larger than {MOST_BYTES:,} bytes, so it is no site file")
    return content.decode(), content


def parse(text: str, written: str) -> dict[Any, Any]:
    """The keys and values of a site file. Raises ValueError, in words that follow the file's name.

    `written` is the text before its variables were replaced: a fault shows no value of a variable, which may be a
    password.
    """
    try:
        check_size(text)
        content = yaml.load(text, Loader=SiteLoader)
    except yaml.YAMLError as error:
        raise ValueError(describe(error, text, written)) from None
    if not isinstance(content, dict):
        raise ValueError("it must hold `key: value` lines, starting with `name:`")
    return content


def describe(error: yaml.YAMLError, text: str, written: str) -> str:
    """Where the YAML is broken, and why."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return "it is no YAML: it holds a character that YAML does not allow"
    line = text.split("\n")[mark.line :][:1]
    if line and line[0] not in written.split("\n"):
        return f"line {mark.line + 1}: it is no YAML with the value of the ${{VARIABLE}}; put quotes around that"
    if isinstance(error, ConstructorError):
        return f"line {mark.line + 1}: {error.problem}"
    return f"it is no YAML: {getattr(error, 'problem', None)} (line {mark.line + 1}, column {mark.column + 1})"


def check_size(text: str) -> None:
    """Raise ConstructorError for more levels or nodes than a site file can need."""
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
                raise fault(event, f"the alias *{event.anchor} stands inside of what it names")
            before, num_nodes = num_nodes, num_nodes + (sizes.get(event.anchor or "", 1) if is_alias else 1)
            if isinstance(event, CollectionStartEvent):
                open_nodes.append((event.anchor, before))
            elif event.anchor is not None and not is_alias:
                sizes[event.anchor] = 1
            if len(open_nodes) > MOST_LEVELS:
                raise fault(event, f"it is nested deeper than {MOST_LEVELS} levels")
            if num_nodes > MOST_NODES:
                raise fault(event, f"it holds more than {MOST_NODES:,} values, aliases expanded")


def fault(event: Any, problem: str) -> ConstructorError:
    """What is wrong where an event of the parser begins."""
    return ConstructorError(None, None, problem, event.start_mark)


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
