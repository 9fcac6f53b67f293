"""What breaks a rule of the contract: the offending rows, or the numbers behind a value of the day."""

from collections.abc import Callable, Iterator
from datetime import date

import polars as pl

from pipeline.checkpoint import limits_in_words, quiet_context
from pipeline.contract import Rule, contract, find_rule
from pipeline.errors import ConfigurationError
from pipeline.measures import (
    ID,
    LISTS,
    day_facts,
    day_measures,
    is_absent,
    newest_items,
    odd_columns,
    read_parts,
    row_measures,
    rows_of_day,
    trailing_days,
)
from pipeline.publish import Store
from pipeline.settings import PipelineSite
from pipeline.tables import FILES, REJECTED
from pipeline.validate import content_of, row_checkpoint

Frames = Iterator[pl.DataFrame]
NUM_SHOWN, WIDEST_CELL = 20, 40
OFFENDING = {
    "known_item_share": ~pl.col("is_known").fill_null(False),
    "described_item_share": ~pl.col("is_described").fill_null(False),
    "tie_share": pl.struct("visitor", "given_session_id", "occurred_at").is_duplicated(),
    "num_without_element": pl.any_horizontal(pl.col(name).list.contains(None) for name in LISTS),
}
"""What tells an offending row, by measure; for the other measures it is a column without a value."""


def explain(site: PipelineSite, store: Store, day: date, name: str) -> tuple[str, Frames]:
    """A rule as a sentence, and what breaks it on a day, frame by frame.

    Raises ConfigurationError for a rule that is not in the site's contract, or a day without sessions.
    """
    try:
        rule = find_rule(name, contract(site))
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    content_of(site, store, day)
    sentence = f"{rule.name} ({rule.severity}), {day}: {rule.words}; allowed is {limits_in_words(rule, site, day)}"
    if rule.of_each_row:
        return sentence, rows_that_break(site, store, day, rule)
    numbers = NUMBERS.get(rule.measure)
    return sentence, iter([numbers(site, store, day, rule)]) if numbers else rows_where(site, store, day, rule)


def rows_that_break(site: PipelineSite, store: Store, day: date, rule: Rule) -> Frames:
    """Rows that Great Expectations finds to break a rule, each with the value that was judged."""
    checkpoint = row_checkpoint(quiet_context(), rule.table, [rule], site, day)
    for part in read_parts(site, store, rule.table, day):
        measures = row_measures(site, rule.table, part)
        places = checkpoint.judge(measures)[rule.name]
        yield part.with_columns(measures[rule.measure])[places]


def rows_where(site: PipelineSite, store: Store, day: date, rule: Rule) -> Frames:
    """Rows that a value of the day counts."""
    items = newest_items(store).collect()
    repeated = repeated_ids(site, store, day, rule) if rule.measure == "num_repeated_ids" else None
    for part in read_parts(site, store, rule.table, day):
        rows = part.join(items, "item_id", "left", maintain_order="left") if rule.table == "events" else part
        column = rule.measure.removeprefix("num_without_").removeprefix("null_share_of_")
        if repeated is not None:
            is_offending = pl.col(ID[rule.table]).hash().is_in(repeated.implode())
        else:
            is_offending = OFFENDING[rule.measure] if rule.measure in OFFENDING else is_absent(part, column)
        yield rows.filter(is_offending).select(part.columns)


def in_lines(frames: Frames) -> tuple[list[list[str]], int]:
    """A header and the first rows as text, and the number of all rows."""
    lines: list[list[str]] = []
    total = 0
    for frame in frames:
        if not lines:
            lines.append(frame.columns)
        lines += [[in_cell(value) for value in row] for row in frame.head(NUM_SHOWN + 1 - len(lines)).iter_rows()]
        total += frame.height
    return lines, total


def in_cell(value: object) -> str:
    """A value as a cell of a table; of a long text the beginning and, for it names the file of a path, the end."""
    told = "null" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
    return told if len(told) <= WIDEST_CELL else f"{told[:9]}…{told[10 - WIDEST_CELL :]}"


def repeated_ids(site: PipelineSite, store: Store, day: date, rule: Rule) -> pl.Series:
    """Hashes of the ids that stand more than once."""
    name = ID[rule.table]
    hashes = pl.concat([part[name].drop_nulls().hash() for part in read_parts(site, store, rule.table, day)])
    return hashes.filter(hashes.is_duplicated()).unique()


def columns_found(site: PipelineSite, store: Store, day: date, rule: Rule) -> pl.DataFrame:
    """Columns that are not as declared."""
    return pl.DataFrame({"column": odd_columns(site, store, rule.table)}, schema={"column": pl.String})


def rows_counted(site: PipelineSite, store: Store, day: date, rule: Rule) -> pl.DataFrame:
    """Rows that the table holds of the day by bucket, beside all that were booked."""
    booked = day_facts(store, day)[f"num_{rule.table}"]
    rows = rows_of_day(site, store, rule.table, day).group_by("user_bucket").agg(num_rows=pl.len()).collect()
    return rows.sort("user_bucket").with_columns(booked_of_all_buckets=pl.lit(booked))


def volumes(site: PipelineSite, store: Store, day: date, rule: Rule) -> pl.DataFrame:
    """The day and the passed days before it that it is compared with; `volume` is against their median."""
    facts = day_facts(store, day)
    volume = day_measures(store, day, facts)["volume"]
    today = pl.DataFrame({"event_date": [day], "num_events": [facts["num_events"]], "volume": [volume]})
    return pl.concat([trailing_days(store, day), today], how="diagonal_relaxed")


def files_of_day(site: PipelineSite, store: Store, day: date, rule: Rule) -> pl.DataFrame:
    """What each file brought for the day."""
    files = store.scan(FILES).filter(pl.col("event_date") == day)
    told = files.select("path", "delivery_date", "rows_read", "events", "duplicates", "rejected")
    return told.sort("duplicates", "rejected", descending=True).collect()


def reasons(site: PipelineSite, store: Store, day: date, rule: Rule) -> pl.DataFrame:
    """Rejected rows of the day by reason and file."""
    rejected = store.scan(REJECTED).filter(pl.col("event_date") == day)
    counts = rejected.group_by("reason", "source_file").agg(num_rows=pl.len(), first_record=pl.col("record").min())
    return counts.sort("num_rows", "reason", "source_file", descending=[True, False, False]).collect()


NUMBERS: dict[str, Callable[[PipelineSite, Store, date, Rule], pl.DataFrame]] = {
    "num_odd_columns": columns_found,
    "num_rows_off": rows_counted,
    "num_events": files_of_day,
    "volume": volumes,
    "duplicate_share": files_of_day,
    "rejected_share": reasons,
}
"""What stands behind a value that no single row breaks."""
