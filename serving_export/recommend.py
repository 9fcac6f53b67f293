"""Answer requests from what was loaded once: rank, fall back to popular items and say so, and say why if asked.

    loaded = load(site, store)                        # seconds, once
    (answer,) = recommend(loaded, [request])          # as often as wanted, also for several at a time

Lists are made by the export's own code (list_maker.py): for the same events, channel and index they are the same.

What the model reads, at most the newest `export.input.last_events` events: a model of users the user's history and the
session; a model of sessions the session alone, or, where none is given, the last events of the history, as the export
does. What a channel leaves out as seen is taken from both.

Shapes: R requests at a time · N places of a list · E events that are read · K of them known.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from features.histories import active_events, listed_id
from features.sequences import Integers, Sequences
from features.vocabulary import PADDING
from pipeline.publish import Store
from serving_export.bucket_users import ListInput
from serving_export.filling import COLD, MODEL, POPULAR, RULE, SOURCES, Lists, UserItems
from serving_export.list_maker import source_names
from serving_export.loaded import Loaded
from serving_export.reader import bucket_of
from serving_export.request import Event, Request
from serving_export.scoring import Vectors
from serving_export.session_intents import intents_of
from training.bundle import Bundle
from training.export_settings import Seen
from training.reasons import Floats, leave_one_out
from training.units import reads_users

MICROSECOND = timedelta(microseconds=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Answer = dict[str, Any]
VectorsOf = Callable[[Sequences], Vectors | None]
"""(R, D) of units that a model is to read; not a number for one without an event. None: let the model read them."""


class Heard(NamedTuple):
    """What a model is told of a request."""

    events: list[Event]
    """(E) oldest first."""
    first: int
    """Where the first of them stands in history + session."""
    times: Integers
    """(E) microseconds since 1970, never falling."""
    codes: Integers
    """(E) item codes of the assortment; 0 for an item of which nothing is known."""
    num_left_out: int
    """Older events than are read."""
    num_backward: int
    """Events that say they happened before the one before them."""


def recommend(loaded: Loaded, requests: Sequence[Request], vectors_of: VectorsOf | None = None) -> list[Answer]:
    """An answer for each request, in their order.

    `vectors_of` says what the model wants next of each, where a state was carried from event to event. Without it
    sessions are read. Raises ConfigurationError for a channel that the site does not have.
    """
    answers: list[Answer] = [{} for _ in requests]
    for channel in dict.fromkeys(request.channel for request in requests):
        places = [n for n, request in enumerate(requests) if request.channel == channel]
        some = [requests[n] for n in places]
        for n, answer in zip(places, answer_alike(loaded, some, vectors_of), strict=True):
            answers[n] = answer
    return answers


def answer_alike(loaded: Loaded, requests: Sequence[Request], vectors_of: VectorsOf | None) -> Iterator[Answer]:
    """The answers to requests of one channel."""
    plan = loaded.plan(requests[0].channel, max(request.top for request in requests))
    heard = [hear(loaded, request) for request in requests]
    sequences = read(loaded, heard)
    told = ListInput(
        kept_items(heard),
        sequences,
        {plan.seen: seen_items(loaded, plan.seen, requests)},
        pl.Series([segment_of(loaded, each) for each in heard], dtype=pl.String),
    )
    vectors_RD = None if sequences is None or vectors_of is None else vectors_of(sequences)
    (lists,) = replace(loaded.maker, channels=[plan]).fill_lists(told, vectors_RD)
    influence: dict[int, Floats] = {}
    intents: dict[int, Answer] = {}
    if sequences is not None and loaded.bundle is not None:
        asked = np.array([request.explain for request in requests]) & (sequences.unit_lengths > 0)
        influence = influence_of(loaded.bundle, sequences, lists, np.flatnonzero(asked))
        intents = intents_of(loaded.bundle, sequences, np.flatnonzero(asked))
    sources = source_names(lists.sources_UN.ravel(), lists.codes_UN.ravel(), loaded.assortment).to_list()
    top = plan.rules.top_n
    for row, (request, each) in enumerate(zip(requests, heard, strict=True)):
        items = list_items(loaded, request, each, lists, row, sources[row * top : (row + 1) * top], influence.get(row))
        is_ours = any(item["source"] != SOURCES[POPULAR] for item in items)
        model = {"model_version": loaded.version} if is_ours else {}
        answer = {"source": SOURCES[MODEL if is_ours else POPULAR], **model, **describe(loaded, request, each)}
        yield answer | {"items": items} | intents.get(row, {})


def hear(loaded: Loaded, request: Request) -> Heard:
    """What the model is told of a request."""
    bundle = loaded.bundle
    by_user = bundle is not None and reads_users(bundle.recipe)
    session_only = bool(request.session) and not by_user
    events = [*([] if session_only else request.history), *request.session]
    times, num_backward = times_of(loaded, request)
    first = max(len(request.history) if session_only else 0, len(times) - loaded.site.export.input.last_events)
    kept = events[-(len(times) - first) :] if len(times) > first else []
    codes = np.array([loaded.codes.get(event.item_id, PADDING) for event in kept], dtype=np.int64)
    return Heard(kept, first, times[first:], codes, len(events) - len(kept), num_backward)


def times_of(loaded: Loaded, request: Request) -> tuple[Integers, int]:
    """(E) when the events of history and session happened, and how many clocks went backwards.

    An event without a time happened with the one before it, and a whole session without times after all that is
    known, as a session of its own. The order that is told stands: an event whose time is before that of the one before
    it is taken to have happened with it.
    """
    told = [microseconds(event) for event in (*request.history, *request.session)]
    if request.session and not any(told[len(request.history) :]):
        gap = loaded.site.sessions.gap // MICROSECOND + 1
        newest = max((time + gap for time in told if time), default=0)
        told[len(request.history)] = max(newest, loaded.end)
    times = np.array(told, dtype=np.int64)
    highest = np.maximum.accumulate(times) if len(times) else times
    is_told = times > 0
    if not is_told.all():
        highest = np.maximum(highest, times[is_told][0] if is_told.any() else loaded.end)
    return highest, int((is_told & (times < highest)).sum())


def microseconds(event: Event) -> int:
    """When an event happened, since 1970; 0 if it is not told."""
    return 0 if event.occurred_at is None else max(1, (event.occurred_at - EPOCH) // MICROSECOND)


def read(loaded: Loaded, heard: Sequence[Heard]) -> Sequences | None:
    """What the model reads of each request, known items only; None without a model."""
    if loaded.bundle is None:
        return None
    definitions = loaded.bundle.vocabulary.definitions
    columns = () if definitions is None else definitions.columns
    events = [event for each in heard for event in each.events]
    frame = pl.DataFrame(
        {name: [event.told(name) for event in events] for name in columns},
        schema=dict.fromkeys(columns, pl.String),
    )
    codes = np.concatenate([each.codes for each in heard])
    sequences = Sequences(
        np.where(codes < loaded.assortment.num_known, codes, PADDING),
        ends_of(heard),
        np.concatenate([each.times for each in heard]),
        pl.Series([""] * len(heard)),
        event_columns={} if definitions is None else definitions.encode(frame),
    )
    if not reads_users(loaded.bundle.recipe):
        return sequences.known_only()
    return sequences.cut_at_silences(loaded.site.sessions.gap // MICROSECOND).known_only().at_least(1)


def ends_of(heard: Sequence[Heard]) -> Integers:
    """(R + 1) where the events of each request begin, end to end."""
    return np.concatenate([[0], np.cumsum([len(each.codes) for each in heard])]).astype(np.int64)


def kept_items(heard: Sequence[Heard]) -> UserItems:
    """The items that are read, those of which nothing is known left out."""
    codes = [each.codes[each.codes > 0] for each in heard]
    return UserItems(np.concatenate(codes), np.concatenate([[0], np.cumsum([len(part) for part in codes])]))


def seen_items(loaded: Loaded, rule: Seen, requests: Sequence[Request]) -> UserItems:
    """What a rule of the channel leaves out of each list: of the history what is recent enough, and of the session."""
    found = []
    for request in requests:
        since = newest_time(loaded, request) - rule.within // MICROSECOND
        recent = [event for event in request.history if event.occurred_at is None or microseconds(event) >= since]
        seen = [] if rule.policy == "allow" else [*recent, *request.session]
        if rule.policy == "exclude_bought":
            seen = [event for event in seen if event.event_type == rule.bought]
        codes = {loaded.codes.get(event.item_id, PADDING) for event in seen} - {PADDING}
        found.append(np.array(sorted(codes), dtype=np.int64))
    return UserItems(np.concatenate(found), np.concatenate([[0], np.cumsum([len(part) for part in found])]))


def newest_time(loaded: Loaded, request: Request) -> int:
    """The moment that a list is made for, since 1970: of the session's newest event, else the end of what is known."""
    return max(map(microseconds, request.session), default=0) or loaded.end


