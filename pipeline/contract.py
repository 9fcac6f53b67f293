"""What is promised of a day: the one place where promises about the data are declared.

A rule has a stable name, `table.promise`, which reports, `validate --explain` and site files use. Its `measure` is a
column of a table or something that `pipeline.measures` makes of it: one value a row, or one value a day. Great
Expectations judges that value. A broken critical rule stops the night, a broken warning is reported. A site file may
set severities, and the limits of rules about the day:

    validation:
      rules:
        day.volume: {low: 0.3, severity: warning}
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import TYPE_CHECKING, Any, Literal

from pipeline.dates import day_end, day_start

if TYPE_CHECKING:
    from pipeline.settings import PipelineSite

Severity = Literal["critical", "warning"]
Limit = float | Callable[["PipelineSite", date], float | datetime] | None


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A promise: a measure stays between two limits, both included, or is one of some words."""

    name: str
    words: str
    """The promise, as a reader of the report sees it."""
    measure: str
    """A column of the table, or a measure of that name in `pipeline.measures`."""
    low: Limit = None
    high: Limit = None
    excludes_high: bool = False
    """The high limit itself is not allowed."""
    one_of: Callable[["PipelineSite"], list[str] | None] | None = None
    """The words that are allowed; where a site knows of none, the rule is not kept."""
    of_each_row: bool = False
    """Every row of the table is judged; otherwise one value of the day."""
    severity: Severity = "critical"
    applies: Callable[["PipelineSite"], bool] = lambda site: True
    """Whether the rule says anything at a site."""

    @property
    def table(self) -> str:
        """What the rule is about: `events`, `sessions`, or the `day` as a whole."""
        return self.name.split(".")[0]

    def limits(self, site: "PipelineSite", day: date) -> tuple[Any, Any]:
        """The low and the high limit at a site on a day."""
        low, high = (limit(site, day) if callable(limit) else limit for limit in (self.low, self.high))
        return low, high


def start_of_day(site: "PipelineSite", day: date) -> datetime:
    """The day's first instant."""
    return day_start(day, site.time_zone)


def end_of_day(site: "PipelineSite", day: date) -> datetime:
    """The first instant of the day after."""
    return day_end(day, site.time_zone)


def describes_items(site: "PipelineSite") -> bool:
    """Whether the side table tells more of an item than its id."""
    return site.items is not None and len(site.items.columns.model_dump(exclude_none=True)) > 1


def present(table: str, column: str) -> Rule:
    """No row is without a value."""
    name, words = f"{table}.{column}_present", f"every row of {table} has {column}"
    return Rule(name=name, words=words, measure=f"num_without_{column}", high=0)


def whole(table: str, made_by: str) -> tuple[Rule, Rule]:
    """The table is what it is declared to be, and lost nothing on its way."""
    declared = "the table has the columns and types that docs/tables.md tells"
    counted = f"the table holds the rows that {made_by} counted, each in a bucket of the store"
    return (
        Rule(name=f"{table}.columns", words=declared, measure="num_odd_columns", high=0),
        Rule(name=f"{table}.complete", words=counted, measure="num_rows_off", high=0),
    )


EVENTS = (
    *whole("events", made_by="ingest"),
    present("events", "event_id"),
    Rule(name="events.event_id_unique", words="no event stands twice", measure="num_repeated_ids", high=0),
    present("events", "visitor"),
    present("events", "item_id"),
    present("events", "event_type"),
    present("events", "occurred_at"),
    present("events", "source_file"),
    Rule(
        name="events.occurred_at_in_day",
        words="every event happened on its day of the site's zone",
        measure="occurred_at",
        low=start_of_day,
        high=end_of_day,
        excludes_high=True,
        of_each_row=True,
    ),
    Rule(
        name="events.event_type_known",
        words="every event has a type that the site file names",
        measure="event_type",
        one_of=lambda site: site.source.event_type.known,
        applies=lambda site: site.source.event_type.known is not None,
        of_each_row=True,
    ),
    Rule(
        name="events.item_id_known",
        words="share of events whose item is in the catalogue `items`",
        measure="known_item_share",
        low=1.0,
    ),
    Rule(
        name="events.item_id_described",
        words="share of events whose item the side table tells something of",
        measure="described_item_share",
        low=0.8,
        severity="warning",
        applies=describes_items,
    ),
    Rule(
        name="events.tie_share",
        words="share of events that share visitor, given session id and instant with another: their order is made up",
        measure="tie_share",
        high=0.5,
        severity="warning",
    ),
)

