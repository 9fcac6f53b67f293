"""Redis: a hash a channel and generation, and a key a channel that names the generation to read.

    nightjar:SITE:CHANNEL:current          the generation, like 7-1f0c9a2b
    nightjar:SITE:CHANNEL:GENERATION       user id -> {"session_id": …, "items": [{"item_id", "score", …}, …]}
    nightjar:SITE:CHANNEL:GENERATION:facts what the release was made from

`current` of all channels moves in one transaction when everything is there. Former generations, and what a killed send
left, go an hour after that: readers who have just read `current` still find theirs.
"""

import json
import uuid
from typing import Any
from urllib.parse import urlsplit

import polars as pl

from pipeline.addresses import redacted, shown
from pipeline.errors import ConfigurationError, RetryableError
from serving_export.addresses import misread
from serving_export.parcel import Parcel, in_lists

USERS_AT_ONCE = 1_000
SECONDS_LEFT = 3_600


def send(parcel: Parcel, address: str) -> None:
    """Write a new generation of each channel and switch to it. The form is nested, whatever the parcel says."""
    try:
        import redis
    except ImportError as error:
        raise ConfigurationError("sending to Redis needs the extra `redis`: pip install 'nightjar[redis]'") from error
    generation = f"{parcel.facts['table_version']}-{uuid.uuid4().hex[:8]}"
    try:
        with open_server(address) as server:
            for channel in parcel.channels:
                server.sadd(key(parcel.site, channel, "generations"), generation)
            for part in parcel.flat_parts():
                write(server, parcel.site, generation, in_lists(part))
            switch(server, parcel, generation)
            for channel in parcel.channels:
                retire(server, parcel.site, channel, generation)
    except redis.exceptions.RedisError as error:
        reason = redacted(str(error), address)
        raise RetryableError(
            f"cannot send to {shown(address)}: {reason}. Readers there still see the former lists"
        ) from None


def open_server(address: str) -> Any:
    """A client that is not connected yet.

    Raises ConfigurationError where the driver cannot read the address, or takes a part of a password for host and port.
    """
    import redis

    try:
        parts = urlsplit(address)
        if parts.fragment or "@" in parts.path:
            raise misread(address)
        server = redis.Redis.from_url(address)
        pool = server.connection_pool
        pool.connection_class(**pool.connection_kwargs)  # an option that it does not know is a TypeError here
    except (ValueError, TypeError):  # the message may hold a part of the password
        raise misread(address) from None
    return server


def key(site: str, channel: str, name: str) -> str:
    """The name of a key."""
    return f"nightjar:{site}:{channel}:{name}"


def write(server: Any, site: str, generation: str, lists: pl.DataFrame) -> None:
    """Put lists into the hash of their channel, some users at a time, without waiting for each answer."""
    told = lists.with_columns(document=pl.struct("session_id", "items").struct.json_encode())
    for (channel,), part in told.partition_by("channel", as_dict=True).items():
        with server.pipeline(transaction=False) as pipeline:
            for some in part.select("user_id", "document").iter_slices(USERS_AT_ONCE):
                pipeline.hset(key(site, channel, generation), mapping=dict(some.rows()))
            pipeline.execute()


def switch(server: Any, parcel: Parcel, generation: str) -> None:
    """Let all channels name the new generation, at once."""
    with server.pipeline(transaction=True) as pipeline:
        for channel in parcel.channels:
            pipeline.set(key(parcel.site, channel, f"{generation}:facts"), json.dumps(parcel.facts))
            pipeline.persist(key(parcel.site, channel, generation))
            pipeline.set(key(parcel.site, channel, "current"), generation)
        pipeline.execute()


def retire(server: Any, site: str, channel: str, generation: str) -> None:
    """Let all other generations of a channel end in an hour."""
    known = [name.decode() for name in server.smembers(key(site, channel, "generations"))]
    with server.pipeline(transaction=True) as pipeline:
        for former in known:
            if former != generation:
                pipeline.expire(key(site, channel, former), SECONDS_LEFT)
                pipeline.expire(key(site, channel, f"{former}:facts"), SECONDS_LEFT)
                pipeline.srem(key(site, channel, "generations"), former)
        pipeline.execute()
