"""The routes. All of them answer for one site; nothing is written, and no id becomes a path or a query's text."""

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import polars as pl
from cachetools import TTLCache
from fastapi import FastAPI, HTTPException, Path, Query, Request, Response
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from pydantic_core import to_json
from starlette.responses import JSONResponse

from features.histories import listed_id
from pipeline.durations import format_duration
from pipeline.errors import ConfigurationError, NightjarError
from pipeline.terminal import log
from serving_export.online import lookups, schemas
from serving_export.online.answers import Answers, Job, Told
from serving_export.online.batcher import Batcher, BusyError
from serving_export.online.catalogue import Catalogue
from serving_export.online.known_users import KnownUsers
from serving_export.online.limits import Limits
from serving_export.online.metrics import Counted, Metrics
from serving_export.online.page import add_page
from serving_export.online.states import SessionStates
from serving_export.online.versions import Edition, Versions
from serving_export.recommend import read_history, users_with_history
from serving_export.request import Event
from serving_export.request import Request as Wanted

ANSWER_WITHIN = 10.0
"""Seconds after which a client is told to try again."""
MOST_HISTORIES = 10_000
MOST_LOADING = 16
"""Versions besides the one that serves that may wait to be loaded, one after the other: each takes seconds."""
MOST_MODELS = 50
LOOK_EVERY = 10.0
"""Seconds between looks at the alias and the release."""

ItemId = Annotated[str, Path(min_length=1, max_length=schemas.LONGEST_ID)]
UserId = Annotated[str, Path(min_length=1, max_length=schemas.LONGEST_ID)]
Text = Annotated[str, Query(max_length=schemas.LONGEST_QUERY)]
Limit = Annotated[int, Query(ge=1, le=schemas.MOST_ITEMS)]
ChannelName = Annotated[str | None, Query(max_length=schemas.LONGEST_ID)]
FAULTS: dict[int | str, dict[str, Any]] = {
    404: {"model": schemas.Fault, "description": "The site has no such thing."},
    400: {"model": schemas.Fault, "description": "The body is no text that could be JSON."},
    413: {"model": schemas.Fault, "description": "The body is too large."},
    414: {"model": schemas.Fault, "description": "The address is too long."},
    503: {"model": schemas.Fault, "description": "Too busy, or too slow; try again."},
}


