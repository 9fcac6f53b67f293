"""Simulate the raw logs of a shop: people with tastes and intents nobody tells us, and logs with faults in them.

A visit is made by a visitor with a taste (a distribution over categories) or by a passer-by without one. It has an
intent and a focus category, both hidden and fixed. Each next item j, given the item i before it, is drawn from

    stay[type of i] * [j = i]  +  (1 - stay) * sum over sources of weight[intent, source] * p_source(j)

    follow    a successor of i in a fixed graph        liked     what the visitor carted on earlier days
    category  the focus category, by popularity        anywhere  the whole shop, by popularity
    taste     a category by taste, then by popularity

where only items on sale have a chance. Acting on the same item again takes it from view to cart to purchase.
`oracle_ranks` ranks the real next item by this very distribution: no model can be expected to rank better.

Reads   nothing: a day's content follows from the shop's options, seed and the date alone
Writes  source.events   one raw file per day, with the faults that DayReport counts
        items.path      the side table: all items launched so far
        simulation.json beside the raw files: what was planted, and the oracle's recall
"""

import gzip
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl

from pipeline.durable import write_whole as put_whole
from pipeline.errors import ConfigurationError
from pipeline.settings import EventColumns, PipelineSite

log = logging.getLogger(__name__)

COLUMNS = ["user_id", "session_id", "item_id", "event", "time", "device", "price"]
EVENT_TYPES = ["view", "cart", "purchase"]
DEVICES = ["phone", "desktop", "tablet"]
METRIC_KS = (5, 10, 20)

CATEGORIES = {
    "shirts": ("Shirt", 35),
    "trousers": ("Trousers", 55),
    "dresses": ("Dress", 70),
    "jackets": ("Jacket", 120),
    "shoes": ("Shoes", 90),
    "hats": ("Hat", 25),
    "bags": ("Bag", 60),
    "scarves": ("Scarf", 22),
    "socks": ("Socks", 8),
    "towels": ("Towel", 18),
    "blankets": ("Blanket", 48),
    "cushions": ("Cushion", 28),
}
"""Category -> the noun in its titles and a usual price."""
COLOURS = ["Blue", "Red", "Green", "Black", "White", "Sand", "Grey", "Rust", "Olive", "Plum"]
MATERIALS = ["Linen", "Cotton", "Wool", "Hemp", "Silk", "Denim", "Canvas", "Velvet"]

INTENTS = ["focused", "browse", "rediscover", "none"]
"""Goes from an item to what fits it; looks around in one category; comes back to what was liked before; drifts."""
INTENT_SHARES = np.array([0.40, 0.38, 0.22, 0.0])
PLAIN_SHARES = np.array([0.0, 0.0, 0.0, 1.0])
FOLLOW, CATEGORY, TASTE, LIKED, ANYWHERE = range(5)
SOURCE_WEIGHTS = np.array(
    [  # follow, category, taste, liked, anywhere
        [0.68, 0.22, 0.03, 0.00, 0.07],
        [0.04, 0.76, 0.06, 0.00, 0.14],
        [0.15, 0.05, 0.25, 0.45, 0.10],
        [0.45, 0.00, 0.00, 0.00, 0.55],
    ]
)
"""Intent x source: where the next item comes from."""
STAY = np.array([0.10, 0.40, 0.0])
"""Chance to act on the same item again, by the type of the event before: view, cart, purchase."""
SUCCESSOR_WEIGHTS = np.array([0.50, 0.25, 0.15, 0.10])
SAME_CATEGORY_ODDS = 40.0
"""How much likelier an item of the same category becomes a successor."""

PARTS_OF_DAY = np.array([[6, 11], [12, 17], [18, 24]])
"""Hours in which visits start. A visit lasts less than an hour, so visits of one visitor never overlap."""
PART_SHARES = np.array([0.2, 0.3, 0.5])
MAX_EVENTS = 30
MAX_VISIT_SECONDS = 59 * 60
MAX_GAP_SECONDS = 24 * 60
CHUNK = 128
"""Rows of a dense (rows x items) probability table that are held at once."""

WORLD_STREAM, VISIT_STREAM, FAULT_STREAM, LATE_STREAM = range(4)
BAD_TIMES = ["not a time", "2026-02-30T12:00:00+00:00", "12:61"]
UNKNOWN_EVENTS = ["wishlist", "hover"]
STRAY_LINE = "-- log rotated --"


