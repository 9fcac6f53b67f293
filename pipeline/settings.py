"""The pipeline's part of a site file: where logs lie, what their columns mean, what a session is."""

import re
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Annotated, Literal
from zoneinfo import available_timezones

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import SchemaError, SchemaValidator, core_schema

from pipeline.addresses import holds_password, shown
from pipeline.contract import Severity, contract, declared_rules, find_rule
from pipeline.durations import Duration


class Section(BaseModel):
    """A part of the site file; a key that is not declared here is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class EventColumns(Section):
    """Names of the log's columns (for JSON Lines: paths like `context.page.id`)."""

    item_id: str
    """What was acted on."""
    occurred_at: str
    """When; read as `time_unit` says."""
    user_id: str | None = None
    """Who, where known. A row without it is an anonymous visit, told apart by its session id."""
    session_id: str | None = None
    """The log's own session id, where it has one."""

    @model_validator(mode="after")
    def someone_acts(self) -> "EventColumns":
        """A log that names neither users nor sessions has no sequences in it."""
        if self.user_id is None and self.session_id is None:
            raise ValueError("name a user_id or a session_id column: without either, events belong to nobody")
        return self


class EventType(Section):
    """Where an event's type comes from: one word for all rows, or a column and a mapping."""

    constant: str | None = None
    column: str | None = None
    map: dict[str, str] = Field(default_factory=dict)
    """Value in the log -> event type. Other values are rejected; an empty map keeps values as they are."""

    @model_validator(mode="after")
    def one_of_two(self) -> "EventType":
        """Either a constant or a column."""
        if (self.constant is None) == (self.column is None):
            raise ValueError("give either `constant` or `column` (with an optional `map`)")
        return self

    @property
    def known(self) -> list[str] | None:
        """All event types a row can have; None where the log decides."""
        if self.constant is not None:
            return [self.constant]
        return sorted(set(self.map.values())) or None


@cache
def time_zones() -> frozenset[str]:
    """The names that Python and polars both know: `Factory` and `localtime` are files of the database, not zones."""
    return frozenset(available_timezones() - {"Factory", "localtime"})


TIME_UNITS = ("s", "ms", "us", "ns", "iso")
RESERVED = (
    *("event_date", "user_bucket", "event_id", "visitor", "user_id", "item_id", "event_type", "occurred_at"),
    *("given_session_id", "source_file", "record", "fault", "delivery_date", "reason", "fields", "ingested_run"),
    *("session_date", "session_id", "started_at", "ended_at", "num_events", "item_ids", "event_types"),
    *("offsets_seconds", "last_event_at", "run_of", "is_carried", "is_tied", "is_run_start", "is_repeat", "deadline"),
    *("told_agent", "raw_columns", "detail"),
)
"""Names of our own columns, which a column of the log cannot take beside them."""


REASONS = (
    *("unparsable_row", "truncated_file", "missing_user", "missing_item", "bad_time", "future_time", "too_late"),
    *("unknown_event_type", "item_not_in_catalogue", "bot", "forgotten"),
)
"""Why nightjar itself rejects a row; a site's own rules have names of their own."""


def regular_expression(value: str) -> str:
    """A pattern as it stands; judged by the engine that polars uses, which knows no look-around."""
    try:
        SchemaValidator(core_schema.str_schema(pattern=value))
    except SchemaError as error:
        fault = str(error).splitlines()[-1].removeprefix("error: ")
        raise ValueError(f"{value!r} is no regular expression: {fault}") from error
    return value


Pattern = Annotated[str, AfterValidator(regular_expression)]


