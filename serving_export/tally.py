"""What is in the lists that are to be published: their figures, and how many rows break a promise about rows.

The staged files are read back as they lie there, in parts of bounded size, in the order that readers rely on (user,
channel, rank). Users and what they have seen come from `events`, not from whoever made the lists.

Shapes: R rows of some lists · I items of the catalogue.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.histories import active_events, seen_items
from pipeline.catalogue import latest_items
from pipeline.errors import ContractError
from pipeline.publish import StagedFile, Store
from pipeline.side_by_side import side_by_side
from pipeline.terminal import track
from serving_export.item_rules import may_stand
from serving_export.tables import RECOMMENDATIONS
from training.export_settings import Seen
from training.settings import TrainingSite

Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]
ROWS_AT_ONCE = 1_000_000
NUM_EXAMPLES = 3
NO_ITEM = -1
COLUMNS = ("user_id", "channel", "rank", "item_id", "score", "source")
OF_ROWS = (
    "users_listed",
    "users_active",
    "ranks_dense",
    "items_once",
    "items_known",
    "items_allowed",
    "items_unseen",
    "scores_finite",
    "scores_fall",
)
"""The rules that nothing may break."""


@dataclass
class Tally:
    """What was counted of a channel's lists so far."""

    users: int = 0
    rows: int = 0
    fallback_rows: int = 0
    cold_rows: int = 0
    broken: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OF_ROWS, 0))
    examples: dict[str, list[str]] = field(default_factory=lambda: {rule: [] for rule in OF_ROWS})
    times_listed_I: Integers = field(default_factory=lambda: np.zeros(0, np.int64))

    def add(self, rule: str, num_broken: int, examples: Sequence[str]) -> None:
        """Count what breaks a rule."""
        self.broken[rule] += num_broken
        self.examples[rule] += examples[: NUM_EXAMPLES - len(self.examples[rule])]

    def merge(self, other: "Tally") -> None:
        """Add what was counted of other users' lists."""
        self.users += other.users
        self.rows += other.rows
        self.fallback_rows += other.fallback_rows
        self.cold_rows += other.cold_rows
        self.times_listed_I += other.times_listed_I
        for rule, num_broken in other.broken.items():
            self.add(rule, num_broken, other.examples[rule])

    def figures(self) -> dict[str, float]:
        """What a release is remembered by."""
        return {
            "users": self.users,
            "rows": self.rows,
            "mean_length": round(self.rows / self.users, 4) if self.users else 0.0,
            "fallback_share": round(self.fallback_rows / self.rows, 6) if self.rows else 0.0,
            "cold_share": round(self.cold_rows / self.rows, 6) if self.rows else 0.0,
            "items": int((self.times_listed_I > 0).sum()),
            "coverage": round(float((self.times_listed_I > 0).mean()), 6) if self.times_listed_I.size else 0.0,
            "gini": round(gini(self.times_listed_I), 6),
        }


@dataclass(frozen=True)
class Catalogue:
    """The items of a day, by code."""

    codes: pl.DataFrame
    """item_id, item_code"""
    allowed: Mapping[str, Mask]
    """Channel -> whether an item may stand in its lists, by code."""

    def encode(self, items: pl.Series) -> Integers:
        """The code of each item, NO_ITEM for one that is not in the catalogue."""
        joined = items.to_frame("item_id").join(self.codes, on="item_id", how="left", maintain_order="left")
        codes: Integers = joined["item_code"].fill_null(NO_ITEM).to_numpy()
        return codes


def tally_lists(site: TrainingSite, store: Store, staged: Sequence[StagedFile], day: date) -> dict[str, Tally]:
    """Count what is in staged lists, two buckets at a time."""
    catalogue = read_catalogue(site, store, day)

    def count(bucket: int) -> dict[str, Tally]:
        tallies = empty_tallies(site, catalogue)
        files = [file for file in staged if file.partition["user_bucket"] == str(bucket)]
        tally_bucket(site, store, files, catalogue, tallies, day, bucket)
        return tallies

    total = empty_tallies(site, catalogue)
    for tallies in track(side_by_side(count, range(site.buckets)), "checking lists", site.buckets):
        for name, tally in tallies.items():
            total[name].merge(tally)
    return total


