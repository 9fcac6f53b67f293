"""A csv file with a header, text in quotes, nothing where there is no value; nested lists as JSON."""

from serving_export.exporters.whole_file import whole_file
from serving_export.parcel import Parcel, items_as_json


def send(parcel: Parcel, address: str) -> None:
    """Write all parts into one file."""
    with whole_file(address) as file:
        for number, part in enumerate(parcel.parts()):
            items_as_json(part).write_csv(file, include_header=number == 0, quote_style="non_numeric")
