"""The log of Entree, a restaurant recommender of 1996-99: a line is a session, with fields split by tabs.

    start · host · entry point · rated restaurant 1 · … · rated restaurant n · end point

A rated restaurant is its number and a letter for the act: `17N` is "one like 17, but nicer". Columns given:

    host, session       who; the start of the session as text, by which a host's sessions are told apart
    item, act           the restaurant as the side table writes it (seven digits), and the letter
    time                the start of the session, with the act's place as microseconds. The log knows one time a
                        session: the microseconds keep the acts in order and apart, they are no time that passed
    entry, end          the restaurant and city that was asked about, `0` if unknown; the last one seen, `-1` if unknown
    line_number, place  where the act stands: line from 1, place from 0
"""

import polars as pl

RATED = r"^([0-9]+)([A-Z])$"
FEWEST_FIELDS = 4  # of a session in which nothing was rated


def read_acts(lines: pl.DataFrame) -> pl.DataFrame:
    """One row for each rated restaurant of each line; a line that names none is one row without an item."""
    fields = pl.col("line").str.split("\t")
    num_fields = fields.list.len().cast(pl.Int64)
    start, host, entry = (fields.list.get(n, null_on_oob=True).str.strip_chars() for n in range(3))
    rated = fields.list.slice(3, (num_fields - FEWEST_FIELDS).clip(0))
    sessions = lines.with_columns(
        host=host,
        start=start,
        entry=entry,
        end=fields.list.last().str.strip_chars(),
        is_short=num_fields < FEWEST_FIELDS,
        rated=rated,
        place=pl.int_ranges(rated.list.len()),
    )
    acts = sessions.explode("rated", "place", empty_as_null=True).with_columns(pl.col("rated").str.strip_chars())
    is_odd = pl.col("is_short") | (pl.col("rated").is_not_null() & ~pl.col("rated").str.contains(RATED))
    return acts.select(
        "source_file",
        "host",
        session=pl.when(pl.col("host") != "").then("start"),
        item=pl.col("rated").str.extract(RATED, 1).str.zfill(7),
        act=pl.col("rated").str.extract(RATED, 2),
        time=pl.concat_str("start", pl.lit("."), pl.col("place").fill_null(0).cast(pl.String).str.zfill(6)),
        entry="entry",
        end="end",
        line_number="line_number",
        place="place",
        unparsable=pl.when(is_odd).then(pl.struct("line_number", "line", "rated").struct.json_encode()),
    )