SESSIONS = (
    *whole("sessions", made_by="sessionize"),
    present("sessions", "session_id"),
    Rule(name="sessions.session_id_unique", words="no session stands twice", measure="num_repeated_ids", high=0),
    present("sessions", "visitor"),
    Rule(
        name="sessions.num_events_in_range",
        words="every session has an event, and not more than sessions.max_events",
        measure="num_events",
        low=1,
        high=lambda site, day: site.sessions.max_events,
        of_each_row=True,
    ),
    Rule(
        name="sessions.started_at_in_day",
        words="every session began on its day of the site's zone",
        measure="started_at",
        low=start_of_day,
        high=end_of_day,
        excludes_high=True,
        of_each_row=True,
    ),
    Rule(
        name="sessions.duration_in_range",
        words="no session ends before it began, or lasts longer than sessions.max_duration",
        measure="duration_seconds",
        low=0,
        high=lambda site, day: site.sessions.max_duration.total_seconds(),
        of_each_row=True,
    ),
    Rule(
        name="sessions.lists_equally_long",
        words="every list of a session has num_events elements",
        measure="num_odd_lists",
        high=0,
        of_each_row=True,
    ),
    Rule(
        name="sessions.elements_present",
        words="no list of a session has an item, a type or an offset missing",
        measure="num_without_element",
        high=0,
    ),
    Rule(
        name="sessions.offsets_start_at_zero",
        words="the first offset of every session is 0",
        measure="first_offset_seconds",
        low=0,
        high=0,
        of_each_row=True,
    ),
    Rule(
        name="sessions.offsets_in_order",
        words="offsets never fall inside a session",
        measure="smallest_step_seconds",
        low=0,
        of_each_row=True,
    ),
)

DAY = (
    Rule(name="day.num_events", words="the day has events", measure="num_events", low=1),
    Rule(
        name="day.volume",
        words="events of the day over the median of up to seven passed days before: beyond this, a part is missing",
        measure="volume",
        low=0.1,
        high=10,
    ),
    Rule(
        name="day.volume_usual",
        words="events of the day over the median of up to seven passed days before, in a usual week",
        measure="volume",
        low=0.5,
        high=2,
        severity="warning",
    ),
    Rule(
        name="day.rejected_share",
        words="share of the day's raw rows that were rejected",
        measure="rejected_share",
        high=0.2,
    ),
    Rule(
        name="day.duplicate_share",
        words="share of the day's raw rows that were exact duplicates",
        measure="duplicate_share",
        high=0.2,
        severity="warning",
    ),
)


def null_rules(site: "PipelineSite") -> list[Rule]:
    """Columns that may be empty, but not nearly all the time: that is a column which the log has lost."""
    columns = site.source.columns
    optional = ["user_id", "given_session_id"] if columns.user_id and columns.session_id else []
    return [
        Rule(
            name=f"events.{column}_null_share",
            words=f"share of events without {column}",
            measure=f"null_share_of_{column}",
            high=0.99,
            severity="warning",
        )
        for column in (*optional, *site.source.context)
    ]


def declared_rules(site: "PipelineSite") -> list[Rule]:
    """All rules of a site as they are declared, in the order in which they are reported."""
    return [rule for rule in (*EVENTS, *null_rules(site), *SESSIONS, *DAY) if rule.applies(site)]


def contract(site: "PipelineSite") -> list[Rule]:
    """All rules of a site, with the severities and limits that its site file sets."""
    told = {name: rule.model_dump(exclude_none=True) for name, rule in site.validation.rules.items()}
    return [replace(rule, **told.get(rule.name, {})) for rule in declared_rules(site)]


def find_rule(name: str, rules: list[Rule]) -> Rule:
    """The rule of a name; ValueError names the nearest one, or all."""
    found = next((rule for rule in rules if rule.name == name), None)
    if found is not None:
        return found
    names = [rule.name for rule in rules]
    nearest = nearest_name(name, names)
    hint = f"did you mean `{nearest}`? There are " if nearest else "there are "
    raise ValueError(f"{name!r} is no rule of the contract; {hint}{', '.join(names)}")


def nearest_name(name: str, names: list[str]) -> str | None:
    """The name that was meant; the promise counts more than the table before it."""
    promises = {each.split(".")[-1] for each in names}
    near = difflib.get_close_matches(name.split(".")[-1], sorted(promises), n=1)
    meant = [each for each in names if near and each.endswith(f".{near[0]}")]
    return next(iter(difflib.get_close_matches(name, meant, n=1, cutoff=0)), None)
