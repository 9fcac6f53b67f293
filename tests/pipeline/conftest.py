"""A small site in a folder of its own: write raw files, run steps, look at tables."""

from collections.abc import Callable, Iterable
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.ingest import ingest
from pipeline.publish import Store, open_store
from pipeline.sessionize import sessionize_stale
from pipeline.settings import PipelineSite
from pipeline.tables import DAYS, FILES, ITEMS, REJECTED, Table, events_table, sessions_table

DAY_1, DAY_2, DAY_3 = (date(2026, 3, day) for day in (1, 2, 3))
RUN_COLUMNS = ("ingested_run",)
HEADER = "user,session,item,time,type"


class SmallSite:
    """A site whose log has the columns of HEADER; a row is one line of text."""

    def __init__(self, home: Path, **changes: Any) -> None:
        self.home = home
        source = {
            "events": "raw/events-{date}*.csv",
            "columns": {"user_id": "user", "session_id": "session", "item_id": "item", "occurred_at": "time"},
            "event_type": {"column": "type", "map": {"view": "view", "BUY": "purchase"}},
        } | changes.pop("source", {})
        values = {"name": "small", "store": "store", "buckets": 2, "home": home, "source": source} | changes
        self.site = PipelineSite.model_validate(values)
        (home / "raw").mkdir(parents=True, exist_ok=True)

    @cached_property
    def store(self) -> Store:
        return open_store(self.site)

    def with_rules(self, **sessions: Any) -> "SmallSite":
        """The same home, read with other rules of what a session is."""
        return SmallSite(self.home, sessions=sessions)

    def deliver(self, name: str, *rows: str, header: str = HEADER) -> Path:
        """A raw file `events-<name>.csv`."""
        path = self.home / f"raw/events-{name}.csv"
        path.write_text("".join(f"{line}\n" for line in (header, *rows)))
        return path

    def ingest(self, *days: date) -> dict[str, Any]:
        """Counts of the last day; each day's counts add up."""
        for day in days:
            counts = ingest(self.site, self.store, day)
            assert counts["rows_read"] == counts["events"] + counts["duplicates"] + sum(counts["rejected"].values())
        return counts

    def sessionize(self, *days: date) -> dict[str, Any]:
        for day in days:
            counts = sessionize_stale(self.site, self.store, day)
        return counts

    def table(self, table: Table) -> pl.DataFrame:
        """All rows in one order, without what differs from run to run."""
        rows = self.store.scan(table).collect()
        kept = rows.select(name for name in rows.columns if name not in RUN_COLUMNS)
        return kept.sort([name for name in kept.columns if not kept.schema[name].is_nested()], nulls_last=True)

    @property
    def events(self) -> pl.DataFrame:
        return self.table(events_table(self.site.source.context))

    @property
    def sessions(self) -> pl.DataFrame:
        return self.table(sessions_table(self.site.source.context))

    @property
    def rejected(self) -> pl.DataFrame:
        return self.table(REJECTED)

    @property
    def days(self) -> pl.DataFrame:
        return self.table(DAYS)

    def tables(self) -> dict[str, list[tuple[Any, ...]]]:
        """Everything the store says, with paths that do not depend on the home."""
        found = {
            "events": self.events,
            "sessions": self.sessions,
            "rejected": self.rejected,
            "days": self.days,
            "files": self.table(FILES),
            "items": self.table(ITEMS),
        }
        return {name: [self.homeless(row) for row in rows.rows()] for name, rows in found.items()}

    def homeless(self, row: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(cell.replace(str(self.home), "") if isinstance(cell, str) else cell for cell in row)

    def versions(self) -> dict[str, int | None]:
        tables = (events_table(self.site.source.context), REJECTED, FILES, DAYS)
        return {table.name: self.store.version(table) for table in tables}

    def reasons(self) -> list[str]:
        return sorted(self.rejected["reason"])

    def items(self, column: str = "item_id") -> list[Any]:
        return sorted(self.events[column])


@pytest.fixture
def small(tmp_path: Path) -> SmallSite:
    return SmallSite(tmp_path / "home")


@pytest.fixture
def make_small(tmp_path: Path) -> Callable[..., SmallSite]:
    """A further small site, in a folder of that name."""

    def make(name: str = "home", **changes: Any) -> SmallSite:
        return SmallSite(tmp_path / name, **changes)

    return make


@pytest.fixture(scope="session")
def make_small_in() -> type[SmallSite]:
    """A small site in a folder that is given."""
    return SmallSite


@pytest.fixture(scope="session")
def make_events() -> Callable[..., pl.DataFrame]:
    """Rows for `events` from (visitor, minute after midnight of DAY_1, item) and a given session id."""

    def make(rows: Iterable[tuple[Any, ...]], given: str | None = None) -> pl.DataFrame:
        table = events_table([])
        listed = [(*row, given)[:4] for row in rows]
        told = pl.DataFrame(listed, schema=["visitor", "minute", "item_id", "given_session_id"], orient="row")
        minutes = pl.duration(microseconds=(pl.col("minute") * 60e6).round().cast(pl.Int64))
        at = pl.lit(DAY_1).cast(pl.Datetime("us", "UTC")) + minutes
        events = told.with_columns(
            occurred_at=at,
            event_date=at.dt.date(),
            event_type=pl.lit("view"),
            user_id="visitor",
            user_bucket=pl.lit(0),
            event_id=pl.concat_str("visitor", "minute", "item_id", separator=" "),
        ).drop("minute")
        return pl.concat([table.empty(), events], how="diagonal_relaxed")

    return make


@pytest.fixture(scope="session")
def explore() -> Callable[..., None]:
    """Hold a law against examples: `explore(num_examples, law, **strategies)`; the quick ones are always the same."""

    def check(num_examples: int, law: Callable[..., None], **strategies: st.SearchStrategy[Any]) -> None:
        checks = settings(
            max_examples=num_examples,
            deadline=None,
            derandomize=num_examples < 100,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        checks(given(**strategies)(law))()

    return check