@dataclass(frozen=True, kw_only=True)
class Shop:
    """How large the shop is and how faulty its logs are. Same options, same bytes."""

    seed: int = 1
    opens_on: date = date(2026, 3, 1)
    """First day with events. A later day is simulated from here on, because people remember what they liked."""
    num_items: int = 600
    num_visitors: int = 4000
    """Known users; each comes back on several days."""
    sessions_per_day: int = 3500
    """Visits that begin in a day; of about five events each."""
    anonymous_share: float = 0.15
    """Share of visits without a user id."""
    launch_share: float = 0.15
    """Share of items that are not sold from the start."""
    launch_days: int = 10
    """Those are launched on one of so many days after the first."""
    late_share: float = 0.005
    """Share of a day's rows that are delivered with the next day's file."""
    faults_per_day: int = 20
    """About so many rows per day of each kind of fault; the exact number is drawn anew for each kind and day."""
    is_plain: bool = False
    """Whether nobody has a taste, an intent or a memory: a shop in which neither can help to tell what comes next."""
    bots_per_day: int = 1
    """Crawlers, each with twice the events that the site's `source.bots.events_per_day` allows."""

    def __post_init__(self) -> None:
        shares = {name: getattr(self, name) for name in ("anonymous_share", "launch_share", "late_share")}
        for name, share in shares.items():
            if not 0 <= share < 1:
                raise ValueError(f"{name} is {share}; it must be at least 0 and below 1")
        if self.num_items < 10 * len(CATEGORIES):
            raise ValueError(f"num_items is {self.num_items}; give each of {len(CATEGORIES)} categories at least 10")
        if self.sessions_per_day < 1 or self.launch_days < 1:
            raise ValueError("sessions_per_day and launch_days must be at least 1")
        if min(self.seed, self.faults_per_day, self.bots_per_day) < 0:
            raise ValueError("seed, faults_per_day and bots_per_day must not be negative")
        if self.num_known_sessions > self.num_visitors:
            raise ValueError(
                f"{self.num_known_sessions} visits of known users a day are too many for {self.num_visitors} of them; "
                "lower sessions_per_day or raise num_visitors"
            )

    @property
    def num_known_sessions(self) -> int:
        """Visits of a day that carry a user id."""
        return round(self.sessions_per_day * (1 - self.anonymous_share))


@dataclass(frozen=True, kw_only=True)
class DayReport:
    """What one day's file holds, and what ingest must find in it once all earlier files are loaded."""

    date: date
    rows: int
    """Lines of the file but the header: events + duplicates + all rejected."""
    events: int
    """Rows to accept, late ones included."""
    late: int
    """Of these, the rows that happened on the day before."""
    duplicates: int
    redelivered: int
    """Of these, the rows that the day before's file had already."""
    rejected: dict[str, int]
    """Reason -> rows. A fault whose rule is off in the site file is not planted."""
    sessions: int
    """Visits that begin on this day, bots left out."""
    anonymous_sessions: int
    sessions_over_midnight: int
    """Visits that begin on this day and end on the next."""
    users: int
    """Known users among the visitors of this day."""
    items_on_sale: int
    items_launched: int
    """New on this day; on the first day, none."""
    oracle: dict[str, float]
    """The best reachable next-item metrics, over all events but the first of the visits that begin on this day."""
    oracle_targets: int
    """Events that the oracle was measured on."""


@dataclass(frozen=True, kw_only=True)
class SimulationReport:
    """What was simulated, day by day."""

    site: str
    seed: int
    days: tuple[DayReport, ...]

    def to_json(self) -> str:
        """The report as text, days in ISO 8601."""
        return json.dumps(asdict(self), indent=2, default=str) + "\n"


def simulate(site: PipelineSite, days: Sequence[date], shop: Shop) -> SimulationReport:
    """Write the raw files of `days` where `site` looks for them; files that exist are replaced.

    Raises ConfigurationError: the site reads other columns, or a place or a day that cannot be written.
    """
    check_site(site)
    check_days(days, shop)
    reports = []
    world = draw_world(shop)
    yesterday = None
    for today in simulate_days(world, site.time_zone, until=max(days)):
        if today.date in days:
            reports.append(write_day(site, world, today, yesterday))
            log.info("simulate %s: %d rows, %d events", today.date, reports[-1].rows, reports[-1].events)
        yesterday = today
    if site.items is not None and "{date}" not in site.items.path:
        write_items(site.resolve(site.items.path), world, max(days))
    report = SimulationReport(site=site.name, seed=shop.seed, days=tuple(reports))
    write_whole(report_path(site), report.to_json().encode())
    return report


def report_path(site: PipelineSite) -> Path:
    """Where the report lies: beside the raw files."""
    return Path(site.resolve(site.source.events)).parent / "simulation.json"


def check_days(days: Sequence[date], shop: Shop) -> None:
    """Refuse days on which there is nothing to simulate."""
    if not days:
        raise ConfigurationError("simulate was given no days; give at least one")
    if min(days) < shop.opens_on:
        raise ConfigurationError(f"the simulated shop opens on {shop.opens_on}; {min(days)} is before that")