class Endpoint:
    """What the routes share."""

    def __init__(self, versions: Versions, metrics: Metrics) -> None:
        self.versions, self.metrics, self.site = versions, metrics, versions.site
        seconds = versions.site.sessions.gap.total_seconds()
        states = SessionStates(seconds, metrics)
        answers = Answers(states, metrics)
        self.quick: Batcher[Job, Told] = Batcher(answers.answer, metrics)
        self.thorough: Batcher[Job, Told] = Batcher(answers.answer, metrics)  # reasons take long, lists do not wait
        self.loading: dict[int, asyncio.Task[Edition]] = {}
        self.turn = asyncio.Lock()
        self.histories: TTLCache[tuple[Any, ...], list[Event]] = TTLCache(MOST_HISTORIES, seconds)
        self.known_users = KnownUsers(self.site.buckets, seconds)

    async def edition(self, model: int | None) -> Edition:
        """What answers; a version that is not in memory is loaded, once for all who wait for it."""
        found = self.versions.at_hand(model)
        if found is not None or model is None:
            return found or self.versions.serving
        if not await asyncio.to_thread(self.versions.has, model):
            raise HTTPException(404, f"{self.site.name} has no model version {model}; /models lists those there are")
        if model not in self.loading:
            if len(self.loading) >= MOST_LOADING:
                raise BusyError
            self.loading[model] = asyncio.create_task(self.load(model))
        try:
            return await asyncio.shield(self.loading[model])  # who gives up waiting does not end it for the others
        except ConfigurationError as error:
            raise HTTPException(404, str(error)) from error

    async def load(self, model: int) -> Edition:
        """Load a version when it is its turn."""
        try:
            async with self.turn:
                return await asyncio.to_thread(self.versions.edition, model)
        finally:
            del self.loading[model]

    async def history(self, edition: Edition, user_id: str) -> list[Event]:
        """What a user did before, read once in a while; empty for who is not known, which costs no read."""
        key, store = (edition.mark, user_id), self.versions.store
        found = self.histories.get(key)
        if found is None:
            table = ("events", edition.loaded.last_day, edition.release)
            if not await self.is_known(table, user_id, partial(users_with_history, edition.loaded, store)):
                return []
            found = await asyncio.to_thread(read_history, edition.loaded, store, user_id)
            self.histories[key] = found
        return found

    async def lists(self, edition: Edition, user_id: str) -> dict[str, list[Told]]:
        """Last night's lists of a user, by channel; empty for a user without any."""
        if not await self.has_lists(edition, user_id):
            return {}
        return await asyncio.to_thread(lookups.exported_lists, edition, user_id)

    async def has_lists(self, edition: Edition, user_id: str) -> bool:
        """Whether the release that readers see has lists of a user."""
        read_users = partial(lookups.users_with_lists, edition)
        return edition.lists is not None and await self.is_known(("lists", edition.release), user_id, read_users)

    async def intents(self, edition: Edition, user_id: str) -> dict[str, list[Told]]:
        """What a user's next event is for, by intent; empty for a user of whom nothing is known or who has no lists.

        Somebody who was forgotten has no lists any more, and still stands in the version of `session_intents` that the
        release names.
        """
        version, store = edition.intents_version, self.versions.store
        if version is None or not await self.has_lists(edition, user_id):
            return {}
        if not await self.is_known(("intents", version), user_id, partial(lookups.users_with_intents, store, version)):
            return {}
        return await asyncio.to_thread(lookups.exported_intents, self.site, store, edition, user_id)

    async def is_known(self, table: Hashable, user_id: str, read_users: Callable[[int], pl.Series]) -> bool:
        """Whether a table has rows of a user, by the id of the log."""
        known = listed_id(self.site, user_id)
        found = self.known_users.has(table, known)
        return await asyncio.to_thread(self.known_users.read, table, known, read_users) if found is None else found

    async def answer(self, edition: Edition, wanted: Wanted) -> Told:
        """One list."""
        batcher = self.thorough if wanted.explain else self.quick
        return await batcher.ask(Job(edition, wanted))

    def channel(self, edition: Edition, name: str | None) -> str:
        """A channel's name; raises a 404 for one that is not there."""
        if name is None:
            return next(iter(self.site.export.channels))
        if name not in edition.loaded.plans:
            known = ", ".join(sorted(edition.loaded.plans))
            raise HTTPException(404, f"{self.site.name} has no channel {name!r}; there are {known}")
        return name

    def unknown_user(self, user_id: str) -> str:
        """What is said of a user without events."""
        self.metrics.unknown_users.inc()
        within = format_duration(self.site.export.active_within)
        return f"Nothing is known of the user {user_id!r}: no event within {within}."


def create_app(versions: Versions, metrics: Metrics, look_every: float = LOOK_EVERY) -> FastAPI:
    """The endpoint of a site."""
    endpoint = Endpoint(versions, metrics)

    @asynccontextmanager
    async def living(_: FastAPI) -> AsyncIterator[None]:
        endpoint.quick.start()
        endpoint.thorough.start()
        versions.watch(look_every)
        yield
        versions.stop()
        await endpoint.quick.stop()
        await endpoint.thorough.stop()

    app = FastAPIOffline(
        title=f"nightjar: {versions.site.name}",
        description="Recommendations for the session in progress, by the model and the rules of last night's lists.",
        version="1",
        lifespan=living,
        redoc_url=None,
    )
    add_recommend(app, endpoint)
    add_users(app, endpoint)
    add_items(app, endpoint)
    add_state(app, endpoint)
    add_page(app)
    add_faults(app)
    app.add_middleware(Counted, metrics=metrics, within=ANSWER_WITHIN)
    app.add_middleware(Limits)
    return app