def empty_tallies(site: TrainingSite, catalogue: Catalogue) -> dict[str, Tally]:
    """Channel -> nothing counted yet."""
    num_items = catalogue.codes.height
    return {name: Tally(times_listed_I=np.zeros(num_items, np.int64)) for name in site.export.all_channels()}


def read_catalogue(site: TrainingSite, store: Store, day: date) -> Catalogue:
    """The items of a day."""
    items = latest_items(store, day).unique("item_id", keep="last", maintain_order=True)
    codes = items.select("item_id", item_code=pl.int_range(pl.len(), dtype=pl.Int64))
    allowed = {
        name: items.select(may_stand(channel)).to_series().to_numpy()
        for name, channel in site.export.all_channels().items()
    }
    return Catalogue(codes, allowed)


def tally_bucket(
    site: TrainingSite,
    store: Store,
    files: Sequence[StagedFile],
    catalogue: Catalogue,
    tallies: Mapping[str, Tally],
    day: date,
    bucket: int,
) -> None:
    """Count what is in the files of a bucket."""
    events = active_events(site, store, day, site.export.active_within, bucket)
    users = events.select(pl.col("user_id").unique().sort()).collect().with_row_index("user").cast({"user": pl.Int64})
    rules = {name: channel.seen or site.export.seen for name, channel in site.export.all_channels().items()}
    of_rule = {rule: seen_keys(site, store, rule, users, catalogue, day, bucket) for rule in set(rules.values())}
    seen = {name: of_rule[rule] for name, rule in rules.items()}
    listed: list[pl.DataFrame] = []
    for rows in whole_lists(store, files):
        for (name,), part in rows.partition_by("channel", as_dict=True, maintain_order=True).items():
            if name not in tallies:
                raise ContractError(
                    f"{site.name}: the staged lists hold {name!r}, a channel that export.channels lacks"
                )
            tally = tallies[name]
            listed.append(count_rows(part, users, seen[name], catalogue, catalogue.allowed[name], tally))
    heads = pl.concat(listed) if listed else pl.DataFrame(schema={"user_id": pl.String, "channel": pl.String})
    for name, tally in tallies.items():
        here = heads.filter(pl.col("channel") == name)
        tally.users += here.height
        again = here.filter(pl.col("user_id").is_duplicated())
        tally.add("ranks_dense", again.height, [f"user {user!r} has several lists" for user in again["user_id"][:1]])
        missing = users.join(here, on="user_id", how="anti")
        left = missing.filter(could_be_shown(missing["user"].to_numpy(), seen[name], catalogue.allowed[name]))
        tally.add("users_listed", left.height, [f"user {user!r}" for user in left["user_id"][:NUM_EXAMPLES]])
        strange = here.join(users, on="user_id", how="anti")
        tally.add("users_active", strange.height, [f"user {user!r}" for user in strange["user_id"][:NUM_EXAMPLES]])


def seen_keys(
    site: TrainingSite, store: Store, rule: Seen, users: pl.DataFrame, catalogue: Catalogue, day: date, bucket: int
) -> Integers:
    """Sorted keys of the user and item pairs that lists must leave out."""
    if rule.policy == "allow":
        return np.zeros(0, np.int64)
    events = active_events(site, store, day, rule.within, bucket)
    if rule.policy == "exclude_bought":
        events = events.filter(pl.col("event_type") == rule.bought)
    pairs = seen_items(events, day, rule.within, site).join(users, on="user_id", how="inner")
    codes = catalogue.encode(pairs["item_id"])
    keys = pairs["user"].to_numpy() * catalogue.codes.height + codes
    return np.unique(keys[codes != NO_ITEM])


def could_be_shown(missing: Integers, seen: Integers, allowed: Mask) -> Mask:
    """Which of some users without a list have not yet seen all that may be shown."""
    if not len(missing) or not len(allowed):
        return np.zeros(len(missing), bool)
    user, code = np.divmod(seen, len(allowed))
    num_seen = np.bincount(user[allowed[code]], minlength=int(missing.max()) + 1)
    found: Mask = num_seen[missing] < allowed.sum()
    return found