def check_site(site: PipelineSite) -> None:
    """Refuse a site that could not read what we write, or would count it otherwise than we report."""
    source, items = site.source, site.items
    ours = EventColumns(user_id="user_id", session_id="session_id", item_id="item_id", occurred_at="time")
    paths = {"source.events": source.events} | ({"items.path": items.path} if items is not None else {})
    if source.columns != ours or source.event_type.column != "event" or source.time_unit != "iso":
        raise ConfigurationError(
            f"simulate writes the columns {', '.join(COLUMNS)} with ISO 8601 times, but site {site.name} reads others; "
            "take source.columns, event_type and time_unit from conf/demo.yaml"
        )
    if set(source.event_type.map) != set(EVENT_TYPES):
        raise ConfigurationError(f"source.event_type.map must name the simulated events {', '.join(EVENT_TYPES)}")
    if not source.is_dated:
        raise ConfigurationError(
            f"source.events is {source.events!r}; simulate writes a file per day, so put {{date}} in it"
        )
    for key, path in paths.items():
        if "://" in path or any(wildcard in path for wildcard in "*?["):
            raise ConfigurationError(f"{key} is {path!r}; simulate needs a path on this machine without wildcards")
        file_format(path)
    if source.lateness is not None and source.lateness < timedelta(days=1):
        raise ConfigurationError(
            f"source.lateness is {source.lateness}; simulated rows come up to a day late: give 1d or more"
        )
    limit = source.bots.events_per_day
    if limit is not None and not 150 <= limit <= 30_000:
        raise ConfigurationError(
            f"source.bots.events_per_day is {limit}; simulate tells bots from people at 150 to 30000"
        )


# The shop and its visitors


@dataclass(frozen=True, kw_only=True)
class World:
    """What does not change: items, their successors, visitors and their tastes. I items, V visitors, C categories."""

    shop: Shop
    item_ids: list[str]
    titles: list[str]
    prices_I: np.ndarray
    categories_I: np.ndarray
    popularity_I: np.ndarray
    launch_days_I: np.ndarray
    """Days after opening; 0 is sold from the start."""
    successors_II: np.ndarray
    """Row i: how likely each item is to be looked at after item i, were all on sale."""
    tastes_VC: np.ndarray
    """Each visitor's; the last row is a passer-by's: the average."""
    activities_V: np.ndarray
    devices_V: np.ndarray

    def rng(self, stream: int, day: date) -> np.random.Generator:
        """Random numbers of one purpose and one day; no other day can shift them."""
        return np.random.default_rng([self.shop.seed, stream, day.toordinal()])

    def is_on_sale(self, day: date) -> np.ndarray:
        """Which items can be bought on a day."""
        return self.launch_days_I <= (day - self.shop.opens_on).days


def draw_world(shop: Shop) -> World:
    """The shop and its visitors, drawn from the seed."""
    rng = np.random.default_rng([shop.seed, WORLD_STREAM])
    num_items, num_categories = shop.num_items, len(CATEGORIES)
    categories_I = rng.permutation(np.arange(num_items) % num_categories)
    popularity_I = rng.permutation(np.arange(1, num_items + 1) ** -0.8)
    is_launched_later = rng.random(num_items) < shop.launch_share
    is_launched_later[np.unique(categories_I, return_index=True)[1]] = False  # no category is ever empty
    launch_days_I = np.where(is_launched_later, rng.integers(1, shop.launch_days + 1, num_items), 0)
    tastes_VC = rng.dirichlet(np.full(num_categories, 0.25), shop.num_visitors)
    if shop.is_plain:
        tastes_VC[:] = tastes_VC.mean(axis=0)
    return World(
        shop=shop,
        item_ids=[f"sku-{number:05d}" for number in range(num_items)],
        titles=draw_titles(rng, categories_I),
        prices_I=draw_prices(rng, categories_I),
        categories_I=categories_I,
        popularity_I=popularity_I,
        launch_days_I=launch_days_I,
        successors_II=draw_successors(rng, categories_I),
        tastes_VC=np.vstack([tastes_VC, tastes_VC.mean(axis=0)]),
        activities_V=rng.gamma(1.5, size=shop.num_visitors) + 0.05,
        devices_V=rng.choice(len(DEVICES), shop.num_visitors + 1, p=[0.6, 0.3, 0.1]),
    )


def draw_titles(rng: np.random.Generator, categories_I: np.ndarray) -> list[str]:
    """`Blue Linen Shirt`, and one in ten turned round: `Shirt, Blue Linen`."""
    nouns = [noun for noun, _ in CATEGORIES.values()]
    num_items = len(categories_I)
    words = pl.DataFrame(
        {
            "noun": [nouns[category] for category in categories_I],
            "colour": rng.choice(COLOURS, num_items),
            "material": rng.choice(MATERIALS, num_items),
            "is_turned": rng.random(num_items) < 0.1,
        }
    )
    turned = pl.format("{}, {} {}", "noun", "colour", "material")
    plain = pl.format("{} {} {}", "colour", "material", "noun")
    titles: list[str] = words.select(pl.when("is_turned").then(turned).otherwise(plain)).to_series().to_list()
    return titles