def add_recommend(app: FastAPI, endpoint: Endpoint) -> None:
    """The list for the session in progress."""
    context, time_zone = endpoint.site.source.context, endpoint.site.time_zone

    async def recommend(asked: schemas.RecommendIn) -> Response:
        """The list that fits a session in progress, by a channel's rules."""
        edition = await endpoint.edition(asked.model)
        channel = endpoint.channel(edition, asked.channel)
        wanted = Wanted(
            session=[Event(each) if isinstance(each, str) else each.event(context, time_zone) for each in asked.items],
            channel=channel,
            top=asked.n or endpoint.site.export.all_channels()[channel].top_n or schemas.MOST_ITEMS,
            explain=asked.explain,
            user_id=asked.user_id,
        )
        note = None
        if asked.user_id is not None:
            history = await endpoint.history(edition, asked.user_id)
            note = None if history else endpoint.unknown_user(asked.user_id)
            wanted = replace(wanted, history=before_session(history, wanted.session))
        told = await endpoint.answer(edition, wanted)
        notes = [sentence for sentence in (note, told.get("note")) if sentence]
        return as_json(told | ({"note": " ".join(notes)} if notes else {}))

    recommend.__annotations__["asked"] = schemas.request_model(context)  # which fields there are is the site's matter
    app.post("/recommend", response_model=schemas.Answer, responses=FAULTS, tags=["lists"])(recommend)


def add_users(app: FastAPI, endpoint: Endpoint) -> None:
    """What the last night says of users."""

    @app.get("/users", response_model=schemas.Users, responses=FAULTS, tags=["users"])
    async def users(query: Text = "", limit: Limit = 20) -> Response:
        """Users with a list whose id begins with the query."""
        edition = endpoint.versions.serving
        found = await asyncio.to_thread(lookups.find_users, edition, query, limit)
        told: Told = {"users": [{"user_id": user} for user in found]}
        if not found and lookups.is_hashed(edition):
            told["note"] = "This site keeps no user ids: type a whole one, as it is in the log."
        return as_json(told)

    @app.get("/users/{user_id:path}/history", response_model=schemas.History, responses=FAULTS, tags=["users"])
    async def history(user_id: UserId, limit: Limit = 50) -> Response:
        """What a user did lately, oldest first."""
        edition = endpoint.versions.serving
        events = await endpoint.history(edition, user_id)
        if not events:
            raise HTTPException(404, endpoint.unknown_user(user_id))
        items = [
            {"occurred_at": event.occurred_at, "event_type": event.event_type} | edition.catalogue.item(event.item_id)
            for event in events[-limit:]
        ]
        return as_json({"user_id": user_id, "num_events": len(events), "items": items})

    @app.get(
        "/users/{user_id:path}/recommendations", response_model=schemas.ExportedLists, responses=FAULTS, tags=["users"]
    )
    async def recommendations(user_id: UserId, channel: ChannelName = None) -> Response:
        """Last night's lists of a user, as they were exported; popular items for a user without any."""
        edition = endpoint.versions.serving
        if edition.lists is None:
            raise HTTPException(404, f"{endpoint.site.name} has no lists yet: run `nightjar export`")
        chosen = None if channel is None else endpoint.channel(edition, channel)
        found = await endpoint.lists(edition, user_id)
        facts, note = edition.lists.facts, None
        if not found:
            note = f"{endpoint.unknown_user(user_id)} These are popular items."
            n = {name: plan.rules.top_n for name, plan in edition.loaded.plans.items()}
            found = {name: lookups.popular_items(edition.loaded, name, n[name]) for name in n}
        lists = [
            {"channel": name, "items": edition.catalogue.describe(with_reason(items, edition.catalogue))}
            for name, items in found.items()
            if chosen in (None, name)
        ]
        told = {name: facts[name] for name in ("model_version", "data_through", "is_expired")}
        source = "popular" if note else "export"
        about = {"user_id": user_id, "source": source, "release": edition.release, **({"note": note} if note else {})}
        return as_json(about | told | {"lists": lists})

    @app.get("/users/{user_id:path}/intents", response_model=schemas.UserIntents, responses=FAULTS, tags=["users"])
    async def intents(user_id: UserId) -> Response:
        """What a user's next event is for, as of last night."""
        edition = endpoint.versions.serving
        found = await endpoint.intents(edition, user_id)
        told: Told = {"user_id": user_id, "intents": found}
        if not found:
            told["note"] = (
                "The model of the last release predicts no intents."
                if edition.intents_version is None
                else endpoint.unknown_user(user_id)
            )
        return as_json(told)


