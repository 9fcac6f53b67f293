"""What answers are made from: a version of the model, with the items, rules and popular lists of the newest release.

Read once; nothing changes it afterwards, so that many threads may ask it, and two of them stand side by side.
"""

from dataclasses import dataclass, field, replace
from datetime import date
from functools import cached_property

import numpy as np
import polars as pl

from pipeline.catalogue import latest_items
from pipeline.dates import day_end
from pipeline.days import passed_days
from pipeline.errors import ConfigurationError
from pipeline.publish import Store
from serving_export.assortment import NO_CATEGORY, Assortment, make_assortment
from serving_export.filling import ChannelRules
from serving_export.item_index import ItemIndex, exact_index, has_index, read_index
from serving_export.list_maker import ChannelPlan, ListMaker, plan_channels
from serving_export.popular import allowed_popular
from serving_export.reader import facts_of
from serving_export.related import read_related
from serving_export.scoring import Vectors, item_vectors
from serving_export.tables import POPULAR_ITEMS, RECOMMENDATIONS, RELATED_ITEMS
from training.bundle import Bundle
from training.cold_items import offer_new
from training.export_settings import Seen
from training.settings import TrainingSite
from training.tracking import Tracking, number

COMPANIONS = (POPULAR_ITEMS, RELATED_ITEMS)
NO_RULES = "any"


@dataclass(frozen=True)
class Loaded:
    """A served model, or none, and all that its lists are made by."""

    site: TrainingSite
    version: int | None
    """Of the model; None: there is none, and all lists hold popular items."""
    maker: ListMaker
    """With a plan for each of the site's channels."""
    no_rules: ChannelPlan
    """For who asks without a channel: every item that the model knows may stand."""
    end: int
    """The end of the data that is known, microseconds since 1970."""
    last_day: date | None
    """The newest day of it."""
    plans: dict[str, ChannelPlan] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "plans", {plan.rules.name: plan for plan in self.maker.channels})

    @property
    def bundle(self) -> Bundle | None:
        """The model with its items."""
        return self.maker.bundle

    @property
    def assortment(self) -> Assortment:
        """All items that a list can name."""
        return self.maker.assortment

    @cached_property
    def codes(self) -> dict[str, int]:
        """The code of each item by its id."""
        return dict(self.assortment.codes.iter_rows())

    @cached_property
    def item_ids(self) -> list[str]:
        """The id of each item, by code; of 0, which is no item, None."""
        return self.assortment.item_ids.to_list()

    @cached_property
    def titles(self) -> list[str | None]:
        """What each item is called, by code."""
        return self.assortment.items["title"].to_list()

    def plan(self, channel: str | None, top: int) -> ChannelPlan:
        """How lists of so many items are made for a channel; raises ConfigurationError for one that is not there."""
        if channel is not None and channel not in self.plans:
            raise ConfigurationError(
                f"{self.site.name} has no channel {channel!r}; there are {', '.join(sorted(self.plans))}"
            )
        plan = self.no_rules if channel is None else self.plans[channel]
        return replace(plan, rules=replace(plan.rules, top_n=top))


def load(site: TrainingSite, store: Store, version: int | None = None) -> Loaded:
    """The serving model, or that of a version, ready to answer.

    Raises ConfigurationError if there is neither a model nor a list of popular items, and for a damaged index.
    """
    store = store.pinned()
    tracking = Tracking(site)
    found = tracking.by_alias("serving") if version is None else tracking.by_number(version)
    if found is None:
        return assemble(site, store, None, None)
    return assemble(site, store, tracking.load(found), number(found))


def assemble(site: TrainingSite, store: Store, bundle: Bundle | None, version: int | None) -> Loaded:
    """All that a model's lists, or popular ones, are made by."""
    passed = passed_days(store, date.min, date.max)
    if bundle is not None and passed:
        bundle = offer_new(site, store, bundle, passed[-1])
    released = companion_versions(store)
    popular = store.scan(POPULAR_ITEMS, released.get(POPULAR_ITEMS.name)).sort("rank").collect()
    if bundle is None and popular.is_empty():
        raise ConfigurationError(
            f"{site.name} has neither a serving model nor popular items yet. Run a night first: `nightjar run --site …`"
        )
    assortment = make_assortment(None if bundle is None else bundle.vocabulary, latest_items(store, date.max))
    vectors_ID = None if bundle is None else item_vectors(bundle)
    indexes = {}
    if bundle is not None and version is not None and vectors_ID is not None:
        indexes = read_indexes(site, store, bundle, version, assortment, vectors_ID)
    channels = site.export.all_channels()
    shown = {name: popular.filter(pl.col("channel") == name) for name in channels}
    related = None
    if any(channel.complements for channel in channels.values()):
        rows = store.scan(RELATED_ITEMS, released.get(RELATED_ITEMS.name)).collect()
        related = read_related(rows, assortment)
    maker = ListMaker(plan_channels(site, assortment, indexes, shown), assortment, bundle, vectors_ID, related)
    ends = [int(day_end(day, site.time_zone).timestamp()) * 1_000_000 for day in passed[-1:]]
    return Loaded(
        site,
        version,
        maker,
        plan_without_rules(assortment, indexes, shown[next(iter(site.export.channels))]),
        max([*ends, 0 if bundle is None else bundle.as_of]),
        passed[-1] if passed else None,
    )


def companion_versions(store: Store) -> dict[str, int]:
    """The versions of the tables that belong to the release that readers see; none where there is none."""
    table = store.open(RECOMMENDATIONS)
    try:
        facts = {} if table is None else facts_of(table)
    except LookupError:
        return {}
    told = {each.name: facts.get(f"{each.name}_version") for each in COMPANIONS}
    return {name: int(version) for name, version in told.items() if version is not None}


def read_indexes(
    site: TrainingSite, store: Store, bundle: Bundle, version: int, assortment: Assortment, vectors_ID: Vectors
) -> dict[bytes, ItemIndex]:
    """An index for each set of items that channels allow, by its mask; of all items the saved one, where there is one.

    The others are exact, and so is that of a model that offers cold items, which are others every day.
    """
    everything = np.arange(assortment.num_known) > 0
    found = {}
    if has_index(store, version) and not bundle.vocabulary.num_cold:
        found[everything.tobytes()] = read_index(store, bundle, version)
    channels = site.export.all_channels().values()
    for mask in (everything, *(assortment.allowed(channel)[: assortment.num_known] for channel in channels)):
        codes = np.flatnonzero(mask)
        if mask.tobytes() not in found and len(codes):
            found[mask.tobytes()] = exact_index(vectors_ID, codes)
    return found


def plan_without_rules(assortment: Assortment, indexes: dict[bytes, ItemIndex], popular: pl.DataFrame) -> ChannelPlan:
    """Whatever the model knows may stand, seen or not; where it knows nothing, popular items."""
    everything_A = np.arange(assortment.size) > 0
    rules = ChannelRules(NO_RULES, 0, everything_A, np.full(assortment.size, NO_CATEGORY), None)
    index = indexes.get(everything_A[: assortment.num_known].tobytes())
    return ChannelPlan(rules, Seen(policy="allow"), 0, allowed_popular(popular, assortment, everything_A), index)
