"""Keep cells of a csv from being run as formulas by a spreadsheet.

Text that begins like a formula gets an apostrophe before it, plain numbers do not. Text that has apostrophes before
such a beginning gets one more, so the text can be restored: take the first apostrophe of each cell that begins with
apostrophes and then one of = + - @, tab, carriage return, line feed, or the wide forms of the first four.
"""

import re

import polars as pl

FORMULA = r"^'*[=+\-@\t\r\n＝＋－＠]"
NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"


def guard(text: str) -> str:
    """One cell of text, guarded."""
    return f"'{text}" if re.match(FORMULA, text) and not re.fullmatch(NUMBER, text) else text


def guard_columns(rows: pl.DataFrame) -> pl.DataFrame:
    """All text columns, guarded; other columns as they are."""
    text = pl.selectors.string()
    is_formula = text.str.contains(FORMULA) & ~text.str.contains(NUMBER)
    return rows.with_columns(pl.when(is_formula).then(text.str.replace("^", "'")).otherwise(text))