def add_items(app: FastAPI, endpoint: Endpoint) -> None:
    """What is known of items."""

    @app.get("/items", response_model=schemas.Found, responses=FAULTS, tags=["items"])
    async def items(query: Text = "", limit: Limit = 20) -> Response:
        """Items whose title or id holds every word of the query; without one the most frequent ones."""
        catalogue = endpoint.versions.serving.catalogue
        return as_json({"items": await asyncio.to_thread(catalogue.search, query, limit)})

    @app.get("/items/{item_id:path}/related", response_model=schemas.Related, responses=FAULTS, tags=["items"])
    async def related(item_id: ItemId, limit: Limit = 20) -> Response:
        """What goes with an item, as of the last release."""
        edition = endpoint.versions.serving
        found = lookups.related_items(edition, item_id, limit)
        if found is None:
            raise HTTPException(404, f"{endpoint.site.name} has no item {item_id!r}")
        return as_json({"item_id": item_id, "items": edition.catalogue.describe(found)})

    @app.get("/popular", response_model=schemas.Popular, responses=FAULTS, tags=["items"])
    async def popular(channel: ChannelName = None, n: Limit = 20) -> Response:
        """What a channel shows to who is not known."""
        edition = endpoint.versions.serving
        name = endpoint.channel(edition, channel)
        found = await asyncio.to_thread(lookups.popular_items, edition.loaded, name, n)
        return as_json({"channel": name, "items": edition.catalogue.describe(found)})


def add_state(app: FastAPI, endpoint: Endpoint) -> None:
    """What is served, and how it goes."""

    @app.get("/models", response_model=schemas.Models, responses=FAULTS, tags=["state"])
    async def models() -> Response:
        """The versions that can be asked, the newest first."""
        return as_json({"models": await asyncio.to_thread(endpoint.versions.list, MOST_MODELS)})

    @app.get("/health", response_model=schemas.Health, tags=["state"])
    async def health() -> Response:
        """The process lives."""
        return as_json({"status": "ok"})

    @app.get("/ready", response_model=schemas.Readiness, tags=["state"])
    async def ready() -> Response:
        """What is served; and why what is newer is not, where that is so."""
        edition = endpoint.versions.serving
        told = {
            "status": "ready",
            "site": endpoint.site.name,
            "model_version": edition.loaded.version,
            "release": edition.release,
            "data_through": None if edition.lists is None else edition.lists.facts["data_through"],
            "channels": list(endpoint.site.export.channels),
            "refused": endpoint.versions.fault,
        }
        return as_json(told)

    @app.get("/metrics", response_class=Response, tags=["state"])
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(endpoint.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def add_faults(app: FastAPI) -> None:
    """Every refusal is a sentence."""

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        told = [{name: fault[name] for name in ("loc", "msg", "type")} for fault in error.errors()]
        return JSONResponse({"detail": jsonable_encoder(told)}, 422)

    @app.exception_handler(BusyError)
    async def busy(*_: object) -> Response:
        return JSONResponse({"detail": "too many requests wait; try again"}, 503, {"retry-after": "1"})

    @app.exception_handler(NightjarError)
    async def told(_: Request, error: Exception) -> Response:
        log.warning("%s", error)
        return JSONResponse({"detail": str(error)}, 503)


def with_reason(items: list[Told], catalogue: Catalogue) -> list[Told]:
    """Exported items with `because` as the other answers have it."""
    told = []
    for item in items:
        led = item.get("because")
        name = catalogue.item(led).get("title") or led if led else None
        told.append(item | {"because": {"item_id": led, "text": f"because of {name}"} if led else None})
    return told


def before_session(history: Sequence[Event], session: Sequence[Event]) -> list[Event]:
    """A user's history without what the log may have of the session in progress already."""
    began = min((event.occurred_at for event in session if event.occurred_at is not None), default=None)
    return [event for event in history if began is None or event.occurred_at is None or event.occurred_at < began]


def as_json(told: Told) -> Response:
    """An answer that our own code made, and pydantic need not look at again."""
    return Response(to_json(told, inf_nan_mode="null"), media_type="application/json")
