"""JSON Lines: an object a row; nested lists as a list of objects."""

from serving_export.exporters.whole_file import whole_file
from serving_export.parcel import Parcel


def send(parcel: Parcel, address: str) -> None:
    """Write all parts into one file."""
    with whole_file(address) as file:
        for part in parcel.parts():
            part.write_ndjson(file)
