"""The chain of `nightjar lineage` in words, aligned for a terminal."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from pipeline.ids import ANONYMOUS
from pipeline.terminal import align
from serving_export.lineage import Facts, stages

NUM_LETTERS = 12
"""Of a digest."""


def as_text(told: Facts) -> str:
    """The chain for people."""
    if told["is_forgotten"]:
        return forgotten_in_words(told)
    release, model = told["release"], told["model"]
    lines = [
        ("user", told["user_id"].removeprefix(ANONYMOUS)),
        *rows_in_words(told["rows"]),
        ("release", f"version {release['table_version']} of recommendations, made {release['generated_at']}"),
        ("", f"from data through {release['data_through']}, good until {release['valid_until']}"),
        *model_in_words(model, told["data_is_unchanged"]),
        *code_in_words(told),
    ]
    days = [
        [
            *(str(day["event_date"]), day["verdict"] or "unjudged", str(day["num_warnings"] or 0)),
            *(f"{day[name] or 0:,}" for name in ("num_events", "num_sessions")),
            ", ".join(day["used_in"]),
        ]
        for day in told["days"]
    ]
    files = [
        [
            *(shorten(file["sha256"]), str(file["delivery_date"] or ""), f"{file['events']:,}"),
            *(str(file["events_of_user"]), file["path"]),
        ]
        for file in told["files"]
    ]
    parts = [align([list(line) for line in lines], left=2)]
    parts += section("days", ["day", "verdict", "warnings", "events", "sessions", "used in"], days, told["days"])
    parts += section("files", ["sha256", "delivered", "events", "of the user", "path"], files, told["files"])
    return "\n".join(parts)


def forgotten_in_words(told: Facts) -> str:
    """What is left of a forgotten visitor: the models that may have learnt from them."""
    lines = [
        f"{told['user_id'].removeprefix(ANONYMOUS)} was forgotten: no table holds rows of this user, so there is "
        "nothing to trace"
    ]
    if not told["models"]:
        return f"{lines[0]}, and no registered model version learnt from their sessions"
    lines.append("model versions that may have learnt from their sessions (they know no ids):")
    for model in told["models"]:
        window = model["window"] or {}
        span = f"{window.get('first_day') or 'not recorded'} to {window.get('last_day') or 'not recorded'}"
        lines.append(f"  version {model['version']} of {model['name']}, window {span}")
    return "\n".join(lines)


def section(name: str, head: list[str], rows: list[list[str]], facts: list[Facts]) -> list[str]:
    """A table below its name; it says so where it shows what is there now, and not what was there then."""
    then = "as they were at the release" if all(row["is_as_published"] for row in facts) else "as they are now"
    last = [[*row[:-1], ""] for row in [head, *rows]]
    lines = align(last, left=2).split("\n")
    width = max(map(len, lines))
    body = [f"  {line.ljust(width)}  {row[-1]}" for line, row in zip(lines, [head, *rows], strict=True)]
    return ["", f"{name}, {then}", *body] if rows else ["", f"{name}: none known"]


def rows_in_words(rows: list[Facts]) -> list[tuple[str, str]]:
    """Each channel's list in a line."""
    frame = pl.DataFrame(rows, infer_schema_length=None)
    lines = []
    for (channel,), part in frame.partition_by("channel", as_dict=True, maintain_order=True).items():
        sources = part["source"].value_counts(sort=True)
        told = ", ".join(f"{row['count']} {row['source']}" for row in sources.iter_rows(named=True))
        best = part.row(0, named=True)
        why = f" because of {best['because']}" if best["because"] else ""
        lines.append(
            (f"list {channel}", f"{part.height} rows ({told}); first {best['item_id']} ({best['source']}){why}")
        )
    session = frame["session_id"].drop_nulls()
    return [*lines, ("session", str(session[0]) if len(session) else "none")]


def model_in_words(model: Facts | None, is_same: Mapping[str, bool | None]) -> list[tuple[str, str]]:
    """The model, its champion and their runs."""
    if model is None:
        return [("model", "none: no model had been promoted, all rows are popular items")]
    lines = []
    for stage, facts in stages(model):
        tags = facts.get("tags")
        if tags is None:
            lines.append((heading(stage, model), f"version {facts['version']}: MLflow has it no more"))
            continue
        recipe = f"{tags.get('recipe')} seed {tags.get('seed')}"
        what = f"refit of version {tags.get('parent_version')}, {recipe}" if stage == "refit" else recipe
        lines.append((heading(stage, model), f"version {facts['version']} of {facts['name']}: {what}"))
        window = facts.get("window", {})
        span = f"{window.get('first_day') or 'not recorded'} to {window.get('last_day') or tags.get('data_through')}"
        state = {True: "; unchanged since", False: "; changed since", None: ""}[is_same.get(stage)]
        lines += [("  run", str(facts.get("run_id"))), ("  window", f"{span}{state}")]
        if facts["forgotten_since"]:
            lines.append(("  forgotten", f"{facts['forgotten_since']} visitors since, whom it may have learnt from"))
        if tags.get("gate.reason") or tags.get("promoted"):
            lines.append(
                ("  promoted", f"{tags.get('promoted', 'no')}: {tags.get('gate.reason', 'reason not recorded')}")
            )
    return lines


def heading(stage: str, model: Facts) -> str:
    """What a stage's version is called."""
    return "champion" if stage == "training" and model.get("champion") else "model"


def code_in_words(told: Facts) -> list[tuple[str, str]]:
    """Code and site file at each stage and now, the same ones on one line."""
    known = [
        ("release", told["release"]),
        *((stage, facts.get("code") or {}) for stage, facts in stages(told["model"])),
    ]
    lines = []
    for name, words in (("code", in_code), ("site file", in_site_file)):
        groups: dict[str, list[str]] = {}
        for stage, facts in [*known, ("now", told["now"])]:
            groups.setdefault(words(facts), []).append(stage)
        lines += [
            (name if n == 0 else "", f"{what} ({', '.join(where)})") for n, (what, where) in enumerate(groups.items())
        ]
    return lines


def in_code(facts: Mapping[str, Any]) -> str:
    """`nightjar 0.1.0, commit 0123456789ab`."""
    if not facts.get("nightjar"):
        return "not recorded"
    commit = facts.get("code_commit") or "not recorded"
    shown = commit if commit in ("unknown", "not recorded") else shorten(commit) + ("-dirty" if "-" in commit else "")
    return f"nightjar {facts['nightjar']}, commit {shown}"


def in_site_file(facts: Mapping[str, Any]) -> str:
    """The digest of the file."""
    return f"sha256 {shorten(facts['site_file_sha256'])}" if facts.get("site_file_sha256") else "not recorded"


def shorten(digest: str) -> str:
    """The beginning of a digest."""
    return digest[:NUM_LETTERS]
