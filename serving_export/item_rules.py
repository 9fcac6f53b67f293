"""Rules of a site file as Polars expressions over a catalogue: which items may stand in a list, whoever it is for."""

from typing import Any

import polars as pl

from pipeline.tables import ITEMS
from training.export_settings import ItemRule, ItemRules

COMPARE: dict[str, Any] = {
    "==": lambda column, rule: column.eq(pl.lit(rule.value)).fill_null(value=False),
    "!=": lambda column, rule: column.ne_missing(pl.lit(rule.value)),
    "in": lambda column, rule: column.is_in(values_of(rule).implode()).fill_null(value=False),
    "not_in": lambda column, rule: ~column.is_in(values_of(rule).implode()).fill_null(value=False),
    "<": lambda column, rule: column.lt(pl.lit(rule.value)).fill_null(value=False),
    "<=": lambda column, rule: column.le(pl.lit(rule.value)).fill_null(value=False),
    ">": lambda column, rule: column.gt(pl.lit(rule.value)).fill_null(value=False),
    ">=": lambda column, rule: column.ge(pl.lit(rule.value)).fill_null(value=False),
    "is_null": lambda column, rule: column.is_null(),
    "not_null": lambda column, rule: column.is_not_null(),
}


def values_of(rule: ItemRule) -> pl.Series:
    """The values of a rule as its column has them."""
    kind = ITEMS.columns[rule.column]
    values = [float(value) if kind == pl.Float64 else value for value in rule.values]  # type: ignore[arg-type]
    return pl.Series(values, dtype=kind)


def compile_rule(rule: ItemRule) -> pl.Expr:
    """Whether a row of `items` meets the rule: true or false, never null."""
    met: pl.Expr = COMPARE[rule.op](pl.col(rule.column), rule)
    return met


def may_stand(rules: ItemRules) -> pl.Expr:
    """Whether a row of `items` may stand in a list: true or false, never null."""
    is_offered = pl.col("available").ne_missing(pl.lit(False)) if rules.available_only else pl.repeat(True, pl.len())
    allowed = [compile_rule(rule) for rule in rules.allow]
    denied = [~compile_rule(rule) for rule in rules.deny]
    return pl.all_horizontal(is_offered, *allowed, *denied)
