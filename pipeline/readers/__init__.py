"""Logs that are neither csv, JSON Lines nor Parquet: a small module for each, which tells what its lines mean.

A reader is a function from lines to rows. It is given a frame with source_file, line_number (from 1) and line (never
blank), and returns a frame with source_file, columns of its own naming (which the site file maps like those of any
log), and, if it likes, unparsable: JSON of what could not be read, null for a good row. Each row is one record; rows
stay in the order of their lines. A long file comes in parts of whole lines. Unpacking, damaged files, counting and
quarantine are done around it.

A site file only names a reader, in `source.reader`. It never names code: what can be named was installed beside
nightjar, as an entry point of the group `nightjar.readers`, or stands below.
"""

from collections.abc import Callable
from importlib.metadata import entry_points

import polars as pl

from pipeline.errors import ConfigurationError
from pipeline.readers import entree_chicago

Reader = Callable[[pl.DataFrame], pl.DataFrame]

GROUP = "nightjar.readers"
READERS: dict[str, Reader] = {"entree_chicago": entree_chicago.read_acts}


def find_reader(name: str) -> Reader:
    """The reader of that name. Raises ConfigurationError where nobody offers one, or it cannot be loaded."""
    if name in READERS:
        return READERS[name]
    offered = entry_points(group=GROUP)
    if name not in offered.names:
        known = ", ".join(sorted({*READERS, *offered.names}))
        raise ConfigurationError(
            f"there is no reader {name!r} (source.reader); known are {known}. "
            f"A reader of your own is a function that your package offers as an entry point of the group {GROUP}"
        )
    try:
        reader: Reader = offered[name].load()
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            f"the reader {name!r} ({offered[name].value}) cannot be loaded: {error}. Mend the package that offers it"
        ) from error
    return reader
