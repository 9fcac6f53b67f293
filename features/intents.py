"""What an event tells beside its item, as small codes; and which of it is predicted of the next event: the intents.

    event_type, context columns   as the log tells them
    category, price_band          of its item, as the catalogue tells it; an item may have several categories
    item_age                      how long its item was known then; missing for items that were there when the log
                                  began, whose age nobody knows: the days since then would be a date
    new_or_repeat                 whether its session had the item before

Every property has classes, learnt on a training window and saved with the model. A class has a code from 1; 0 is a
missing value, and so is whatever the window did not hold, like a category first seen after it. Bands are cut at the
quartiles of the window's events. A property with fewer than two classes tells nothing and is left out. A context column
named like another property takes its place.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from features.settings import FeaturesSite
from pipeline.settings import Section
from pipeline.terminal import log

MISSING = 0
MOST_CLASSES = 256
"""Of a property that the log or the catalogue names: its most frequent values; others are missing."""
MOST_CATEGORIES = 8
"""Of an item that has several: the first ones that have a class."""
QUARTILES = (0.25, 0.5, 0.75)
MICROSECONDS_A_DAY = 86_400_000_000

Integers = NDArray[np.int64]


class Definitions(Section):
    """The properties of events that a model reads, and those that it predicts; a code is a place in `classes` + 1."""

    classes: dict[str, tuple[str, ...]] = Field(default={"new_or_repeat": ("new", "repeat")})
    """Names of the classes of each property."""
    columns: tuple[str, ...] = ()
    """The properties that the log itself tells of each event."""
    age_edges: tuple[float, ...] = ()
    """Days at which a band of item_age ends."""
    price_edges: tuple[float, ...] = ()
    """Prices at which a band of price_band ends."""
    intents: tuple[str, ...] = ("new_or_repeat",)
    """The properties of the next event that are predicted."""
    time_zone: str = "UTC"
    """In which hours and weekdays are told."""
    category_separator: str | None = None
    """What stands between the categories of an item; None: it has one."""
    num_categories: int = 1
    """Most categories of an item that are told; 1: `category`, 2: `category_2` beside it, and so on."""

    @property
    def category_columns(self) -> tuple[str, ...]:
        """Where the categories of items are told, the first one first."""
        return ("category", *(f"category_{n}" for n in range(2, self.num_categories + 1)))

    def text(self) -> str:
        """All of it as JSON, without what only items with several categories need, where there are none.

        So definitions are equal to those of models that were made before items could have several.
        """
        unused = {"category_separator", "num_categories"} if self.category_separator is None else None
        return self.model_dump_json(exclude=unused)

    def encode(self, events: pl.DataFrame) -> dict[str, Integers]:
        """(T) codes of the properties that the log tells; a column that is not there is left out."""
        return {
            name: events.select(coded(pl.col(name), self.classes[name])).to_series().to_numpy()
            for name in self.columns
            if name in events.columns
        }

    def describe(self, item_ids: pl.Series, catalogue: pl.DataFrame) -> pl.DataFrame:
        """What is known of items, a row each: codes of their categories and of price_band, and first_seen.

        `first_seen` is in microseconds since 1970, the midnight before the item was first seen; 0 if that is unknown.
        """
        known = catalogue.select("item_id", "category", "price", first_seen=first_seen())
        found = item_ids.to_frame("item_id").join(known, on="item_id", how="left", maintain_order="left")
        codes = categories(pl.col("category"), self.category_separator).list.eval(
            coded(pl.element(), self.classes.get("category", ()))
        )
        told = codes.list.eval(pl.element().filter(pl.element() != MISSING))
        return found.select(
            *(
                told.list.get(n, null_on_oob=True).fill_null(MISSING).alias(column)
                for n, column in enumerate(self.category_columns)
            ),
            price_band=banded(pl.col("price"), self.price_edges),
            first_seen=midnight(pl.col("first_seen"), self.time_zone).fill_null(MISSING),
        )


def learn_definitions(
    site: FeaturesSite, sessions: pl.DataFrame, catalogue: pl.DataFrame, read: Sequence[str] | None = None
) -> Definitions:
    """Classes and bands of a window's sessions; `catalogue` holds the rows of `items` that were known at its end.

    With `read` only of these properties, none of which is predicted; else of all, and intents as the site names them.
    """
    columns = ("event_type", *site.source.context)
    lists = ("offsets_seconds", "item_ids", "event_types", *site.source.context)
    events = sessions.select("session_id", "started_at", *lists).explode(lists)
    events = events.rename({"item_ids": "item_id", "event_types": "event_type"})
    ours = catalogue.select("item_id", first_seen=first_seen(), ours="category", price_of_item="price")
    told = events.join(ours, on="item_id", how="left")
    happened = pl.col("started_at").dt.epoch("us") + pl.col("offsets_seconds") * 1e6
    age = (happened - midnight(pl.col("first_seen"), site.time_zone)) / MICROSECONDS_A_DAY
    age_edges, price_edges = edges(told.select(age=age)["age"]), edges(told["price_of_item"])
    separator = None if site.items is None else site.items.category_separator
    of_items = told.select("item_id", ours=categories(pl.col("ours"), separator))
    has_repeats = bool(events.select("session_id", "item_id").is_duplicated().any())
    classes = {
        "category": most_frequent(of_items["ours"].explode()),
        "price_band": band_names(price_edges, ""),
        "item_age": band_names(age_edges, " days"),
        "new_or_repeat": ("new", "repeat") if has_repeats else ("new",),
        **{name: most_frequent(events[name]) for name in columns},
    }
    telling = {name: names for name, names in classes.items() if len(names) > 1 and (read is None or name in read)}
    kind, wanted = (
        ("intent", site.intents) if read is None else ("property", [name for name in read if name in classes])
    )
    for name in wanted:
        if name not in telling:
            log.warning("%s %s is left out: the window holds %d class of it", kind, name, len(classes[name]))
    return Definitions(
        classes=telling,
        columns=tuple(name for name in columns if name in telling),
        age_edges=age_edges,
        price_edges=price_edges,
        intents=() if read is not None else tuple(name for name in site.intents if name in telling),
        time_zone=site.time_zone,
        category_separator=separator,
        num_categories=min(max(1, int(of_items["ours"].list.len().max() or 1)), MOST_CATEGORIES),  # type: ignore[arg-type]
    )


def tell_of_gone_columns(site: FeaturesSite, definitions: Definitions | None) -> None:
    """Warn where a model reads a column that the site's events do not have any more."""
    columns = () if definitions is None else definitions.columns
    for name in columns:
        if name not in ("event_type", *site.source.context):
            log.warning(
                "%s: the model reads %s, which source.context does not name any more; it is missing for every event. "
                "Name it again, or train the model anew",
                *(site.name, name),
            )


