"""Keep cells of a csv from being run as formulas by a spreadsheet.

Text that begins like a formula gets an apostrophe before it; text that has apostrophes before such a beginning gets one
more, so that the text can be restored: `re.sub(r"^'(?='*[=+\-@\t\r\n＝＋－＠])", "", cell)`. Plain numbers stay as they are.
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
    return rows.with_columns(pl.when(is_formula).then(pl.concat_str(pl.lit("'"), text)).otherwise(text).name.keep())