def draw_prices(rng: np.random.Generator, categories_I: np.ndarray) -> np.ndarray:
    """Around the category's usual price, ending in .90."""
    usual_C = np.array([price for _, price in CATEGORIES.values()])
    return np.round(usual_C[categories_I] * rng.lognormal(0.0, 0.4, len(categories_I))) + 0.90


def draw_successors(rng: np.random.Generator, categories_I: np.ndarray) -> np.ndarray:
    """A few successors per item, mostly of its category (Gumbel top-k: draws without replacement)."""
    num_items = len(categories_I)
    odds_II = np.where(categories_I[:, None] == categories_I[None, :], SAME_CATEGORY_ODDS, 1.0)
    scores_II = np.log(odds_II) + rng.gumbel(size=odds_II.shape)
    np.fill_diagonal(scores_II, -np.inf)
    best = np.argsort(-scores_II, axis=1)[:, : len(SUCCESSOR_WEIGHTS)]
    successors_II = np.zeros((num_items, num_items))
    np.put_along_axis(successors_II, best, np.broadcast_to(SUCCESSOR_WEIGHTS, best.shape), axis=1)
    return successors_II


# The visits of a day


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """A day's view of the world: what is on sale, and what each visitor liked before. Each source sums to one."""

    categories_I: np.ndarray
    popularity_I: np.ndarray
    in_category_I: np.ndarray
    """Popularity of an item within its category."""
    successors_II: np.ndarray
    tastes_VC: np.ndarray
    liked_VI: np.ndarray
    """Carts and purchases of earlier days; row sums are 1, or 0 where nothing was liked yet."""


@dataclass(frozen=True, kw_only=True)
class Visits:
    """The visits that begin on a day, with what nobody is told: intent and focus. N visits, at most T events."""

    visitor_N: np.ndarray
    """Row of the visitor; the last row stands for all passers-by."""
    intent_N: np.ndarray
    focus_N: np.ndarray
    device_N: np.ndarray
    num_events_N: np.ndarray
    seconds_NT: np.ndarray
    """When, in seconds since 1970."""
    items_NT: np.ndarray
    """-1 behind the end of a visit."""
    types_NT: np.ndarray


def restock(world: World, day: date, liked_VI: np.ndarray) -> Shelf:
    """The shelf of a day; the chance of what is not yet on sale goes to what is."""
    on_sale_I = world.is_on_sale(day)
    popularity_I = world.popularity_I * on_sale_I
    per_category_C = np.bincount(world.categories_I, weights=popularity_I)
    successors_II = world.successors_II * on_sale_I
    successors_II[successors_II.sum(axis=1) == 0] = popularity_I
    num_liked_V = liked_VI.sum(axis=1, keepdims=True)
    return Shelf(
        categories_I=world.categories_I,
        popularity_I=popularity_I / popularity_I.sum(),
        in_category_I=popularity_I / per_category_C[world.categories_I],
        successors_II=successors_II / successors_II.sum(axis=1, keepdims=True),
        tastes_VC=world.tastes_VC,
        liked_VI=liked_VI / np.maximum(num_liked_V, 1),
    )


def next_item_probabilities(
    shelf: Shelf, visits: Visits, rows: np.ndarray, previous: np.ndarray, previous_type: np.ndarray
) -> np.ndarray:
    """The distribution of the next item for each of `rows` of `visits`: the equation above.

    `previous` is the item before, -1 at the start of a visit.
    """
    visitor, focus = visits.visitor_N[rows], visits.focus_N[rows]
    has_previous = previous >= 0
    liked = shelf.liked_VI[visitor]
    weights = SOURCE_WEIGHTS[visits.intent_N[rows]]
    weights[~has_previous, FOLLOW] = 0
    likes_nothing = liked.sum(axis=1) == 0
    weights[likes_nothing, TASTE] += weights[likes_nothing, LIKED]
    weights[likes_nothing, LIKED] = 0
    weights /= weights.sum(axis=1, keepdims=True)

    by_category = weights[:, [TASTE]] * shelf.tastes_VC[visitor]
    by_category[np.arange(len(rows)), focus] += weights[:, CATEGORY]
    chances = by_category[:, shelf.categories_I] * shelf.in_category_I
    chances += weights[:, [FOLLOW]] * shelf.successors_II[previous]
    chances += weights[:, [LIKED]] * liked
    chances += weights[:, [ANYWHERE]] * shelf.popularity_I

    stay = STAY[previous_type] * has_previous
    chances *= 1 - stay[:, None]
    chances[np.arange(len(rows)), previous] += stay
    return chances


