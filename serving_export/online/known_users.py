"""Which users a table has rows of, kept in memory so that the id of a stranger costs no read of the table."""

import secrets
from collections.abc import Callable, Hashable
from threading import Lock

import numpy as np
import polars as pl
from cachetools import TTLCache

from features.sequences import Integers
from serving_export.reader import bucket_of

MOST_TABLES = 4
"""Tables, or versions of one, whose users are kept: histories, lists and intents, and one that is being replaced."""


class KnownUsers:
    """Hashes of user ids, 8 bytes each, by table and bucket; a bucket is read when one of its users is first asked for.

    A hash that two ids share costs a read that finds nothing; a user who is there is never missed.
    """

    def __init__(self, buckets: int, seconds: float) -> None:
        self.buckets = buckets
        self.hashes: TTLCache[tuple[Hashable, int], Integers] = TTLCache(MOST_TABLES * buckets, seconds)
        self.seed = secrets.randbits(63)  # nobody outside can make ids that share a hash
        self.lock, self.reading = Lock(), Lock()

    def has(self, table: Hashable, user_id: str) -> bool | None:
        """Whether a table has rows of a user; None where the user's bucket was not read yet, or too long ago."""
        with self.lock:
            hashes = self.hashes.get((table, bucket_of(user_id, self.buckets)))
        if hashes is None:
            return None
        (wanted,) = self.hash(pl.Series([user_id]))
        place = int(np.searchsorted(hashes, wanted))
        return place < len(hashes) and bool(hashes[place] == wanted)

    def read(self, table: Hashable, user_id: str, read_users: Callable[[int], pl.Series]) -> bool:
        """The same, once `read_users` has given the ids of the user's bucket."""
        with self.reading:  # one at a time: who waited finds what another one has read
            found = self.has(table, user_id)
            if found is None:
                bucket = bucket_of(user_id, self.buckets)
                hashes = np.unique(self.hash(read_users(bucket)))
                with self.lock:
                    self.hashes[table, bucket] = hashes
                found = bool(np.isin(self.hash(pl.Series([user_id])), hashes)[0])
        return found

    def hash(self, user_ids: pl.Series) -> Integers:
        """64 bits of each id."""
        return user_ids.cast(pl.String).hash(self.seed).to_numpy().view(np.int64)
