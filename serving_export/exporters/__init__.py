"""Ways out of the store: one module a target, found by the ending of a file or the scheme of an address.

A module's `send(parcel, address)` makes the parcel visible in one step, when all of it is there, and leaves what was
there before until then. A new one is a module and a line here, and inherits the round trip of the tests.
"""

from collections.abc import Callable

from serving_export.exporters import csv, jsonl, parquet, postgresql, redis
from serving_export.parcel import Parcel

EXPORTERS: dict[str, Callable[[Parcel, str], None]] = {
    "parquet": parquet.send,
    "jsonl": jsonl.send,
    "csv": csv.send,
    "redis": redis.send,
    "rediss": redis.send,
    "postgresql": postgresql.send,
}