def draw_visits(world: World, day: date, midnight: int, next_midnight: int, shelf: Shelf) -> Visits:
    """Who comes when and wants what, then the walk through the shop."""
    shop, rng = world.shop, world.rng(VISIT_STREAM, day)
    visitor, part = draw_visitors(world, rng)
    num_visits = len(visitor)
    hours = PARTS_OF_DAY[part]
    starts = midnight + rng.integers(hours[:, 0] * 3600, hours[:, 1] * 3600)
    starts = np.minimum(starts, next_midnight - 1)  # a day that loses an hour to summer time
    order = np.argsort(starts, kind="stable")
    visitor, starts = visitor[order], starts[order]

    intent = rng.choice(len(INTENTS), num_visits, p=PLAIN_SHARES if shop.is_plain else INTENT_SHARES)
    focus = draw_columns(world.tastes_VC[visitor], rng.random(num_visits))
    takes_other_device = (rng.random(num_visits) < 0.2) | (visitor == shop.num_visitors)
    device = np.where(takes_other_device, rng.integers(0, len(DEVICES), num_visits), world.devices_V[visitor])
    num_events = np.minimum(1 + rng.geometric(0.25, num_visits), MAX_EVENTS)
    unwalked = np.full((num_visits, MAX_EVENTS), -1)
    visits = Visits(
        visitor_N=visitor,
        intent_N=intent,
        focus_N=focus,
        device_N=device,
        num_events_N=num_events,
        seconds_NT=starts[:, None] + draw_offsets(rng, num_events),
        items_NT=unwalked,
        types_NT=unwalked.copy(),
    )
    walk(shelf, visits, rng)
    return visits


