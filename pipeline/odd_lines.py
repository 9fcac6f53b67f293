"""Records of a log that is neither csv, JSON Lines nor Parquet, as a reader module understands its lines."""

import polars as pl
from polars.exceptions import PanicException

from pipeline.errors import ConfigurationError
from pipeline.json_lines import as_lines
from pipeline.raw_columns import check_columns, id_columns, raw_name, with_text_ids
from pipeline.readers import find_reader
from pipeline.separated_text import numbers_of_filled_lines, readable, without_empty_lines
from pipeline.settings import Source


class OddLines:
    """How many lines of a file were seen, and what turns blocks of its text into records."""

    def __init__(self, path: str, source: Source, reader: str) -> None:
        self.path, self.source, self.reader = path, source, find_reader(reader)
        self.num_lines = 0

    def parse(self, text: bytes, is_end: bool) -> tuple[pl.DataFrame, bytes]:
        """The rows that the reader gives for a text, numbered from 1, and what is left: the beginning of a line."""
        if is_end and text and not text.endswith(b"\n"):
            text += b"\n"
        cut = text.rfind(b"\n") + 1
        whole = readable(text[:cut])
        lines = as_lines(without_empty_lines(whole)).select(
            pl.col("line").str.strip_suffix("\n"),
            source_file=pl.lit(self.path),
            line_number=pl.Series(numbers_of_filled_lines(whole) + self.num_lines),
        )
        self.num_lines += whole.count(b"\n")
        rows = self._rows(lines.filter(pl.col("line").str.strip_chars() != ""))
        theirs = [name for name in rows.columns if name not in ("source_file", "unparsable")]
        check_columns(self.path, theirs, self.source)
        given = pl.col("unparsable").cast(pl.String) if "unparsable" in rows.columns else pl.lit(None, pl.String)
        is_json = given.str.json_path_match("$").is_not_null()
        unparsable = pl.when(is_json).then(given).otherwise(pl.struct(line=given).struct.json_encode())
        ids = id_columns(self.source)
        as_text = [
            name for name in theirs if name not in ids and not isinstance(rows.schema[name], pl.Datetime | pl.String)
        ]
        records = rows.with_columns(pl.col(as_text).cast(pl.String)).select(
            *(pl.col(name).alias(raw_name(name)) for name in theirs),
            record=pl.int_range(1, pl.len() + 1),
            fault=pl.when(given.is_not_null()).then(pl.lit("unparsable_row")),
            fields=pl.when(given.is_not_null()).then(unparsable),
        )
        return with_text_ids(records, self.source), text[cut:]

    def _rows(self, lines: pl.DataFrame) -> pl.DataFrame:
        """What the reader makes of lines. Raises ConfigurationError where it fails: it may be anybody's code."""
        try:
            return self.reader(lines)
        except (Exception, PanicException) as error:
            raise ConfigurationError(
                f"the reader {self.source.reader!r} failed on {self.path} with {type(error).__name__}: {error}. "
                "Mend the reader, or take the file out of source.events"
            ) from error