class Exclusion(Section):
    """Rows that a site does not want as events, told by one column; they are kept in `rejected`.

    The column is compared as trimmed text, or as a number. A missing value, or a number that is none, meets no rule.
    """

    reason: str = Field(pattern=r"^[a-z][a-z0-9_]{0,40}$")
    """The rule's name, and the reason in `rejected`; rules may share one."""
    column: str
    one_of: list[str] | None = Field(default=None, min_length=1)
    """Exactly one of these texts."""
    matches: Pattern | None = None
    """A regular expression that is found in the text (RE2 syntax; ^ and $ tie it to the ends)."""
    less_than: float | None = None
    more_than: float | None = None

    @field_validator("reason")
    @classmethod
    def reason_is_free(cls, value: str) -> str:
        """Reasons of nightjar's own mean one thing at every site."""
        if value in REASONS:
            raise ValueError(f"{value!r} is a reason of nightjar's own; give the rule another name")
        return value

    @model_validator(mode="after")
    def one_condition(self) -> "Exclusion":
        """A rule says one thing; what several rules say is excluded by any of them."""
        told = [name for name in ("one_of", "matches", "less_than", "more_than") if getattr(self, name) is not None]
        if len(told) != 1:
            raise ValueError(f"give one of one_of, matches, less_than, more_than; found {' and '.join(told) or 'none'}")
        return self


class UserAgent(Section):
    """What a visitor's program calls itself."""

    column: str
    """The log's column; it is read to judge visitors and kept only where `context` names it too."""
    pattern: Pattern
    """A regular expression found in the name of a bot, like `(?i)bot|crawl|spider` (RE2 syntax)."""


class Bots(Section):
    """Visitors that are no people, judged by what they did in one event day; each rule is off unless given.

    All rows that a bot left on that day are rejected. `nightjar ingest --suggest-thresholds` shows what to choose from.
    """

    events_per_day: int | None = Field(default=None, ge=1)
    """A bot has more events in the day."""
    events_per_minute: int | None = Field(default=None, ge=1)
    """A bot has more events in some minute of the clock."""
    distinct_items_share: float | None = Field(default=None, gt=0, le=1)
    """A bot has at least this share of distinct items among its events: it takes in a catalogue, item by item."""
    distinct_items_from: int = Field(default=50, ge=2)
    """Fewest events in the day for which that share says anything: who clicks once has a share of 1."""
    user_agent: UserAgent | None = None
    """A bot says that it is one, in any of its events of the day."""

    @property
    def are_judged(self) -> bool:
        """Whether any rule is on."""
        return any((self.events_per_day, self.events_per_minute, self.distinct_items_share, self.user_agent))


class Source(Section):
    """The raw log."""

    events: str
    """Path with wildcards; `{date}` stands for the delivery day. csv, tsv, jsonl, parquet; gz, zst."""
    reader: str | None = None
    """For a log that is none of these: the name of a reader (pipeline/readers), which gives its columns."""
    columns: EventColumns
    time_unit: str = "iso"
    """`s`, `ms`, `us`, `ns` since 1970, `iso`, or a strptime format. A time without a zone is in the site's zone."""
    event_type: EventType = EventType(constant="view")
    context: list[str] = Field(default_factory=list)
    """Further columns to keep with each event, as text."""
    exclude: list[Exclusion] = Field(default_factory=list)
    """Rows that are no events of this site, like cancellations; the first rule that holds gives the reason."""
    lateness: Duration | None = None
    """Rows older than this, seen from the start of their file's own day, are `too_late`. Needs `{date}`."""
    bots: Bots = Bots()

    @field_validator("time_unit")
    @classmethod
    def unit_is_known(cls, value: str) -> str:
        """A unit's name, or a format that holds at least one field."""
        if value not in TIME_UNITS and "%" not in value:
            raise ValueError(f"{value!r} is no time unit; write {', '.join(TIME_UNITS)} or a strptime format")
        return value

    @field_validator("context")
    @classmethod
    def context_is_free(cls, value: list[str]) -> list[str]:
        """Context columns keep their names, so these must not be ours, nor stand twice."""
        for name in value:
            if name in RESERVED:
                raise ValueError(f"{name!r} is the name of a column that nightjar makes; name it otherwise in the log")
            if value.count(name) > 1:
                raise ValueError(f"{name!r} stands {value.count(name)} times; once is enough")
        return value

    @property
    def named_columns(self) -> list[str]:
        """The log's columns that the site file names, each once."""
        agent = self.bots.user_agent.column if self.bots.user_agent else None
        excluding = [rule.column for rule in self.exclude]
        named = [*self.columns.model_dump().values(), self.event_type.column, *self.context, *excluding, agent]
        return list(dict.fromkeys(name for name in named if name))

    @property
    def is_dated(self) -> bool:
        """Whether a file's path tells its delivery day."""
        return "{date}" in self.events