def whole_lists(store: Store, files: Sequence[StagedFile]) -> Iterator[pl.DataFrame]:
    """Rows of the files in parts of bounded size; a user's rows of a file come together."""
    for file in files:
        rows = pl.scan_parquet(f"{store.table_uri(RECOMMENDATIONS.name)}/{file.path}", hive_partitioning=False)
        rest = RECOMMENDATIONS.empty().select(COLUMNS)
        for start in range(0, file.num_rows, ROWS_AT_ONCE):
            part = pl.concat([rest, rows.slice(start, ROWS_AT_ONCE).select(COLUMNS).collect()])
            is_last = part["user_id"].eq_missing(part["user_id"][-1])
            is_end = start + ROWS_AT_ONCE >= file.num_rows
            yield part if is_end else part.filter(~is_last)
            rest = part.filter(is_last)


def count_rows(
    rows: pl.DataFrame,
    users: pl.DataFrame,
    seen: Integers,
    catalogue: Catalogue,
    allowed: Mask,
    tally: Tally,
) -> pl.DataFrame:
    """Count what breaks a rule among whole lists of a channel; return user_id and channel of each list."""
    is_first = (rows["user_id"].ne_missing(rows["user_id"].shift(1))).to_numpy().copy()
    is_first[0] = True
    ranks, scores = rows["rank"].to_numpy(), rows["score"].to_numpy()
    codes = catalogue.encode(rows["item_id"])
    is_known = codes != NO_ITEM
    heads = rows.filter(pl.Series(is_first)).select("user_id", "channel")
    number = heads.join(users, on="user_id", how="left", maintain_order="left")["user"].fill_null(-1).to_numpy()
    place = np.cumsum(is_first) - 1
    same_source = (rows["source"] == rows["source"].shift(1)).fill_null(False).to_numpy() & ~is_first
    rises = np.zeros(len(ranks), bool)
    rises[1:] = same_source[1:] & ~(scores[1:] <= scores[:-1]) & np.isfinite(scores[1:]) & np.isfinite(scores[:-1])
    broken = {
        "ranks_dense": ranks != np.where(is_first, 1, np.concatenate([[0], ranks[:-1]]) + 1),
        "items_once": is_repeated(place, codes, rows["item_id"]),
        "items_known": ~is_known,
        "items_allowed": is_known & ~allowed[codes],
        "items_unseen": is_known & is_among(number[place] * catalogue.codes.height + codes, seen),
        "scores_finite": ~np.isfinite(scores),
        "scores_fall": rises,
    }
    for rule, is_broken in broken.items():
        examples = rows.filter(pl.Series(is_broken)).head(NUM_EXAMPLES) if is_broken.any() else rows.clear()
        tally.add(rule, int(is_broken.sum()), [in_words(row) for row in examples.iter_rows(named=True)])
    tally.rows += rows.height
    tally.fallback_rows += int((rows["source"] == "popular").sum())
    tally.cold_rows += int((rows["source"] == "cold").sum())
    tally.times_listed_I += np.bincount(codes[is_known], minlength=len(tally.times_listed_I))
    return heads


def is_repeated(lists: Integers, codes: Integers, items: pl.Series) -> Mask:
    """Which rows name an item that an earlier row of their list names."""
    names = codes if (codes != NO_ITEM).all() else items.rank("dense").cast(pl.Int64).to_numpy()
    keys = lists * (int(names.max(initial=0)) + 1) + names
    in_order = np.sort(keys)  # which takes a tenth of the time of a hash
    if not (in_order[1:] == in_order[:-1]).any():
        return np.zeros(len(keys), bool)
    found: Mask = (~pl.Series(keys).is_first_distinct()).to_numpy()
    return found


def is_among(keys: Integers, sorted_keys: Integers) -> Mask:
    """Which keys are among others, which are sorted."""
    if not len(sorted_keys):
        return np.zeros(len(keys), bool)
    place = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    found: Mask = sorted_keys[place] == keys
    return found


def in_words(row: Mapping[str, Any]) -> str:
    """A row of a list as an example."""
    return f"user {row['user_id']!r}, rank {row['rank']}, item {row['item_id']!r}, score {row['score']}"


def gini(counts: Integers) -> float:
    """Concentration of counts: 0 where all are equal, towards 1 where one has all (https://en.wikipedia.org/wiki/Gini_coefficient)."""
    total, n = int(counts.sum()), len(counts)
    if not total:
        return 0.0
    places = np.arange(1, n + 1)
    return float(2 * (places * np.sort(counts)).sum() / (n * total) - (n + 1) / n)