def segment_of(loaded: Loaded, heard: Heard) -> str | None:
    """Whose popular items fill the places that are left."""
    column = loaded.site.export.segment_by
    value = heard.events[-1].told(column) if column is not None and heard.events else None
    return None if value is None else f"{column}={value}"


def describe(loaded: Loaded, request: Request, heard: Heard) -> Answer:
    """What was asked, in numbers."""
    num_known = loaded.assortment.num_known if loaded.bundle is not None else 0
    codes = [loaded.codes.get(event.item_id, PADDING) for event in request.session]
    facts = {
        "num_items": len(request.session),
        "num_unknown": sum(code == PADDING or code >= num_known for code in codes),
        "num_history": len(request.history),
        "num_left_out": heard.num_left_out,
    }
    return facts | ({"num_backward": heard.num_backward} if heard.num_backward else {})


def influence_of(bundle: Bundle, sequences: Sequences, lists: Lists, rows: Integers) -> dict[int, Floats]:
    """(K, N) for some requests, by their place: what the score of each listed item gains by each known event."""
    if not len(rows):
        return {}
    some = sequences.take_units(rows)
    codes_RN = np.where(lists.sources_UN[rows] == MODEL, lists.codes_UN[rows], PADDING).astype(np.int64)
    influence_KN = leave_one_out(bundle, some, codes_RN)
    return dict(zip(rows.tolist(), np.split(influence_KN, np.cumsum(some.unit_lengths)[:-1]), strict=True))