class ItemColumns(Section):
    """Names of the side table's columns."""

    item_id: str
    title: str | None = None
    category: str | None = None
    price: str | None = None
    available: str | None = None


class Items(Section):
    """The side table that describes items; a site can do without."""

    path: str
    """Path with wildcards, of csv, tsv, JSON Lines or Parquet; `{date}` stands for the delivery day."""
    columns: ItemColumns
    separator: str = ","
    """One character of ASCII, like "\\t"."""
    category_separator: str | None = Field(default=None, min_length=1)
    """What stands between the categories of an item that has several, as in `Drama|Comedy`; None: each has one.

    Models of intents then read and predict them one by one; rules of lists see the text as it is."""
    header: list[str] | None = Field(default=None, min_length=1)
    """Names of the columns of a text file that does not begin with them."""
    unknown: Literal["keep", "reject"] = "keep"
    """What becomes of an event whose item is not in the side table of its file's own day."""

    @field_validator("separator")
    @classmethod
    def separator_is_one_byte(cls, value: str) -> str:
        """What the csv reader takes."""
        if len(value) != 1 or not value.isascii() or value in '"\r\n\0':
            raise ValueError(f'{value!r} cannot separate columns; write one character of ASCII, like ";" or "\\t"')
        return value

    @property
    def named_columns(self) -> list[str]:
        """The side table's columns that the site file names, each once."""
        return list(dict.fromkeys(name for name in self.columns.model_dump().values() if name))


class Sessions(Section):
    """Where one visit ends and the next begins; the rules also cut session ids given by the log."""

    gap: Duration = timedelta(minutes=30)
    """Longest silence inside one session."""
    max_events: int = Field(default=200, ge=2)
    """Longest session in events; the rest opens a new one."""
    max_duration: Duration = timedelta(hours=24)
    """Longest session in time; the rest opens a new one."""
    repeats: Literal["keep", "drop"] = "keep"
    """An event of the same item and type as the one before it in its session: keep it, or leave it out of the lists."""

    @field_validator("max_duration")
    @classmethod
    def at_most_a_day(cls, value: timedelta) -> timedelta:
        """A session touches at most two days; everything downstream relies on it."""
        if not timedelta() < value <= timedelta(hours=24):
            raise ValueError("a session lasts longer than 0s and at most 24h")
        return value


class RuleSettings(Section):
    """What a site sets of a rule of the contract; what is left out stays as declared."""

    severity: Severity | None = None
    """`critical` stops the night, `warning` is reported."""
    low: float | None = None
    """Smallest value allowed."""
    high: float | None = None
    """Largest value allowed."""


class Validation(Section):
    """What a day must look like before a model may learn from it."""

    rules: dict[str, RuleSettings] = Field(default_factory=dict)
    """Name of a rule in pipeline/contract.py -> what this site sets of it."""


class Privacy(Section):
    """What the tables may tell of people."""

    hash_user_ids: bool = False
    """Keep HMAC-SHA256 of each user id and never the id itself. Fixed when the store is made."""
    secret_from: str = Field(default="NIGHTJAR_USER_ID_SECRET", pattern="^[A-Za-z_][A-Za-z0-9_]*$")
    """The environment variable that holds the secret."""


