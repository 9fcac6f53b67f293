"""The report of validation as HTML: a page for each judged day, and an index of all of them.

Every page is whole in itself: it loads nothing, so it can be read offline, sent by mail and kept with a run. Great
Expectations' own pages load their styles from the network and list no runs without it; only its words are used here.
"""

import html
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl

from pipeline import pages
from pipeline.checkpoint import Verdict, show_number
from pipeline.dates import days_between
from pipeline.days import present_content, read_days
from pipeline.measures import trailing_days, usual_volume
from pipeline.publish import Store
from pipeline.settings import PipelineSite

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 72em; padding: 0 1em; color: #1c2024; }}
h1 {{ font-size: 1.5em; }}
h2 {{ font-size: 1.1em; margin-top: 2em; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ border-bottom: 1px solid #dde1e6; padding: .4em .8em .4em 0; text-align: left; vertical-align: top; }}
th {{ color: #5b6470; font-weight: 600; }}
.number {{ text-align: right; white-space: nowrap; }}
.words {{ color: #5b6470; font-size: .85em; }}
code {{ font: .9em ui-monospace, monospace; overflow-wrap: anywhere; }}
.badge {{ border-radius: 1em; color: #fff; font-size: .85em; padding: .1em .7em; white-space: nowrap; }}
.rules {{ table-layout: fixed; }}
.rules th:nth-child(1) {{ width: 6.5em; }}
.rules th:nth-child(2) {{ width: 18em; }}
.rules th:nth-child(n+4) {{ width: 11em; }}
.facts span {{ margin-right: 2em; white-space: nowrap; }}
.facts b {{ font-size: 1.25em; }}
</style>
{body}
</html>
"""
COLOURS = {"passed": "#18794e", "warning": "#ad5700", "failed": "#b3261e", "outdated": "#80868f"}
GREY = "#5b6470"
FACTS = {
    "num_events": "events",
    "num_sessions": "sessions",
    "num_rejected": "rejected rows",
    "num_duplicates": "duplicates",
}
TABLES = {"events": "Events", "sessions": "Sessions", "day": "The day as a whole"}
CHART_DAYS, CHART_WIDTH, CHART_HEIGHT = 28, 720, 90


def docs_folder(site: PipelineSite) -> Path:
    """Where a site's pages lie."""
    return site.home / "data_docs" / site.name


def day_page(site: PipelineSite, day: date) -> Path:
    """The page of a day."""
    return docs_folder(site) / f"{day}.html"


def write_day(site: PipelineSite, store: Store, day: date, verdicts: Sequence[Verdict]) -> None:
    """The page of a day that was just judged."""
    days = with_status(read_days(store))
    facts = days.filter(pl.col("event_date") == day).row(0, named=True)
    broken = [verdict for verdict in verdicts if not verdict.held]
    counts = "".join(f"<span><b>{facts[name]:,}</b> {told}</span>" for name, told in FACTS.items())
    parts = [
        f"<h1>{text(site.name)}, {day} {badge(facts['status'])}</h1>",
        f'<p class="facts">{counts}</p>',
        volume_chart(days, day, usual_volume(trailing_days(store, day))),
        f"<h2>Broken promises</h2>{rule_table(broken)}{advice(day, broken)}" if broken else "",
        *(f"<h2>{title}</h2>{rule_table(of_table(verdicts, name))}" for name, title in TABLES.items()),
        '<p><a href="index.html">All days</a></p>',
    ]
    write_page(day_page(site, day), f"{site.name}, {day}: {facts['status']}", parts)


def write_index(site: PipelineSite, store: Store) -> None:
    """A page with all judged days, newest first."""
    days = with_status(read_days(store))
    judged = days.filter(pl.col("verdict").is_not_null()).sort("event_date", descending=True)
    heads = "".join(f"<th{' class=number' if n > 1 else ''}>{head}</th>" for n, head in enumerate(INDEX_HEADS))
    rows = "".join(index_row(site, row) for row in judged.iter_rows(named=True))
    parts = [
        f"<h1>{text(site.name)}: data contract by day</h1>",
        volume_chart(days, judged["event_date"].max()),
        "<p>Only days that passed as they are now feed a model. An outdated verdict is about an earlier content: run "
        "<code>nightjar validate</code> again.</p>",
        f"<table><tr>{heads}</tr>\n{rows}</table>",
    ]
    write_page(docs_folder(site) / "index.html", f"{site.name}: data contract by day", parts)


INDEX_HEADS = ("day", "verdict", "warnings", *FACTS.values())


def index_row(site: PipelineSite, day: dict[str, Any]) -> str:
    """A judged day as a row of the index, with a link to its page."""
    name = str(day["event_date"])
    link = f'<a href="{name}.html">{name}</a>' if day_page(site, day["event_date"]).exists() else name
    numbers = "".join(f'<td class="number">{day[column] or 0:,}</td>' for column in ("num_warnings", *FACTS))
    return f"<tr><td>{link}</td><td>{badge(day['status'])}</td>{numbers}</tr>\n"


def with_status(days: pl.DataFrame) -> pl.DataFrame:
    """Days with `status`: passed, warning (passed with some), failed, outdated, or unjudged."""
    holds = (pl.col("validated_content") == present_content()).fill_null(False)
    has_warnings = (pl.col("verdict") == "passed") & (pl.col("num_warnings") > 0)
    return days.with_columns(
        status=pl.when(pl.col("verdict").is_null())
        .then(pl.lit("unjudged"))
        .when(~holds)
        .then(pl.lit("outdated"))
        .when(has_warnings)
        .then(pl.lit("warning"))
        .otherwise("verdict")
    )


def of_table(verdicts: Iterable[Verdict], name: str) -> list[Verdict]:
    """The verdicts on the rules of a table."""
    return [verdict for verdict in verdicts if verdict.rule.table == name]


def rule_table(verdicts: Sequence[Verdict]) -> str:
    """Verdicts as a table: what was promised, what was found, what is allowed."""
    heads = "".join(f"<th>{head}</th>" for head in ("", "rule", "promise", "found", "allowed"))
    return f'<table class="rules"><tr>{heads}</tr>\n{"".join(map(rule_row, verdicts))}</table>'


def rule_row(verdict: Verdict) -> str:
    """A verdict as a row of a table."""
    rule = verdict.rule
    like = f'<br><span class="words">like {text(", ".join(verdict.examples))}</span>'
    found = text(verdict.found) + (like if rule.of_each_row and verdict.examples else "")
    cells = [
        badge(verdict.status),
        f'<code>{text(rule.name)}</code><br><span class="words">{rule.severity}</span>',
        f'{text(rule.words)}<br><span class="words">{text(verdict.promise)}</span>',
        found,
        text(verdict.limits),
    ]
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>\n"


def advice(day: date, broken: Sequence[Verdict]) -> str:
    """How to see what broke a rule."""
    return (
        "<p>What breaks a rule: "
        f"<code>nightjar validate --site F --date {day} --explain {text(broken[0].rule.name)}</code></p>"
    )


def volume_chart(days: pl.DataFrame, last: Any, usual: float | None = None) -> str:
    """Events of the days up to `last` as bars, coloured by verdict; the usual volume as a line."""
    shown = days.filter(pl.col("event_date") <= last).tail(CHART_DAYS)
    if shown.height < 2:
        return ""
    span = days_between(shown["event_date"][0], last)[-CHART_DAYS:]
    highest = max(*shown["num_events"].drop_nulls().to_list(), usual or 0, 1)
    step = CHART_WIDTH / CHART_DAYS
    bars = "".join(bar(row, span, step, highest) for row in shown.iter_rows(named=True) if row["event_date"] in span)
    line = CHART_HEIGHT * (1 - (usual or 0) / highest)
    width = step * len(span)
    dashes = f'<line x1="0" x2="{width:.0f}" y1="{line:.1f}" y2="{line:.1f}" stroke="{GREY}" stroke-dasharray="4 4"/>'
    told = f"events a day, {span[0]} to {span[-1]}"
    return (
        f'<svg width="{CHART_WIDTH}" height="{CHART_HEIGHT + 24}" role="img" aria-label="{told}">{bars}'
        f'{dashes if usual else ""}<text x="0" y="{CHART_HEIGHT + 18}" fill="{GREY}" font-size="12">{told}'
        f"{f'; the line is the usual volume, {show_number(usual)}' if usual else ''}</text></svg>"
    )


def bar(row: dict[str, Any], span: Sequence[date], step: float, highest: float) -> str:
    """A day of the chart."""
    events = row["num_events"] or 0
    height = max(CHART_HEIGHT * events / highest, 1)
    place = span.index(row["event_date"]) * step
    told = f"<title>{row['event_date']}: {events:,} events, {row['status']}</title>"
    return (
        f'<rect fill="{COLOURS.get(row["status"], GREY)}" x="{place:.1f}" y="{CHART_HEIGHT - height:.1f}" '
        f'width="{step - 3:.1f}" height="{height:.1f}">{told}</rect>'
    )


def badge(status: str) -> str:
    """A status in its colour."""
    return f'<span class="badge" style="background: {COLOURS.get(status, GREY)}">{text(status)}</span>'


def text(value: str) -> str:
    """Text as HTML."""
    return html.escape(value)


def write_page(path: Path, title: str, parts: Iterable[str]) -> None:
    """A page in one step: a reader sees the old one or the new one."""
    pages.write_page(path, PAGE.format(title=text(title), body="\n".join(filter(None, parts))))