def list_items(
    loaded: Loaded,
    request: Request,
    heard: Heard,
    lists: Lists,
    row: int,
    sources: Sequence[str],
    influence_KN: Floats | None,
) -> list[Answer]:
    """The items of a list, best first; `sources` of all its places."""
    length = min(int(lists.lengths_U[row]), request.top)
    codes, scores = lists.codes_UN[row, :length], lists.scores_UN[row, :length].tolist()
    items: list[Answer] = [
        {"rank": rank, "item_id": loaded.item_ids[code], "score": score, "source": source}
        for rank, code, score, source in zip(count(1), codes.tolist(), scores, sources, strict=False)
    ]
    if not request.explain:
        return items
    for place, item in enumerate(items):
        if item["source"] == SOURCES[RULE]:
            item["because"] = goes_with(loaded, int(lists.because_UN[row, place]))
        elif item["source"] in (SOURCES[MODEL], COLD) and influence_KN is not None:
            item |= reasons_of(loaded, request, heard, influence_KN[:, place])
    return items


def reasons_of(loaded: Loaded, request: Request, heard: Heard, influence_K: Floats) -> Answer:
    """`reasons`: events by what they do to an item's score, those that do most first; `because`: what drew it in."""
    known = np.flatnonzero((heard.codes > 0) & (heard.codes < loaded.assortment.num_known))
    order = np.argsort(-abs(influence_K), kind="stable")
    reasons = [place_of(request, heard, int(known[k])) | {"influence": float(influence_K[k])} for k in order]
    found: Answer = {"reasons": [reason for reason in reasons if reason["influence"]]}
    if influence_K.max(initial=0) > 0:
        place = int(known[np.flatnonzero(influence_K == influence_K.max())[-1]])  # the newest of those that do as much
        found["because"] = {"item_id": heard.events[place].item_id, "text": in_words(loaded, heard, place)}
    return found