def draw_visitors(world: World, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Visitor and part of the day of each visit: the active come more often, nobody twice in the same part."""
    shop, num_parts = world.shop, len(PART_SHARES)
    chances = np.outer(world.activities_V, PART_SHARES).ravel()
    known = rng.choice(len(chances), shop.num_known_sessions, replace=False, p=chances / chances.sum())
    num_anonymous = shop.sessions_per_day - shop.num_known_sessions
    visitor = np.concatenate([known // num_parts, np.full(num_anonymous, shop.num_visitors)])
    part = np.concatenate([known % num_parts, rng.choice(num_parts, num_anonymous, p=PART_SHARES)])
    return visitor, part


def draw_offsets(rng: np.random.Generator, num_events: np.ndarray) -> np.ndarray:
    """Seconds since the visit's start: gaps of seconds to minutes, under an hour in all, strictly increasing."""
    gaps = np.clip(rng.lognormal(np.log(45), 1.0, (len(num_events), MAX_EVENTS)), 1, MAX_GAP_SECONDS)
    gaps[:, 0] = 0
    gaps *= np.arange(MAX_EVENTS) < num_events[:, None]
    shrink = np.minimum(1, (MAX_VISIT_SECONDS - MAX_EVENTS) / np.maximum(gaps.sum(axis=1), 1))
    return np.ceil(gaps * shrink[:, None]).astype(np.int64).cumsum(axis=1)


def walk(shelf: Shelf, visits: Visits, rng: np.random.Generator) -> None:
    """Fill in items and event types, one step of all visits at a time."""
    for step in range(MAX_EVENTS):
        rows = np.flatnonzero(visits.num_events_N > step)
        draws = rng.random(len(rows))
        for chunk in chunks(len(rows)):
            here = rows[chunk]
            previous, previous_type = look_back(visits, here, np.full(len(here), step))
            item = draw_columns(next_item_probabilities(shelf, visits, here, previous, previous_type), draws[chunk])
            visits.items_NT[here, step] = item
            visits.types_NT[here, step] = np.where(item == previous, (previous_type + 1) % len(EVENT_TYPES), 0)


def look_back(visits: Visits, rows: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Item and type of the event before each (row, step); -1 before the first."""
    is_first = steps == 0
    return (
        np.where(is_first, -1, visits.items_NT[rows, steps - 1]),
        np.where(is_first, -1, visits.types_NT[rows, steps - 1]),
    )


def draw_columns(chances: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """One column per row, by the rows' chances; a column without a chance is never drawn."""
    cumulative = chances.cumsum(axis=1)
    return (cumulative <= draws[:, None] * cumulative[:, -1:]).sum(axis=1)


def chunks(num_rows: int) -> Iterator[slice]:
    """Slices that cover so many rows."""
    for start in range(0, num_rows, CHUNK):
        yield slice(start, min(start + CHUNK, num_rows))


def remember(liked_VI: np.ndarray, visits: Visits) -> np.ndarray:
    """What visitors like after a day: what they put in the cart or bought, once more each time."""
    rows, steps = np.nonzero(visits.types_NT > 0)
    visitor = visits.visitor_N[rows]
    is_known = visitor < len(liked_VI) - 1
    liked_VI = liked_VI.copy()
    np.add.at(liked_VI, (visitor[is_known], visits.items_NT[rows, steps][is_known]), 1)
    return liked_VI


# The oracle


def oracle_ranks(shelf: Shelf, visits: Visits) -> np.ndarray:
    """Rank of each real next item (second event on) by its true probability; ties count against the oracle."""
    rows, steps = np.nonzero(visits.items_NT[:, 1:] >= 0)
    steps += 1
    ranks: np.ndarray = np.empty(len(rows), dtype=np.int64)
    for chunk in chunks(len(rows)):
        previous, previous_type = look_back(visits, rows[chunk], steps[chunk])
        chances = next_item_probabilities(shelf, visits, rows[chunk], previous, previous_type)
        real = visits.items_NT[rows[chunk], steps[chunk]]
        ranks[chunk] = (chances >= chances[np.arange(len(real)), real][:, None]).sum(axis=1)
    return ranks


def oracle_recall(shelf: Shelf, visits: Visits, ks: Sequence[int] = METRIC_KS) -> dict[str, float]:
    """Recall and mean reciprocal rank of the oracle, under the names of our metrics.

    The best that anyone can expect to reach who knows every latent; a model, which must guess them, stays below.
    """
    ranks = oracle_ranks(shelf, visits)
    recalls = {f"next_recall_at_{k}": float((ranks <= k).mean()) for k in ks}
    return recalls | {f"next_mrr_at_{k}": float(((ranks <= k) / ranks).mean()) for k in ks}


# From visits to rows


@dataclass(frozen=True, kw_only=True)
class SimulatedDay:
    """A day of true events, before anything is broken."""

    date: date
    shelf: Shelf
    visits: Visits
    """Those that begin on this day."""
    on_time: pl.DataFrame
    """Events of this day that its own file delivers."""
    late: pl.DataFrame
    """Events of this day that the next file delivers."""
    num_over_midnight: int


def simulate_days(world: World, time_zone: str, until: date) -> Iterator[SimulatedDay]:
    """All days from the opening to `until`."""
    shop = world.shop
    liked_VI = np.zeros((shop.num_visitors + 1, shop.num_items))
    carried_over: list[pl.DataFrame] = []
    for ordinal in range(shop.opens_on.toordinal(), until.toordinal() + 1):
        day = date.fromordinal(ordinal)
        midnight, next_midnight = epoch_of(day, time_zone), epoch_of(day + timedelta(days=1), time_zone)
        shelf = restock(world, day, liked_VI)
        visits = draw_visits(world, day, midnight, next_midnight, shelf)
        events = pl.concat([*carried_over, tabulate(world, day, visits)])
        is_today = pl.col("second") < next_midnight
        carried_over = [events.filter(~is_today)]
        today = events.filter(is_today)
        is_late = pl.Series(world.rng(LATE_STREAM, day).random(today.height) < shop.late_share)
        yield SimulatedDay(
            date=day,
            shelf=shelf,
            visits=visits,
            on_time=today.filter(~is_late),
            late=today.filter(is_late),
            num_over_midnight=carried_over[0]["session_id"].n_unique(),
        )
        liked_VI = remember(liked_VI, visits)


def epoch_of(day: date, time_zone: str) -> int:
    """The midnight that opens a day, in seconds since 1970."""
    return int(datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(time_zone)).timestamp())


def tabulate(world: World, day: date, visits: Visits) -> pl.DataFrame:
    """One row per event."""
    rows, steps = np.nonzero(visits.items_NT >= 0)
    item, visitor = visits.items_NT[rows, steps], visits.visitor_N[rows]
    user_id = pl.format("u{}", pl.col("visitor").cast(pl.String).str.zfill(5))
    events = pl.DataFrame(
        {
            "visitor": visitor,
            "session_id": rows,
            "item_id": pl.Series(world.item_ids).gather(item),
            "event": pl.Series(EVENT_TYPES).gather(visits.types_NT[rows, steps]),
            "second": visits.seconds_NT[rows, steps],
            "device": pl.Series(DEVICES).gather(visits.device_N[rows]),
            "price": world.prices_I[item],
        }
    )
    return events.select(
        user_id=pl.when(pl.col("visitor") < world.shop.num_visitors).then(user_id),
        session_id=pl.format(f"s{day:%Y%m%d}-{{}}", pl.col("session_id").cast(pl.String).str.zfill(5)),
        item_id="item_id",
        event="event",
        second="second",
        time=pl.lit(None, pl.String),
        device="device",
        price="price",
    )


# Faults


def plant_faults(
    site: PipelineSite, world: World, today: SimulatedDay, yesterday: SimulatedDay | None, kind: str
) -> pl.DataFrame:
    """The lines of a day's file in their order, each with its outcome: event, duplicate, redelivered, or a reason."""
    rng = world.rng(FAULT_STREAM, today.date)
    start, end = epoch_of(today.date, site.time_zone), epoch_of(today.date + timedelta(days=1), site.time_zone)
    rows = gather_rows(site, world, rng, today, yesterday)
    rows = rows.with_columns(time=pl.coalesce("time", as_iso(pl.col("second"), site.time_zone)))
    lines = rows.select("outcome", "second", line=pl.Series(as_lines(rows.select(COLUMNS), kind)))
    torn = tear_lines(pick(rng, lines.filter(pl.col("outcome") == "event"), world.shop), kind)
    lines = pl.concat([lines, torn])
    comes_in_turn = pl.col("second").is_between(start, end, closed="left") & pl.col("outcome").is_in(["event", "bot"])
    anywhere = pl.Series(rng.integers(start, end, lines.height))
    written_at = pl.when(comes_in_turn).then("second").otherwise(anywhere)
    return lines.sort(written_at, maintain_order=True).select("line", "outcome")


def gather_rows(
    site: PipelineSite, world: World, rng: np.random.Generator, today: SimulatedDay, yesterday: SimulatedDay | None
) -> pl.DataFrame:
    """All rows of a day's file that have the right number of fields, each with its outcome."""
    parts = [("event", today.on_time), ("duplicate", pick(rng, today.on_time, world.shop))]
    if yesterday is not None:
        parts += [("event", yesterday.late), ("redelivered", pick(rng, yesterday.on_time, world.shop))]
    parts += break_rows(site, world, rng, today.on_time).items()
    parts += [("bot", crawl(site, world, rng, today.date))]
    return pl.concat([rows.with_columns(outcome=pl.lit(outcome)) for outcome, rows in parts])


def pick(rng: np.random.Generator, rows: pl.DataFrame, shop: Shop) -> pl.DataFrame:
    """Some different rows: about `faults_per_day`, from half to one and a half of it."""
    count = int(rng.integers(shop.faults_per_day // 2, shop.faults_per_day + shop.faults_per_day // 2 + 1))
    return rows[rng.choice(rows.height, min(count, rows.height), replace=False)]


def break_rows(
    site: PipelineSite, world: World, rng: np.random.Generator, good: pl.DataFrame
) -> dict[str, pl.DataFrame]:
    """Copies of good rows with one thing broken, by the reason to reject them."""
    shop, nothing = world.shop, pl.lit(None, pl.String)
    broken = {
        "missing_user": pick(rng, good, shop).with_columns(user_id=nothing, session_id=nothing),
        "missing_item": pick(rng, good, shop).with_columns(item_id=nothing),
        "bad_time": with_words(rng, pick(rng, good, shop), "time", BAD_TIMES),
        "future_time": shift_days(rng, pick(rng, good, shop), 3, 30),
        "unknown_event_type": with_words(rng, pick(rng, good, shop), "event", UNKNOWN_EVENTS),
    }
    if site.source.lateness is not None:
        limit = site.source.lateness.days
        broken["too_late"] = shift_days(rng, pick(rng, good, shop), -limit - 6, -limit - 2)
    return broken


def with_words(rng: np.random.Generator, rows: pl.DataFrame, column: str, words: list[str]) -> pl.DataFrame:
    """A column filled with some of these words."""
    return rows.with_columns(pl.Series(column, rng.choice(words, rows.height).tolist(), pl.String))


def shift_days(rng: np.random.Generator, rows: pl.DataFrame, fewest: int, most: int) -> pl.DataFrame:
    """Times moved by a whole number of days."""
    days = pl.Series(rng.integers(fewest, most + 1, rows.height), dtype=pl.Int64)
    return rows.with_columns(second=pl.col("second") + days * 86_400)


def crawl(site: PipelineSite, world: World, rng: np.random.Generator, day: date) -> pl.DataFrame:
    """The day's bots: they look at everything, at twice the pace that the site allows."""
    num_bots, num_each = world.shop.bots_per_day, 2 * (site.source.bots.events_per_day or 0)
    num_rows = num_bots * num_each
    bot: np.ndarray = np.repeat(np.arange(num_bots), num_each)
    item = rng.choice(np.flatnonzero(world.is_on_sale(day)), num_rows)
    seconds = [rng.choice(80_000, num_each, replace=False) for _ in range(num_bots)]
    return pl.DataFrame({"bot": pl.Series(bot, dtype=pl.Int64), "item": pl.Series(item, dtype=pl.Int64)}).select(
        user_id=pl.format("crawler-{}", "bot"),
        session_id=pl.format(f"c{day:%Y%m%d}-{{}}", "bot"),
        item_id=pl.Series(world.item_ids).gather(item),
        event=pl.lit(EVENT_TYPES[0]),
        second=pl.Series(
            epoch_of(day, site.time_zone) + np.concatenate([*seconds, np.zeros(0, np.int64)]), dtype=pl.Int64
        ),
        time=pl.lit(None, pl.String),
        device=pl.lit(DEVICES[1]),
        price=pl.Series(world.prices_I[item], dtype=pl.Float64),
    )


def tear_lines(lines: pl.DataFrame, kind: str) -> pl.DataFrame:
    """Whole lines made unparsable, in three ways by turns."""
    line, turn = pl.col("line"), pl.int_range(pl.len()) % 3
    too_few = line.str.split(",").list.head(3).list.join(",")
    too_many = line + pl.lit(",left,over")
    if kind == "jsonl":
        too_many = pl.lit("[") + line + pl.lit("]")
    torn = pl.when(turn == 0).then(too_many).when(turn == 1).then(too_few).otherwise(pl.lit(STRAY_LINE))
    return lines.with_columns(line=torn, outcome=pl.lit("unparsable_row"))


# Files


def write_day(site: PipelineSite, world: World, today: SimulatedDay, yesterday: SimulatedDay | None) -> DayReport:
    """Write a day's raw file and item table; tell what is in them."""
    path = site.resolve(site.source.events).replace("{date}", today.date.isoformat())
    kind = file_format(path)
    lines = plant_faults(site, world, today, yesterday, kind)
    header = [",".join(COLUMNS)] if kind == "csv" else []
    write_whole(Path(path), "\n".join([*header, *lines["line"], ""]).encode())
    if site.items is not None and "{date}" in site.items.path:
        write_items(site.resolve(site.items.path).replace("{date}", today.date.isoformat()), world, today.date)
    return describe_day(world, today, yesterday, lines)


def describe_day(world: World, today: SimulatedDay, yesterday: SimulatedDay | None, lines: pl.DataFrame) -> DayReport:
    """The day's counts and its oracle."""
    outcomes: dict[str, int] = dict(lines["outcome"].value_counts(name="rows").sort("outcome").iter_rows())
    num_redelivered = outcomes.pop("redelivered", 0)
    visits, on_sale_I = today.visits, world.is_on_sale(today.date)
    is_known = visits.visitor_N < world.shop.num_visitors
    return DayReport(
        date=today.date,
        rows=lines.height,
        events=outcomes.pop("event"),
        late=yesterday.late.height if yesterday else 0,
        duplicates=outcomes.pop("duplicate", 0) + num_redelivered,
        redelivered=num_redelivered,
        rejected=outcomes,
        sessions=len(is_known),
        anonymous_sessions=int((~is_known).sum()),
        sessions_over_midnight=today.num_over_midnight,
        users=len(np.unique(visits.visitor_N[is_known])),
        items_on_sale=int(on_sale_I.sum()),
        items_launched=int((on_sale_I & ~world.is_on_sale(today.date - timedelta(days=1))).sum()) if yesterday else 0,
        oracle=oracle_recall(today.shelf, visits),
        oracle_targets=int((visits.items_NT[:, 1:] >= 0).sum()),
    )


def write_items(path: str, world: World, day: date) -> None:
    """The side table: items launched by `day`."""
    items = pl.DataFrame(
        {
            "item_id": world.item_ids,
            "title": world.titles,
            "category": pl.Series(list(CATEGORIES)).gather(world.categories_I),
            "price": world.prices_I,
        }
    ).filter(pl.Series(world.is_on_sale(day)))
    header = [",".join(items.columns)] if file_format(path) == "csv" else []
    write_whole(Path(path), "\n".join([*header, *as_lines(items, file_format(path)), ""]).encode())


def file_format(path: str) -> str:
    """`csv` or `jsonl`, as the path says."""
    suffix = Path(path.removesuffix(".gz")).suffix
    if suffix not in (".csv", ".jsonl"):
        raise ConfigurationError(
            f"simulate cannot write {path}: the path must end in .csv or .jsonl, then .gz if you like"
        )
    return suffix[1:]


def as_lines(rows: pl.DataFrame, kind: str) -> list[str]:
    """Rows as text; a CSV field is quoted where it has to be."""
    text = rows.write_csv(include_header=False, float_precision=2) if kind == "csv" else rows.write_ndjson()
    return text.splitlines()


def as_iso(second: pl.Expr, time_zone: str) -> pl.Expr:
    """Seconds since 1970 as a local time with its offset."""
    local = pl.from_epoch(second, "s").dt.replace_time_zone("UTC").dt.convert_time_zone(time_zone)
    return local.dt.strftime("%Y-%m-%dT%H:%M:%S%:z")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file aside and move it in place: a reader sees the old one or the new one. `.gz` is packed."""
    if path.suffix == ".gz":
        content = gzip.compress(content, compresslevel=6, mtime=0)
    put_whole(path, content)
