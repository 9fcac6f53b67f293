"""Hold a day to its contract with Great Expectations, before a model may learn from it.

Reads   `events` and `sessions` of the days that changed, `items`, their counts in `days`
Writes  the verdict in `days`; a page for each judged day and an index of them (`data_docs`)

What is promised stands in `pipeline.contract`; what it is judged by is made in `pipeline.measures`. The row measures of
each part of the day go through one checkpoint, the profile of the whole day through another.
"""

from collections.abc import Sequence
from datetime import date
from typing import Any

import polars as pl

from pipeline.checkpoint import Checkpoint, Verdict, quiet_context
from pipeline.contract import Rule, contract
from pipeline.data_docs import docs_folder, write_day, write_index
from pipeline.days import present_content, read_days, stale_sessions, stale_verdicts, update_days
from pipeline.errors import ConfigurationError, ContractError, RetryableError
from pipeline.measures import Sums, add_part, profile, read_parts, row_measures
from pipeline.publish import Store
from pipeline.settings import PipelineSite
from pipeline.terminal import log, track

ROW_TABLES = ("events", "sessions")


def validate_stale(site: PipelineSite, store: Store, day: date) -> dict[str, Any]:
    """Judge `day`, earlier days without a verdict, and all days that changed since theirs; ContractError if any fails.

    Of a day that another night is at work on only that night can judge: RetryableError if it is `day`.
    """
    context = quiet_context()
    failures: dict[date, list[Verdict]] = {}
    warnings: dict[str, list[str]] = {}
    for judged in track(sorted({day, *stale_verdicts(store, day)}), "validating days"):
        pinned = store.pinned()
        content = content_of(site, pinned, judged)
        if content is None and judged == day:
            raise being_changed(site, day)
        if content is None:
            log.info("%s is being changed: the night that does it judges it", judged)
            continue
        verdicts = judge_day(site, pinned, judged, context)
        record_verdicts(store, judged, content, verdicts)
        if judged == day and content_of(site, store, day) != content:  # the night that did it found no verdict to renew
            raise being_changed(site, day)
        write_day(site, store, judged, verdicts)
        if failed := [verdict for verdict in verdicts if verdict.status == "failed"]:
            failures[judged] = failed
        if warned := [verdict for verdict in verdicts if verdict.status == "warning"]:
            warnings[str(judged)] = [verdict.rule.name for verdict in warned]
            log.warning("\n".join(f"warning: {judged}: {verdict.sentence()}" for verdict in warned))
    write_index(site, store)
    report = docs_folder(site) / "index.html"
    if failures:
        lines = "\n".join(f"  {judged}: {v.sentence()}" for judged, failed in failures.items() for v in failed)
        raise ContractError(
            f"{site.name}: the data broke its contract; no model will see these days:\n{lines}\n"
            f"The report: {report}. See what breaks a rule with `nightjar validate --explain RULE`; mend the raw files "
            "and run ingest again, or change `validation` in the site file"
        )
    return {"verdict": "passed", "warnings": warnings, "report": str(report)}


def being_changed(site: PipelineSite, day: date) -> RetryableError:
    """Somebody else is at work on the day."""
    return RetryableError(
        f"{site.name}: the events or sessions of {day} are being changed. Wait for the night that does it, or "
        f"run `nightjar sessionize` for {day} again, then this step"
    )


def content_of(site: PipelineSite, store: Store, day: date) -> str | None:
    """What a day's events and sessions are, before they are judged; None while they are being changed.

    Raises ConfigurationError for a day that has had no sessions yet.
    """
    known = read_days(store).filter(pl.col("event_date") == day)
    if known["sessions_built_from"].is_null().all():
        raise ConfigurationError(
            f"{day} has no sessions to validate. Run `nightjar ingest` and `nightjar sessionize` for it first"
        )
    content = known.select(present_content()).to_series()[0]
    return None if content is None or day in stale_sessions(store, site.sessions) else str(content)


def record_verdicts(store: Store, day: date, content: str, verdicts: Sequence[Verdict]) -> None:
    """Write what was judged, and how."""
    statuses = [verdict.status for verdict in verdicts]
    facts = {
        "event_date": day,
        "validated_content": content,
        "verdict": "failed" if "failed" in statuses else "passed",
        "num_warnings": statuses.count("warning"),
    }
    update_days(store, pl.DataFrame([facts]))


def judge_day(site: PipelineSite, store: Store, day: date, context: Any) -> list[Verdict]:
    """All rules of the contract judged on a day, a part of it at a time."""
    rules = contract(site)
    sums = {name: Sums() for name in ROW_TABLES}
    verdicts: list[Verdict] = []
    for name in ROW_TABLES:
        rows = row_checkpoint(context, name, rules, site, day)
        for part in read_parts(site, store, name, day):
            rows.judge(row_measures(site, name, part))
            add_part(site, name, part, sums[name])
        verdicts += rows.verdicts()
    observed = profile(site, store, day, sums)
    whole = Checkpoint(context, "profile", [rule for rule in rules if not rule.of_each_row], site, day)
    whole.judge(pl.DataFrame([observed], schema=dict.fromkeys(observed, pl.Float64)))
    verdicts += whole.verdicts(observed)
    order = [rule.name for rule in rules]
    log.info("validated %s: %s events, %d rules", day, f"{observed['day.num_events']:,}", len(rules))
    return sorted(verdicts, key=lambda verdict: order.index(verdict.rule.name))


def row_checkpoint(context: Any, name: str, rules: Sequence[Rule], site: PipelineSite, day: date) -> Checkpoint:
    """A checkpoint of the rules about each row of a table."""
    return Checkpoint(context, name, [rule for rule in rules if rule.table == name and rule.of_each_row], site, day)
