"""PostgreSQL: rows are copied into a table of their own, and a view is pointed at it in one transaction.

    schema nightjar_SITE, view recommendations[_CHANNEL][_nested]

Readers ask the view: grants on it, and views that are built on it, outlive every table. Former tables, and those that a
killed send left, are dropped after the switch.
"""

import uuid
from typing import Any

import polars as pl

from pipeline.addresses import redacted, shown
from pipeline.errors import ConfigurationError, RetryableError
from serving_export.addresses import misread
from serving_export.parcel import Parcel, items_as_json

TYPES = {pl.String: "text", pl.Int64: "bigint", pl.Float64: "double precision"}
LONGEST_WAIT = "30s"
"""For readers that hold the view, before the switch gives up."""


def send(parcel: Parcel, address: str) -> None:
    """Copy a parcel and switch the view to it."""
    try:
        import psycopg
    except ImportError as error:
        raise ConfigurationError(
            "sending to PostgreSQL needs the extra `postgresql`: pip install 'nightjar[postgresql]'"
        ) from error
    if not is_readable(address):
        raise misread(address)
    try:
        with psycopg.connect(address, autocommit=True) as connection:
            replace_view(connection, parcel)
    except psycopg.errors.InvalidTableDefinition as error:
        raise ConfigurationError(
            f"the view at {shown(address)} has other columns than these lists: {first_line(error, address)}. "
            "Drop it, then send again"
        ) from None
    except psycopg.errors.InsufficientPrivilege as error:
        raise ConfigurationError(f"cannot send to {shown(address)}: {first_line(error, address)}") from None
    except psycopg.errors.DataError as error:
        raise ConfigurationError(
            f"{shown(address)} cannot hold these lists: {first_line(error, address)}. Readers there still see the "
            "former ones"
        ) from None
    except psycopg.Error as error:
        raise RetryableError(
            f"cannot send to {shown(address)}: {first_line(error, address)}. Readers there still see the former lists"
        ) from None


def is_readable(address: str) -> bool:
    """Whether the driver can read an address, and takes no part of a password for the host, port or database."""
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    try:
        parts = conninfo_to_dict(address)
    except psycopg.ProgrammingError:
        return False
    ports = str(parts.get("port") or "").split(",")
    has_no_rest = not any("@" in str(parts.get(name) or "") for name in ("host", "dbname"))
    return has_no_rest and all(port.isdecimal() or not port for port in ports)


def first_line(error: Exception, address: str) -> str:
    """What a server says, without its hints and without the passwords of its address."""
    return redacted((str(error).strip().splitlines() or [type(error).__name__])[0], address)


def view_name(parcel: Parcel) -> str:
    """The view of a parcel."""
    channel = "" if parcel.is_whole else f"_{parcel.channels[0]}"
    return f"recommendations{channel}{'_nested' if parcel.form == 'nested' else ''}"


def replace_view(connection: Any, parcel: Parcel) -> None:
    """Fill a new table, point the view at it, drop the former ones; one sender at a time."""
    from psycopg import sql

    schema, view = f"nightjar_{parcel.site}", view_name(parcel)
    got_lock = connection.execute("SELECT pg_try_advisory_lock(hashtext(%s))", [f"{schema}.{view}"]).fetchone()[0]
    if not got_lock:
        raise RetryableError(f"another `nightjar send` is filling {schema}.{view}; wait for it to end")
    exists = connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", [schema]).fetchone()
    if not exists:
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
    table = f"{view[:40]}__{uuid.uuid4().hex[:12]}"
    names = {"schema": sql.Identifier(schema), "view": sql.Identifier(view), "table": sql.Identifier(schema, table)}
    fill_table(connection, parcel, names)
    with connection.transaction():
        connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(LONGEST_WAIT)))
        connection.execute(sql.SQL("CREATE OR REPLACE VIEW {schema}.{view} AS SELECT * FROM {table}").format(**names))
        connection.execute(
            sql.SQL("COMMENT ON VIEW {schema}.{view} IS {told}").format(
                **names, told=sql.Literal(f"nightjar: data through {parcel.facts['data_through']}, {table}")
            )
        )
    drop_former(connection, schema, view, table)
    # A connection that ends gives the lock back too, but only when the server has noticed.
    connection.execute("SELECT pg_advisory_unlock(hashtext(%s))", [f"{schema}.{view}"])


def fill_table(connection: Any, parcel: Parcel, names: dict[str, Any]) -> None:
    """A table with the parcel's rows, found by user, in one transaction."""
    from psycopg import sql

    with connection.transaction(), connection.cursor() as cursor:
        parts = parcel.parts()
        first = next(parts)
        columns = sql.SQL(", ").join(
            sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(TYPES.get(kind.base_type(), "jsonb")))
            for name, kind in first.schema.items()
        )
        cursor.execute(sql.SQL("CREATE TABLE {table} ({columns})").format(**names, columns=columns))
        with cursor.copy(sql.SQL("COPY {table} FROM STDIN (FORMAT csv)").format(**names)) as copy:
            copy.write(as_csv(first))
            for part in parts:
                copy.write(as_csv(part))
        # A hash, since a btree refuses ids of several kB.
        cursor.execute(sql.SQL("CREATE INDEX ON {table} USING hash (user_id)").format(**names))
        cursor.execute(sql.SQL("ANALYZE {table}").format(**names))


def as_csv(part: pl.DataFrame) -> bytes:
    """Rows as COPY reads them: all text in quotes, so that only what is missing is null."""
    return items_as_json(part).write_csv(include_header=False, quote_style="non_numeric").encode()


def drop_former(connection: Any, schema: str, view: str, table: str) -> None:
    """Drop the tables of a view that it no longer shows."""
    from psycopg import sql

    found = connection.execute(
        "SELECT tablename FROM pg_tables WHERE schemaname = %s AND starts_with(tablename, %s) AND tablename <> %s",
        [schema, f"{view[:40]}__", table],
    ).fetchall()
    for (former,) in found:
        connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier(schema, former)))
