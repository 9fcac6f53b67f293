"""The contract before Great Expectations: rules become expectations, and what many frames gave is added up by rule."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from string import Template
from typing import Any

import polars as pl

from pipeline.contract import Rule
from pipeline.settings import PipelineSite

NUM_EXAMPLES = 10


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of a rule on a day."""

    rule: Rule
    limits: str
    """What is allowed, in words."""
    promise: str
    """The expectation in the words of Great Expectations."""
    held: bool
    num_judged: int
    """Rows that were judged; for a rule about the day, 1 or, where there was nothing to judge, 0."""
    num_broken: int
    examples: list[str]
    """Some of the different values that broke the rule."""
    observed: float | None = None
    """The value of a rule about the day."""

    @property
    def status(self) -> str:
        """One of passed, warning, failed, and not judged."""
        if not self.held:
            return "failed" if self.rule.severity == "critical" else "warning"
        return "passed" if self.num_judged or self.rule.of_each_row else "not judged"

    @property
    def found(self) -> str:
        """What was found, in words."""
        if not self.rule.of_each_row:
            return "nothing to judge" if self.observed is None else show_number(self.observed)
        return f"{self.num_broken:,} of {self.num_judged:,} rows break it" if self.num_broken else "every row"

    def sentence(self) -> str:
        """The rule, what was found and what is allowed."""
        like = f", like {', '.join(self.examples[:3])}" if self.rule.of_each_row and self.examples else ""
        return f"{self.rule.name}: {self.rule.words}; found {self.found}{like}, allowed is {self.limits}"


def quiet_context() -> Any:
    """Great Expectations without telemetry, progress bars, chatter and pages of its own."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx

    # Its import sets levels of its own; this module tells of a folder that it does not even make.
    for name in ("great_expectations", "great_expectations.data_context.types.base"):
        logging.getLogger(name).setLevel(logging.WARNING)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    for name in context.get_site_names():
        context.delete_data_docs_site(name)  # a site in a folder under /tmp that nobody would read or remove
    return context


class Checkpoint:
    """Some rules of a day, to be judged on any number of frames whose columns are the rules' measures."""

    def __init__(self, context: Any, name: str, rules: Sequence[Rule], site: PipelineSite, day: date) -> None:
        import great_expectations as gx

        self.rules, self.site, self.day = rules, site, day
        named = f"{day} {name}"
        asset = context.data_sources.add_pandas(named).add_dataframe_asset(name=name)
        expectations = [expectation(rule, site, day) for rule in rules]
        suite = context.suites.add(gx.ExpectationSuite(name=named, expectations=expectations))
        definition = context.validation_definitions.add(
            gx.ValidationDefinition(name=named, data=asset.add_batch_definition_whole_dataframe(name), suite=suite)
        )
        # COMPLETE lists the places of the rows that break a rule, which `explain` shows; they are none on a good day.
        self.runner = context.checkpoints.add(
            gx.Checkpoint(name=named, validation_definitions=[definition], result_format="COMPLETE")
        )
        self.results: dict[str, list[Any]] = {rule.name: [] for rule in rules}

    def judge(self, frame: pl.DataFrame) -> dict[str, list[int]]:
        """Judge a frame and keep the results; return the places of the rows that break each rule."""
        run = self.runner.run(batch_parameters={"dataframe": frame.to_pandas()})
        places = {}
        for result in next(iter(run.run_results.values())).results:
            name = result.expectation_config.meta["rule"]
            if "element_count" not in result.result:
                raise RuntimeError(f"Great Expectations could not judge {name}: {result.exception_info}")
            places[name] = list(result.result.get("unexpected_index_list") or [])
            self.results[name].append(without_rows(result))
        return places

    def verdicts(self, observed: dict[str, Any] | None = None) -> list[Verdict]:
        """One verdict a rule over all frames; for rules about the day with the values that were `observed`."""
        return [self.verdict(rule, self.results[rule.name], observed or {}) for rule in self.rules]

    def verdict(self, rule: Rule, results: Sequence[Any], observed: dict[str, Any]) -> Verdict:
        """The results of a rule added up."""
        told = [result.result for result in results]
        examples = dict.fromkeys(show(value) for each in told for value in each.get("partial_unexpected_list", []))
        return Verdict(
            rule=rule,
            limits=limits_in_words(rule, self.site, self.day),
            promise=promise_in_words(results[0]),
            held=all(result.success for result in results),
            num_judged=sum(each["element_count"] - each.get("missing_count", 0) for each in told),
            num_broken=sum(each["unexpected_count"] for each in told),
            examples=list(examples)[:NUM_EXAMPLES],
            observed=observed.get(column_of(rule)),
        )


def without_rows(result: Any) -> Any:
    """A result without its lists of all rows that break a rule, which may be long."""
    for name in ("unexpected_list", "unexpected_index_list", "partial_unexpected_index_list", "unexpected_index_query"):
        result.result.pop(name, None)
    return result


def column_of(rule: Rule) -> str:
    """The column of a frame in which a rule's measure stands."""
    return rule.measure if rule.of_each_row else f"{rule.table}.{rule.measure}"


def expectation(rule: Rule, site: PipelineSite, day: date) -> Any:
    """A rule as an expectation."""
    import great_expectations.expectations as gxe

    facts = {"column": column_of(rule), "severity": rule.severity, "meta": {"rule": rule.name}}
    if rule.one_of:
        return gxe.ExpectColumnValuesToBeInSet(value_set=rule.one_of(site), **facts)
    low, high = rule.limits(site, day)
    return gxe.ExpectColumnValuesToBeBetween(min_value=low, max_value=high, strict_max=rule.excludes_high, **facts)


def promise_in_words(result: Any) -> str:
    """An expectation as Great Expectations tells it."""
    result.render()
    blocks = result.expectation_config.rendered_content or []
    told = [
        Template(block.value.template).safe_substitute(
            {name: facts["value"] for name, facts in (block.value.params or {}).items()}
        )
        for block in blocks
        if getattr(block.value, "template", None)
    ]
    return " ".join(told)


def limits_in_words(rule: Rule, site: PipelineSite, day: date) -> str:
    """What a rule allows."""
    if rule.one_of:
        return f"one of {', '.join(rule.one_of(site) or [])}"
    low, high = rule.limits(site, day)
    if low in (None, high) and high in (0, low):
        return show(high)
    upper = "before" if rule.excludes_high else "at most"
    parts = [f"{word} {show(limit)}" for word, limit in (("at least", low), (upper, high)) if limit is not None]
    return ", ".join(parts)


def show(value: Any) -> str:
    """A value as text."""
    if isinstance(value, datetime):
        return value.isoformat(sep=" ")
    return show_number(value) if isinstance(value, int | float) else str(value)


def is_within(value: float, low: float | None, high: float | None) -> bool:
    """Whether a value keeps limits, of which either may be none."""
    return (low is None or value >= low) and (high is None or value <= high)


def allowed_in_words(low: float | None, high: float | None) -> str:
    """What is allowed, like `at most 0.5`."""
    told = (("at least", low), ("at most", high))
    return " ".join(f"{words} {show_number(limit)}" for words, limit in told if limit is not None)


def show_number(value: float) -> str:
    """A whole number as it is, another one with about four digits."""
    if abs(value) < 1:
        return f"{value:.4g}"
    return f"{value:,.4f}".rstrip("0").rstrip(".") if value % 1 else f"{value:,.0f}"