class PipelineSite(Section):
    """What the pipeline knows of a site."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,40}$")
    """Becomes a path, a DAG id and a model name."""
    store: str
    """Where the tables live: a folder under NIGHTJAR_HOME, or s3://, gs://, az://."""
    time_zone: str = "UTC"
    """A day starts at midnight of this zone."""
    buckets: int = Field(default=8, ge=1, le=1024)
    """Parts that visitors are split into; heavy steps hold one at a time. Fixed when the store is made."""
    keep_versions_for: Duration = timedelta(days=30)
    """How long an earlier version of a table can be read and restored; after that `nightjar vacuum` removes it."""
    privacy: Privacy = Privacy()
    source: Source
    items: Items | None = None
    sessions: Sessions = Sessions()
    validation: Validation = Validation()

    home: Path = Field(default=Path(), exclude=True)
    """What relative paths hang from; set by the command line, never in the file."""
    file_sha256: str = Field(default="", exclude=True)
    """Of the site file itself: releases and runs say by which one they were made. Set when it is read."""

    @field_validator("time_zone")
    @classmethod
    def zone_exists(cls, value: str) -> str:
        """Only names of the IANA time zone database."""
        if value not in time_zones():
            raise ValueError(f"{value!r} is no time zone; write a name like UTC or Europe/Berlin")
        return value

    @field_validator("store")
    @classmethod
    def store_has_a_known_scheme(cls, value: str) -> str:
        """A path of a folder, or the address of an object store that delta-rs, polars and fsspec all know."""
        scheme, is_address, _ = value.partition(":/")
        if not value.strip() or "\0" in value:
            raise ValueError("write the path of a folder, or an address like s3://bucket/folder")
        if is_address and (scheme.isalnum() or not scheme) and not re.match(r"(s3a?|gs|az|abfss?)://[^/\s]", value):
            raise ValueError(f"{value!r} is no address of a store; write a path, or s3://…, gs://… or az://…")
        return value

    @field_validator("keep_versions_for")
    @classmethod
    def at_least_a_week(cls, value: timedelta) -> timedelta:
        """Files younger than this may belong to a writer at work or be needed by a reader."""
        if value < timedelta(days=7):
            raise ValueError("versions are kept for at least 7d")
        return value

    @model_validator(mode="after")
    def addresses_hold_no_passwords(self) -> "PipelineSite":
        """Tables, pages and messages name the store and the raw files by their addresses."""
        addresses = {"store": self.store, "source.events": self.source.events}
        if self.items is not None:
            addresses["items.path"] = self.items.path
        for key, address in addresses.items():
            if "://" in address and holds_password(address):
                raise ValueError(
                    f"{key}: {shown(address)} holds a password, and tables and messages would show it. Give it to the "
                    "store's library by the environment: docs/raw-logs.md, Object stores"
                )
        return self

    @model_validator(mode="after")
    def only_user_ids_are_hashed(self) -> "PipelineSite":
        """There must be a column of user ids, and no other column that holds it whole."""
        user_id = self.source.columns.user_id
        if not self.privacy.hash_user_ids:
            return self
        if user_id is None:
            raise ValueError("privacy.hash_user_ids needs source.columns.user_id: there is nothing to hash")
        if around := [name for name in self.source.named_columns if user_id.startswith((f"{name}.", f"{name}["))]:
            raise ValueError(
                f"privacy.hash_user_ids: the column {around[0]!r} holds {user_id!r} as a part of it, unhashed; "
                "name the parts of it that are wanted"
            )
        if any(rule.column == user_id for rule in self.source.exclude):
            raise ValueError(f"privacy.hash_user_ids: source.exclude cannot look at {user_id!r}, which is hashed first")
        return self

    @model_validator(mode="after")
    def lateness_needs_a_date(self) -> "PipelineSite":
        """Lateness is measured from a file's own day."""
        if self.source.lateness is not None and not self.source.is_dated:
            raise ValueError("source.lateness needs {date} in source.events: it is measured from the file's own day")
        return self

    @model_validator(mode="after")
    def rules_are_known(self) -> "PipelineSite":
        """Only rules of the contract, and only limits that a site may set."""
        declared = declared_rules(self)
        for name, told in self.validation.rules.items():
            try:
                rule = find_rule(name, declared)
            except ValueError as error:
                raise ValueError(f"validation.rules: {error}") from error
            if rule.of_each_row and (told.low is not None or told.high is not None):
                raise ValueError(
                    f"validation.rules: {name} is about each row and has no limits to set, only a severity"
                )
        for rule in contract(self):
            low, high = rule.low, rule.high
            if isinstance(low, int | float) and isinstance(high, int | float) and low > high:
                raise ValueError(f"validation.rules: {rule.name} allows nothing between low {low} and high {high}")
        return self

    def resolve(self, path: str) -> str:
        """An absolute path or address for a path of the site file."""
        return path if "://" in path else str(self.home / path)


StepName = Literal["ingest", "sessionize", "validate", "features", "train", "promote", "refit", "export", "drift"]
