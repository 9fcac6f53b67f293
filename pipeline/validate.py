"""Hold a day to its contract with Great Expectations, before a model may learn from it.

Reads   `events` and `sessions` of the days that changed, their counts in `days`
Writes  the verdict in `days`, the results as Data Docs (HTML): a page of Great Expectations per day and table, and an
        index of all judged days that is ours and needs no network

Row promises are checked on the day's rows, whole-table promises on a one-row profile that Polars computes.
"""

import html
import logging
import os
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import polars as pl

from pipeline.dates import day_end, day_start
from pipeline.days import present_content, read_days, stale_verdicts, update_days
from pipeline.errors import ConfigurationError, ContractError
from pipeline.publish import Store
from pipeline.settings import PipelineSite
from pipeline.tables import events_table, sessions_table
from pipeline.terminal import log, track

DOCS = "nightjar"
TABLES = ("events", "sessions", "day")
COUNTS = {
    "num_events": "events",
    "num_sessions": "sessions",
    "num_rejected": "rejected",
    "num_duplicates": "duplicates",
}
INDEX = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2em; }}
table {{ border-collapse: collapse; }}
th, td {{ border-bottom: 1px solid #ddd; padding: .3em .9em; text-align: right; }}
tr.passed td:nth-child(2) {{ color: #176f2c; }}
tr.failed td:nth-child(2) {{ color: #b3261e; font-weight: bold; }}
tr.outdated td:nth-child(2) {{ color: #777; }}
</style>
<h1>{title}</h1>
<p>Only days that passed at their present content feed a model. An outdated verdict is about an earlier content: run
<code>nightjar validate</code> again.</p>
<table>
<tr>{heads}</tr>
{rows}</table>
</html>
"""


def validate_stale(site: PipelineSite, store: Store, day: date) -> dict[str, Any]:
    """Judge `day` and every earlier day that changed since its verdict; raise ContractError if any fails."""
    docs = site.home / "data_docs" / site.name
    failures = {}
    for judged in track(sorted({day, *stale_verdicts(store, day)}), "validating days"):
        content = content_of(store, judged)
        broken = judge_day(site, store, judged, docs)
        record_verdict(store, judged, content, "failed" if broken else "passed")
        if broken:
            failures[judged] = broken
    write_index(site, store, docs)
    if failures:
        lines = "\n".join(f"  {judged}: {promise}" for judged, broken in failures.items() for promise in broken)
        raise ContractError(
            f"{site.name}: the data broke its contract; no model will see these days:\n{lines}\n"
            f"The report: {docs / 'index.html'}. Mend the raw files and run ingest again, "
            "or change `validation` in the site file"
        )
    return {"verdict": "passed", "report": str(docs / "index.html")}


def content_of(store: Store, day: date) -> str:
    """What a day's events and sessions are, before they are judged; refuses a day that has none yet."""
    contents = read_days(store).filter(pl.col("event_date") == day).select(present_content()).to_series()
    if contents.is_empty() or contents[0] is None:
        raise ConfigurationError(
            f"{day} has no sessions to validate. Run `nightjar ingest` and `nightjar sessionize` for it first"
        )
    return str(contents[0])


def record_verdict(store: Store, day: date, content: str, verdict: str) -> None:
    """Write what was judged, and how."""
    update_days(store, pl.DataFrame({"event_date": [day], "validated_content": [content], "verdict": [verdict]}))


def judge_day(site: PipelineSite, store: Store, day: date, docs: Path) -> list[str]:
    """Run a checkpoint over a day; return the promises that were broken, in words."""
    events = store.scan(events_table(site.source.context)).filter(pl.col("event_date") == day).collect()
    sessions = store.scan(sessions_table(site.source.context)).filter(pl.col("session_date") == day).collect()
    context = quiet_context(docs)
    frames = {
        "events": events.select("event_id", "visitor", "item_id", "event_type", "occurred_at").to_pandas(),
        "sessions": sessions.select("session_id", "visitor", "num_events", "started_at", "ended_at").to_pandas(),
        "day": profile(store, day).to_pandas(),
    }
    promises = {
        "events": event_promises(site, day),
        "sessions": session_promises(site, day),
        "day": day_promises(site),
    }
    broken = []
    for name, frame in frames.items():
        checkpoint = make_checkpoint(context, name, promises[name])
        result = checkpoint.run(batch_parameters={"dataframe": frame}, run_id=run_identifier(day))
        write_pages(context, name, result)
        broken += [
            in_words(name, fault) for run in result.run_results.values() for fault in run.results if not fault.success
        ]
    log.info(
        "validated %s: %d events, %d sessions, %d broken promises", day, events.height, sessions.height, len(broken)
    )
    return broken


def quiet_context(docs: Path) -> Any:
    """Great Expectations without telemetry, progress bars and chatter; its pages go under `docs`."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx

    # Its import sets levels of its own; this module tells of a folder that it does not even make.
    for name in ("great_expectations", "great_expectations.data_context.types.base"):
        logging.getLogger(name).setLevel(logging.WARNING)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    for name in context.get_site_names():
        context.delete_data_docs_site(name)  # a site in a folder under /tmp that nobody would read or remove
    store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs.resolve())}
    index = {"class_name": "DefaultSiteIndexBuilder"}
    site = {"class_name": "SiteBuilder", "site_index_builder": index, "store_backend": store}
    context.add_data_docs_site(site_name=DOCS, site_config=site)
    return context


def run_identifier(day: date) -> Any:
    """The name of a run: its pages lie under validations/<table>/<day>, and a later run writes the same ones."""
    import great_expectations as gx

    return gx.RunIdentifier(run_name=day.isoformat(), run_time=datetime.combine(day, time(), UTC))


def write_pages(context: Any, name: str, result: Any) -> None:
    """The page of a result and of its promises. Without GX's index, which removes the pages of all earlier runs."""
    from great_expectations.data_context.types.resource_identifiers import ExpectationSuiteIdentifier

    pages = [*result.run_results, ExpectationSuiteIdentifier(name=name)]
    context.build_data_docs(site_names=[DOCS], resource_identifiers=pages, build_index=False)


def write_index(site: PipelineSite, store: Store, docs: Path) -> None:
    """A page with all judged days, newest first, whole in itself."""
    judged = read_days(store).filter(pl.col("verdict").is_not_null()).sort("event_date", descending=True)
    holds = (pl.col("validated_content") == present_content()).fill_null(False)
    days = judged.with_columns(verdict=pl.when(holds).then("verdict").otherwise(pl.lit("outdated")))
    rows = "".join(index_row(row, docs) for row in days.iter_rows(named=True))
    heads = "".join(f"<th>{head}</th>" for head in ("day", "verdict", *COUNTS.values(), "report"))
    title = f"{html.escape(site.name)}: data contract by day"
    page = INDEX.format(title=title, heads=heads, rows=rows)
    docs.mkdir(parents=True, exist_ok=True)
    unfinished = docs / f"index.{os.getpid()}.html"
    unfinished.write_text(page, encoding="utf-8")
    unfinished.replace(docs / "index.html")


def index_row(day: dict[str, Any], docs: Path) -> str:
    """A judged day as a row of the index, with links to its pages."""
    links = (
        f'<a href="{html.escape(quote(str(page.relative_to(docs))))}">{html.escape(table)}</a>'
        for table in TABLES
        if (page := find_page(docs, table, day["event_date"]))
    )
    cells = (day["event_date"], day["verdict"], *(day[name] for name in COUNTS))
    told = "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells)
    return f'<tr class="{html.escape(day["verdict"])}">{told}<td>{" ".join(links)}</td></tr>\n'


def find_page(docs: Path, table: str, day: date) -> Path | None:
    """The page of a day's last judgement."""
    return next(docs.glob(f"validations/{table}/{day}/*/*.html"), None)


def profile(store: Store, day: date) -> pl.DataFrame:
    """One row about the whole day."""
    share = pl.col("num_rejected") / (pl.col("num_events") + pl.col("num_duplicates") + pl.col("num_rejected"))
    days = read_days(store).filter(pl.col("event_date") == day)
    return days.select("num_events", "num_sessions", rejected_share=share.fill_nan(0.0))


def event_promises(site: PipelineSite, day: date) -> list[Any]:
    """What is true of every event."""
    import great_expectations.expectations as gxe

    start, end = day_start(day, site.time_zone), day_end(day, site.time_zone)
    promises = [
        gxe.ExpectColumnValuesToBeUnique(column="event_id"),
        gxe.ExpectColumnValuesToNotBeNull(column="visitor"),
        gxe.ExpectColumnValuesToNotBeNull(column="item_id"),
        gxe.ExpectColumnValuesToBeBetween(column="occurred_at", min_value=start, max_value=end, strict_max=True),
    ]
    if site.source.event_type.known:
        promises.append(gxe.ExpectColumnValuesToBeInSet(column="event_type", value_set=site.source.event_type.known))
    return promises


def session_promises(site: PipelineSite, day: date) -> list[Any]:
    """What is true of every session."""
    import great_expectations.expectations as gxe

    start, end = day_start(day, site.time_zone), day_end(day, site.time_zone)
    return [
        gxe.ExpectColumnValuesToBeUnique(column="session_id"),
        gxe.ExpectColumnValuesToNotBeNull(column="visitor"),
        gxe.ExpectColumnValuesToBeBetween(column="num_events", min_value=1, max_value=site.sessions.max_events),
        gxe.ExpectColumnValuesToBeBetween(column="started_at", min_value=start, max_value=end, strict_max=True),
        gxe.ExpectColumnPairValuesAToBeGreaterThanB(column_A="ended_at", column_B="started_at", or_equal=True),
    ]


def day_promises(site: PipelineSite) -> list[Any]:
    """What is true of the day as a whole."""
    import great_expectations.expectations as gxe

    rules = site.validation
    return [
        gxe.ExpectColumnValuesToBeBetween(column="num_events", min_value=rules.min_events),
        gxe.ExpectColumnValuesToBeBetween(column="rejected_share", max_value=rules.max_rejected_share),
    ]


def make_checkpoint(context: Any, name: str, promises: list[Any]) -> Any:
    """A checkpoint over one frame."""
    import great_expectations as gx

    asset = context.data_sources.add_pandas(name).add_dataframe_asset(name=name)
    suite = context.suites.add(gx.ExpectationSuite(name=name, expectations=promises))
    definition = context.validation_definitions.add(
        gx.ValidationDefinition(name=name, data=asset.add_batch_definition_whole_dataframe("day"), suite=suite)
    )
    return context.checkpoints.add(
        gx.Checkpoint(
            name=name,
            validation_definitions=[definition],
            result_format="SUMMARY",
        )
    )


def in_words(table: str, fault: Any) -> str:
    """A broken promise as a sentence with its count."""
    facts = fault.to_json_dict()
    promise, result = facts["expectation_config"], facts["result"]
    rule = promise["type"].removeprefix("expect_").replace("_", " ")
    limits = {k: v for k, v in promise["kwargs"].items() if k not in ("batch_id", "column") and v is not None}
    column = limits.pop("column_A", promise["kwargs"].get("column"))
    count = result.get("unexpected_count", "?")
    found = result.get("partial_unexpected_list", [])[:3]
    return f"{table}.{column}: {rule} {limits}; {count} rows break it, like {found}"