def categories(text: pl.Expr, separator: str | None) -> pl.Expr:
    """The categories that a text names, each once, in its order; a null names none."""
    parts = pl.concat_list(text) if separator is None else text.str.split(separator)
    if separator is not None:
        parts = parts.list.eval(pl.element().str.strip_chars())
    return parts.list.eval(pl.element().filter(pl.element().is_not_null() & (pl.element() != ""))).list.unique(
        maintain_order=True
    )


def most_frequent(values: pl.Series) -> tuple[str, ...]:
    """The values of a column, the most frequent first; at most MOST_CLASSES."""
    counts = values.drop_nulls().value_counts().sort("count", values.name, descending=[True, False])
    return tuple(counts[values.name].head(MOST_CLASSES))


def edges(values: pl.Series) -> tuple[float, ...]:
    """Quartiles that really cut the values in two; without nulls and NaN."""
    told = values.drop_nulls().drop_nans().cast(pl.Float64)
    if told.is_empty():
        return ()
    lowest = float(told.min())  # type: ignore[arg-type]
    found = {float(told.quantile(share, "lower")) for share in QUARTILES}  # type: ignore[arg-type]
    return tuple(sorted(edge for edge in found if edge > lowest))


def band_names(cuts: tuple[float, ...], unit: str) -> tuple[str, ...]:
    """Names of the bands between edges; an edge belongs to the band above it."""
    if not cuts:
        return ()
    told = [f"{edge:.3g}" for edge in cuts]
    between = [f"{low} to {high}{unit}" for low, high in pairwise(told)]
    return (f"below {told[0]}{unit}", *between, f"{told[-1]}{unit} and more")


def coded(value: pl.Expr, names: tuple[str, ...]) -> pl.Expr:
    """The code of each value; 0 for a missing one and one without a class."""
    if not names:
        return value.is_null().cast(pl.Int64) * MISSING
    codes = list(range(1, len(names) + 1))
    return value.replace_strict(list(names), codes, default=MISSING, return_dtype=pl.Int64).fill_null(MISSING)


def banded(value: pl.Expr, cuts: tuple[float, ...]) -> pl.Expr:
    """The code of the band of each value; 0 for a missing one."""
    code = pl.sum_horizontal([pl.lit(1), *((value >= edge).cast(pl.Int64) for edge in cuts)])
    return pl.when(value.is_null() | value.is_nan()).then(MISSING).otherwise(code).cast(pl.Int64)


def first_seen() -> pl.Expr:
    """The day of a catalogue's item; null on the first of all days, on which items may have been there for long."""
    day = pl.col("first_seen")
    return pl.when(day > day.min()).then(day)


def midnight(day: pl.Expr, time_zone: str) -> pl.Expr:
    """Microseconds since 1970 of the midnight that begins a day of the site."""
    return (
        day.cast(pl.Datetime("us"))
        .dt.replace_time_zone(time_zone, ambiguous="earliest", non_existent="null")
        .dt.epoch("us")
    )


def clock(occurred_at: Integers, time_zone: str) -> tuple[Integers, Integers]:
    """(T) the hour, 0 to 23, and the weekday, 0 (Monday) to 6, of moments (microseconds since 1970) in a zone."""
    local = pl.Series(occurred_at).cast(pl.Datetime("us", "UTC")).dt.convert_time_zone(time_zone)
    return local.dt.hour().cast(pl.Int64).to_numpy(writable=True), local.dt.weekday().cast(pl.Int64).to_numpy() - 1
