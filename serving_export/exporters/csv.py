"""A csv file with a header, text in quotes, nothing where there is no value; nested lists as JSON."""

from pipeline.formulas import guard_columns
from serving_export.exporters.whole_file import whole_file
from serving_export.parcel import Parcel, items_as_json


def send(parcel: Parcel, address: str, *, guard_formulas: bool = False) -> None:
    """Write all parts into one file; with `guard_formulas` no text cell is a formula to a spreadsheet."""
    with whole_file(address) as file:
        for number, part in enumerate(parcel.parts()):
            rows = items_as_json(part)
            rows = guard_columns(rows) if guard_formulas else rows
            rows.write_csv(file, include_header=number == 0, quote_style="non_numeric")
