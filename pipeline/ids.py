"""Stable ids: SHA-256 over named fields, the same in every version, language and table format.

An id is the first 32 hex digits (128 bits) of sha256 over the fields joined by U+001F, a missing field
written as U+0000. A bucket is the first 8 hex digits of sha256(visitor), as an integer, modulo the number of buckets.
"""

import hashlib

import polars as pl
import polars_hash as plh

BLOCK_BYTES = 64  # of sha256
SEPARATOR, MISSING = "\x1f", "\x00"
ANONYMOUS = " session:"
"""Begins the visitor of an anonymous session. Ids are trimmed, so no user id begins with a space."""


def stable_id(*fields: pl.Expr) -> pl.Expr:
    """128 bits of sha256 over the fields, as 32 hex digits."""
    joined = pl.concat_str([field.cast(pl.String).fill_null(MISSING) for field in fields], separator=SEPARATOR)
    return sha256(joined).str.slice(0, 32)


def visitor(user_id: pl.Expr, session_id: pl.Expr) -> pl.Expr:
    """Whose an event is, of trimmed ids: the user, else the anonymous visitor of the given session; null of neither."""
    return pl.coalesce(user_id, pl.lit(ANONYMOUS) + session_id)


def trimmed(given: str) -> str:
    """An id as ingest trims it: of what polars takes for whitespace, which is not all that Python does."""
    return str(pl.select(pl.lit(given).str.strip_chars()).item())


def user_bucket(visitor: pl.Expr, buckets: int) -> pl.Expr:
    """The part of the store that a visitor's rows lie in, 0 to buckets - 1."""
    return sha256(visitor).str.slice(0, 8).str.to_integer(base=16) % buckets


def sha256(text: pl.Expr) -> pl.Expr:
    """The hex digest of a text column."""
    return plh.concat_str(text).chash.sha2_256()


def hmac_sha256(text: pl.Expr, secret: bytes) -> pl.Expr:
    """The hex digest of a text column under a secret: HMAC of RFC 2104."""
    key = (hashlib.sha256(secret).digest() if len(secret) > BLOCK_BYTES else secret).ljust(BLOCK_BYTES, b"\0")

    def keyed(pad: int, message: pl.Expr) -> pl.Expr:
        digest: pl.Expr = (pl.lit(bytes(byte ^ pad for byte in key)) + message).chash.sha2_256()  # type: ignore[attr-defined]
        return digest

    return keyed(0x5C, keyed(0x36, text.cast(pl.Binary)).str.decode("hex"))


def content_digest(ids: pl.Expr) -> pl.Expr:
    """A digest of a set of ids that does not depend on their order: the sum of 60-bit halves, and the count."""
    return pl.concat_str([part.cast(pl.String) for part in content_sums(ids)], separator="-")


def content_sums(ids: pl.Expr) -> list[pl.Expr]:
    """What a digest is made of: whole numbers that add up, so that a set can be digested part by part."""
    low = ids.str.slice(0, 15).str.to_integer(base=16)
    high = ids.str.slice(15, 15).str.to_integer(base=16)
    sums = {"sum_low": (low % 2**40).sum(), "sum_high": (high % 2**40).sum()}
    return [pl.len().cast(pl.Int64).alias("num_ids"), *(total.alias(name) for name, total in sums.items())]


def content_text(prefix: str = "") -> pl.Expr:
    """The digest of a set whose parts' sums were added up, in columns that may carry a prefix."""
    return pl.concat_str([f"{prefix}{name}" for name in ("num_ids", "sum_low", "sum_high")], separator="-")


def content_parts(digest: pl.Expr) -> list[pl.Expr]:
    """The sums that a digest tells, to add further ones to."""
    parts = digest.str.split("-")
    names = ("num_ids", "sum_low", "sum_high")
    return [parts.list.get(n, null_on_oob=True).cast(pl.Int64).fill_null(0).alias(name) for n, name in enumerate(names)]