def place_of(request: Request, heard: Heard, place: int) -> Answer:
    """Where an event stands: its number, from 0, in the session or the history of the request."""
    number = heard.first + place - len(request.history)
    told = {"event": number, "of": "session"} if number >= 0 else {"event": heard.first + place, "of": "history"}
    return told | {"item_id": heard.events[place].item_id}


DEEDS = {
    "view": "you viewed {}",
    "click": "you clicked on {}",
    "read": "you read {}",
    "like": "you liked {}",
    "cart": "you put {} into the cart",
    "purchase": "you bought {}",
}
"""What usual event types say of somebody."""


def in_words(loaded: Loaded, heard: Heard, place: int) -> str:
    """An event for people: `because you viewed Blue lamp 4 minutes ago`."""
    event = heard.events[place]
    name = loaded.titles[heard.codes[place]] or event.item_id
    deed = DEEDS.get(event.event_type or "view")
    told = f"of your {event.event_type} of {name}" if deed is None else deed.format(name)
    if event.occurred_at is None:
        return f"because {told}"
    return f"because {told} {ago(int(heard.times[-1] - heard.times[place]) // 1_000_000)}"


def ago(seconds: int) -> str:
    """A time for people."""
    for unit, size in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            number = round(seconds / size)
            return f"{number} {unit}{'s' if number > 1 else ''} ago"
    return "just now"


def goes_with(loaded: Loaded, code: int) -> Answer:
    """Why a related item stands in a list."""
    item_id = loaded.assortment.item_ids[code]
    return {"item_id": item_id, "text": f"because it goes with {loaded.titles[code] or item_id}"}


def with_history(loaded: Loaded, store: Store, request: Request) -> Request:
    """A request with what its user did before the session, as the store knows it."""
    if request.user_id is None:
        return request
    began = min((event.occurred_at for event in request.session if event.occurred_at is not None), default=None)
    return replace(request, history=read_history(loaded, store, request.user_id, began))


def read_history(loaded: Loaded, store: Store, user_id: str, before: datetime | None = None) -> list[Event]:
    """What a user, by the id of the log, did lately, in order of time: as far back as lists look; empty if unknown.

    `before`: when the session in progress began, whose events the log may have already.
    """
    site = loaded.site
    known = listed_id(site, user_id)
    columns = ("item_id", "occurred_at", "event_type", *site.source.context)
    events = recent_events(loaded, store, bucket_of(known, site.buckets))
    if events is None:
        return []
    events = events.filter(pl.col("user_id") == known)
    if before is not None:
        events = events.filter(pl.col("occurred_at") < before)
    rows = events.sort("occurred_at", "event_id").select(columns).collect()
    return [
        Event(item, at, kind, {name: value for name, value in zip(site.source.context, told, strict=True) if value})
        for item, at, kind, *told in rows.iter_rows()
    ]


def users_with_history(loaded: Loaded, store: Store, bucket: int) -> pl.Series:
    """The users of a bucket, as the tables know them, for whom `read_history` finds events."""
    events = recent_events(loaded, store, bucket)
    if events is None:
        return pl.Series(dtype=pl.String)
    return events.select(pl.col("user_id").unique()).collect()["user_id"]


def recent_events(loaded: Loaded, store: Store, bucket: int) -> pl.LazyFrame | None:
    """A bucket's events as far back as lists look; None where no day has passed yet."""
    site, last_day = loaded.site, loaded.last_day
    if last_day is None:
        return None
    plans = site.export.all_channels().values()
    longest = max([site.export.active_within, *(plan.seen.within for plan in plans if plan.seen)])
    return active_events(site, store, last_day, longest, bucket)


def with_titles(items: list[dict[str, Any]], catalogue: pl.DataFrame) -> list[dict[str, Any]]:
    """Items with `title` and `category`, where the catalogue knows them."""
    named = catalogue.select("item_id", "title", "category").filter(
        pl.col("item_id").is_in([item["item_id"] for item in items])
    )
    known = {row["item_id"]: row for row in named.iter_rows(named=True)}
    return [item | {k: known.get(item["item_id"], {}).get(k) for k in ("title", "category")} for item in items]
