"""The command line: one subcommand per step, in the order data flows.

Every step ends with one JSON line on stdout; everything else goes to stderr. Exit codes: 0 done, 1 a fault that a
retry may cure, 2 usage or configuration, 3 the data broke its contract. Heavy packages are imported inside the
commands, so that --help answers at once.
"""

import json
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from datetime import date
from enum import StrEnum
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from dags.settings import Schedule
from pipeline.addresses import redacted
from pipeline.dates import FIRST_DAY, LAST_DAY, days_between
from pipeline.durable import put_in_place
from pipeline.durations import format_duration
from pipeline.errors import ConfigurationError, NightjarError, RetryableError, kind_of, reason_of
from pipeline.parent import end_with_parent
from pipeline.site_file import load_site
from serving_export.settings import ExportSite

if TYPE_CHECKING:
    import polars as pl

    from pipeline.publish import Store
    from pipeline.tables import Table
    from serving_export.request import Request
    from training.study import Best

log = logging.getLogger("nightjar")
MOST_ROWS, MOST_LETTERS, MOST_REASONS = 20, 100, 3
MOST_DAYS = 3_660
"""Ten years: a longer range is a slip of the pen."""


class Site(ExportSite):
    """A whole site file: every folder's section."""

    schedule: Schedule = Schedule()


class Form(StrEnum):
    """How rejected rows are written."""

    table = "table"
    jsonl = "jsonl"
    csv = "csv"
    tsv = "tsv"


class ListForm(StrEnum):
    """How lists are sent."""

    rows = "rows"
    nested = "nested"


class Purpose(StrEnum):
    """What a recipe is trained for: a tag of its MLflow run."""

    nightly = "nightly"
    report = "report"
    tune = "tune"


SERVE_WITH = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) - 1)), "OMP_WAIT_POLICY": "PASSIVE"}
"""Read when numpy, torch and faiss are loaded, for all their threads: one core is for the connections."""
Step = Callable[[Site, "Store", date], dict[str, Any]]
app = typer.Typer(
    help="Raw interaction logs in, recommendation tables out, every night.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
rollback_app = typer.Typer(help="Take back a release or a model; --to a later version rolls forward again.")
app.add_typer(rollback_app, name="rollback", no_args_is_help=True)
SiteOption = Annotated[Path, typer.Option("--site", help="The site file, like conf/demo.yaml.")]
GuardOption = Annotated[
    bool,
    typer.Option(
        "--guard-formulas",
        help="csv for a spreadsheet: an apostrophe before text that begins like a formula. See docs/reading.md.",
    ),
]
DateOption = Annotated[str, typer.Option("--date", help="A day of the site's zone, YYYY-MM-DD.")]
FromOption = Annotated[str, typer.Option("--from", help="First day of a range; with --to instead of --date.")]
ToVersionOption = Annotated[int | None, typer.Option("--to", help="A version; else the one before the newest.")]
UserOption = Annotated[str, typer.Option(help="A user id as in the log.")]
SessionOption = Annotated[
    str, typer.Option(help="The session id, as in the log, of an anonymous visitor; where the log has no user ids.")
]
ToOption = Annotated[str, typer.Option("--to", help="Last day of the range, included.")]


def ingest(site: Site, store: "Store", day: date) -> dict[str, Any]:
    """Raw files of a delivery day become events; the catalogue is brought up to date."""
    from pipeline import catalogue, ingest

    counts = ingest.ingest(site, store, day)
    return counts | catalogue.update_items(site, store, day)


def sessionize(site: Site, store: "Store", day: date) -> dict[str, Any]:
    """Events become sessions, for the day and for earlier days that changed."""
    from pipeline.sessionize import sessionize_stale

    return sessionize_stale(site, store, day)


def validate(site: Site, store: "Store", day: date) -> dict[str, Any]:
    """The day is held to its contract; exit code 3 if it broke it."""
    from pipeline.validate import validate_stale

    return validate_stale(site, store, day)


def features(site: Site, store: "Store", day: date) -> dict[str, Any]:
    """Vocabulary and training sequences of the window, and the night's parent run."""
    from features.build import build_features
    from training.tracking import Tracking

    counts = build_features(site, store, day)
    tracking = Tracking(site)
    tracking.keep_report(day)
    return counts | {"run_id": tracking.night_run(day).info.run_id}


def train(
    site: Site, store: "Store", day: date, recipe: str, seed: int, purpose: Purpose = Purpose.nightly
) -> dict[str, Any]:
    """One recipe is trained with one seed, tested and registered; to tune it, the day before is held out instead."""
    from training.train import train
    from training.tune import tune

    told = {"recipe": recipe, "seed": seed, "purpose": purpose.value}
    if purpose is Purpose.tune:
        return told | tune(site, store, day, recipe, seed)
    return told | train(site, store, day, recipe, seed, purpose.value)


def promote(site: Site, store: "Store", day: date) -> dict[str, Any]:
    """The night's best version becomes champion if it passes the gate."""
    from serving_export.index_recall import index_recall
    from training.promote import promote

    pinned = store.pinned()
    return promote(site, pinned, day, partial(index_recall, site, pinned, day))


def refit(site: Site, store: "Store", day: date, *, nightly: bool = False) -> dict[str, Any]:
    """The champion learns the newest day and becomes what is served."""
    from training.refit import refit, refit_nightly

    return refit_nightly(site, store, day) if nightly else refit(site, store, day)


def export(site: Site, store: "Store", day: date) -> dict[str, Any]:
    """The lists of every active user are published."""
    from serving_export.export import export

    return export(site, store, day)


def drift(site: Site, store: "Store", day: date) -> dict[str, Any]:
    """The day is held against the days before it, and its lists against the last ones."""
    from serving_export.drift import drift

    return drift(site, store, day)


DATA_STEPS: dict[str, Step] = {"ingest": ingest, "sessionize": sessionize, "validate": validate}
AFTER_TRAINING: dict[str, Step] = {"promote": promote, "refit": refit, "export": export, "drift": drift}
STEPS: dict[str, Step] = DATA_STEPS | {"features": features} | AFTER_TRAINING


def add_step(name: str, step: Step) -> None:
    """A subcommand that takes a day or a range of days."""

    def command(site: SiteOption, day: DateOption = "", first: FromOption = "", last: ToOption = "") -> None:
        the_site = read_site(site)
        for each in read_days(day, first, last):
            run_step(name, the_site, each, step)

    command.__doc__ = step.__doc__
    app.command(name)(command)


def ingest_command(
    site: SiteOption,
    day: DateOption = "",
    first: FromOption = "",
    last: ToOption = "",
    suggest: Annotated[
        bool,
        typer.Option("--suggest-thresholds", help="Only show what limits of source.bots would cut; write nothing."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line of suggestions instead of a table.")] = False,
) -> None:
    """Raw files of a delivery day become events; the catalogue is brought up to date."""
    the_site = read_site(site)
    for each in read_days(day, first, last):
        if suggest:
            show_thresholds(the_site, each, as_json)
        else:
            run_step("ingest", the_site, each, ingest)


def show_thresholds(site: Site, day: date, as_json: bool) -> None:
    """What limits at some quantiles of a day would cut."""
    from pipeline.thresholds import suggest_thresholds

    rows = suggest_thresholds(site, day)
    if as_json:
        write_json({"step": "ingest", "site": site.name, "date": day.isoformat(), "thresholds": rows})
    elif rows:
        shown = [
            row | {"limit": f"{row['limit']:.4g}" if isinstance(row["limit"], float) else row["limit"]} for row in rows
        ]
        texts = [row | {"visitors cut": str(row["visitors"]), "events cut": f"{row['events']:.3%}"} for row in shown]
        write_table(texts, ("measure", "quantile", "limit", "visitors cut", "events cut"))
    else:
        write_text(f"the files of {day} hold no row of that day that could be an event: nothing to choose from")


def train_command(
    site: SiteOption,
    recipe: Annotated[str, typer.Option(help="A recipe's name.")],
    day: DateOption = "",
    first: FromOption = "",
    last: ToOption = "",
    seed: Annotated[int | None, typer.Option(min=0, help="Train with this seed only; default: training.seeds.")] = None,
    purpose: Annotated[
        Purpose,
        typer.Option(
            help="Only nightly runs can become champion. "
            "`tune`: learn through the day before yesterday, stop when yesterday gets no better, register nothing."
        ),
    ] = Purpose.nightly,
) -> None:
    """Train one recipe, once per seed; test it on the day, register it."""
    the_site = read_site(site)
    for each in read_days(day, first, last):
        run_train(the_site, each, recipe, None if seed is None else (seed,), purpose)


def validate_command(
    site: SiteOption,
    day: DateOption = "",
    first: FromOption = "",
    last: ToOption = "",
    explain: Annotated[str, typer.Option(help="Judge nothing, but show what breaks this rule of the contract.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="With --explain: all of it, one JSON line each.")] = False,
) -> None:
    """Hold the day to its contract; exit code 3 if it broke it."""
    the_site = read_site(site)
    for each in read_days(day, first, last):
        if explain:
            show_explanation(the_site, each, explain, as_json)
        else:
            run_step("validate", the_site, each, validate)


def show_explanation(site: Site, day: date, rule: str, as_json: bool) -> None:
    """What breaks a rule: the first rows as a table, or all of them as JSON lines."""
    from pipeline.explain import explain, in_lines
    from pipeline.publish import open_store
    from pipeline.terminal import align

    sentence, frames = explain(site, open_store(site, must_exist=True), day, rule)
    if as_json:
        for frame in frames:
            for row in frame.iter_rows(named=True):
                write_json(row)
        return
    lines, total = in_lines(frames)
    write_text(sentence)
    write_text(align(lines, left=len(lines[0])) if total else "nothing breaks it")
    if total >= len(lines):
        write_text(f"{len(lines) - 1} of {total:,} rows; --json shows all of them")


def refit_command(
    site: SiteOption,
    day: DateOption = "",
    first: FromOption = "",
    last: ToOption = "",
    nightly: Annotated[
        bool,
        typer.Option(
            "--nightly",
            help="As the nightly DAG asks: the champion that stood when the night began, so that a night run again "
            "gives the same lists; and nothing at all where a later day is served already.",
        ),
    ] = False,
) -> None:
    """The champion learns the newest day and becomes what is served."""
    the_site = read_site(site)
    for each in read_days(day, first, last):
        run_step("refit", the_site, each, partial(refit, nightly=nightly))


OWN_COMMANDS: dict[str, Callable[..., None]] = {
    "ingest": ingest_command,
    "validate": validate_command,
    "refit": refit_command,
}

for _name, _step in STEPS.items():
    if _name == "promote":
        app.command("train")(train_command)
    if _name in OWN_COMMANDS:
        app.command(_name)(OWN_COMMANDS[_name])
    else:
        add_step(_name, _step)


@app.command()
def run(
    site: SiteOption,
    day: DateOption = "",
    first: FromOption = "",
    last: ToOption = "",
    every_night: Annotated[
        bool, typer.Option("--every-night", help="Model steps for each day that has a window, not only for the last.")
    ] = False,
    data_only: Annotated[bool, typer.Option("--data-only", help="Stop after validate.")] = False,
) -> None:
    """All steps in this process: data steps for each day, model steps once for the last one."""
    the_site = read_site(site)
    days = read_days(day, first, last)
    if every_night:
        for each in days:
            run_data_steps(the_site, [each])
            if has_window(the_site, each):
                run_model_steps(the_site, each)
        return
    run_data_steps(the_site, days)
    if not data_only:
        run_model_steps(the_site, days[-1])


def run_data_steps(site: Site, days: list[date]) -> None:
    """Ingest all days first: a session may reach into the day after."""
    for name, step in DATA_STEPS.items():
        for day in days:
            run_step(name, site, day, step)


def run_model_steps(site: Site, day: date) -> None:
    """Features, every recipe, and what follows from them."""
    run_step("features", site, day, features)
    for recipe in site.training.recipes:
        run_train(site, day, recipe)
    for name, step in AFTER_TRAINING.items():
        run_step(name, site, day, step)


def has_window(site: Site, day: date) -> bool:
    """Whether enough days before `day` passed validation to train for it."""
    from features.window import window_days
    from pipeline.dates import ONE_DAY
    from pipeline.publish import open_store

    try:
        window_days(site, open_store(site, must_exist=True), day - ONE_DAY)
    except ConfigurationError:
        return False
    return True


@app.command()
def due(
    site: SiteOption, day: Annotated[str, typer.Option("--date", help="A day of the site's zone, YYYY-MM-DD.")]
) -> None:
    """Say in a JSON line whether a day is the newest that passed validation, and has days enough before it to train."""
    from pipeline.days import passed_days
    from pipeline.publish import open_store

    the_site, the_day = read_site(site), read_day(day)
    passed = passed_days(open_store(the_site, must_exist=True), date.min, date.max)
    newest = passed[-1].isoformat() if passed else None
    facts = {"newest_passed": newest, "is_newest": newest == day, "has_window": has_window(the_site, the_day)}
    write_json({"step": "due", "site": the_site.name, "date": day, **facts})


@app.command()
def compare(
    site: SiteOption,
    day: Annotated[str, typer.Option("--date", help="The night: the day that its models were tested on.")],
    purpose: Annotated[Purpose, typer.Option(help="Which runs: nightly or report.")] = Purpose.nightly,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON line with every number instead of a table.")
    ] = False,
) -> None:
    """Show a night's models beside each other, and write the same as an HTML page that opens offline."""
    from training import compare
    from training.tracking import Tracking

    the_site, night = read_site(site), read_day(day)
    tracking = Tracking(the_site)
    rows = compare.compare(the_site, tracking, night, purpose.value)
    page = compare.keep(the_site, tracking, night, rows, purpose.value)
    if as_json:
        facts = {"step": "compare", "site": the_site.name, "date": night, "purpose": purpose.value, "page": page}
        write_json(facts | {"models": compare.as_facts(rows)})
        return
    write_text(compare.as_text(rows, the_site))
    log.info("the same with pictures: %s", page)


@app.command()
def tune(
    site: SiteOption,
    day: Annotated[
        str, typer.Option("--date", help="The night: recipes are measured on the day before it, never on itself.")
    ],
    recipe: Annotated[str, typer.Option(help="A recipe's name; it need not be in the site file.")] = "",
    every: Annotated[
        bool, typer.Option("--all", help="Every recipe of the site file, each with the same budget.")
    ] = False,
    trials: Annotated[int, typer.Option(min=1, help="Stop at so many trials, those of earlier calls counted.")] = 20,
    budget: Annotated[
        float, typer.Option(min=0, help="Stop after so many minutes for a recipe, those of earlier calls counted.")
    ] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON line a recipe instead of a table.")] = False,
) -> None:
    """Look for the best fields of a recipe, in trials that are kept; a killed one goes on."""
    from pipeline.publish import open_store
    from training.study import tune_recipe

    if bool(recipe) == every:
        raise ConfigurationError("give --recipe R, or --all")
    the_site, night = read_site(site), read_day(day)
    store, found = open_store(the_site, must_exist=True), []
    for name in the_site.training.recipes if every else (recipe,):
        with lock(the_site, f"tune-{name}", night):
            found.append(tune_recipe(the_site, store, night, name, trials=trials, minutes=budget))
        if as_json:
            write_json({"step": "tune", "site": the_site.name, **asdict(found[-1])})
    if not as_json:
        show_bests(found)


@app.command()
def best(
    site: SiteOption,
    recipe: Annotated[str, typer.Option(help="Show what its best trial changes in the site file.")] = "",
    write: Annotated[bool, typer.Option("--write", help="With --recipe: change the site file so.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON line a recipe instead of a table.")] = False,
) -> None:
    """Show the best trials of each recipe that was tuned; put the best one's fields into the site file."""
    from training.site_recipe import difference, with_recipe
    from training.study import bests

    the_site = read_site(site)
    found = bests(the_site)
    if not recipe:
        for each in found if as_json else []:
            write_json({"step": "best", "site": the_site.name, **asdict(each)})
        if not as_json:
            show_bests(found) if found else write_text("no recipe was tuned yet; run `nightjar tune`")
        return
    ours = next((each for each in found if each.recipe == recipe), None)
    if ours is None:
        raise ConfigurationError(f"no trial of {recipe!r} is known. Run `nightjar tune --recipe {recipe}` first")
    old, new = site.read_text(encoding="utf-8"), with_recipe(site, the_site, recipe, ours.fields)
    write_text(difference(old, new, site) or f"{site} says so already")
    if write and new != old:
        replace_site_file(site, new)


def replace_site_file(file: Path, text: str) -> None:
    """Write a site file whole, once it is known to be a valid one."""
    aside = file.with_name(f".{file.name}.part")
    try:
        aside.write_text(text, encoding="utf-8")
        read_site(aside)
        shutil.copymode(file, aside)
        put_in_place(aside, file)
    except OSError as error:
        raise kind_of(error)(f"cannot write {file}: {reason_of(error)}; it is as it was") from error
    finally:
        aside.unlink(missing_ok=True)
    log.info("%s is written", file)


def show_bests(found: "list[Best]") -> None:
    """Tuned recipes as a table."""
    rows = [
        {
            "recipe": each.recipe,
            "night": each.night,
            "trials": each.num_trials,
            "given up": each.num_pruned,
            "failed": each.num_failed,
            "minutes": f"{each.minutes:.1f}",
            "as it was": each.as_it_was,
            "best": each.best,
            "fields": ", ".join(f"{name}: {value}" for name, value in each.fields.items()),
        }
        for each in found
    ]
    write_table(rows, tuple(rows[0]))
    write_text(f"{', '.join(sorted({each.metric for each in found}))} on the day before the night")


@app.command()
def recommend(
    site: SiteOption,
    item: Annotated[list[str] | None, typer.Option(help="An item id as in the log, oldest first; repeat it.")] = None,
    at: Annotated[
        list[str] | None, typer.Option(help="When it happened, like 2026-03-01T12:30:00Z: once for each --item.")
    ] = None,
    event_type: Annotated[
        list[str] | None, typer.Option(help="What was done, like view: once for each --item, or once for all.")
    ] = None,
    user: Annotated[str, typer.Option(help="A user id as in the log: what they did before is the history.")] = "",
    items_from: Annotated[
        Path | None,
        typer.Option(help='JSON Lines, a line a session: ["A", "B"], or {"items": [{"item_id": "A"}], "user_id": …}.'),
    ] = None,
    channel: Annotated[str, typer.Option(help="By the rules of this channel; else whatever the model says.")] = "",
    top: Annotated[int, typer.Option(min=1, help="Length of the list.")] = 10,
    explain: Annotated[bool, typer.Option(help="Say which events each item comes from, and what is expected.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line a session instead of a table.")] = False,
) -> None:
    """Score sessions of raw item ids; unknown items and users are counted."""
    from pipeline.publish import open_store
    from serving_export.loaded import load
    from serving_export.recommend import recommend, with_history, with_titles
    from serving_export.request import Request

    the_site, default = read_site(site), Request(channel=channel or None, top=top, explain=explain)
    requests = read_requests(items_from, the_site.time_zone, default) if items_from else []
    if item or user:
        requests.append(request_of(item or [], at or [], event_type or [], user, the_site.time_zone, default))
    if not requests:
        raise ConfigurationError("give a session: --item A --item B, or --items-from FILE.jsonl, or a user: --user U")
    store = open_store(the_site, must_exist=True)
    loaded = load(the_site, store)
    for answer in recommend(loaded, [with_history(loaded, store, request) for request in requests]):
        answer["items"] = with_titles(answer["items"], loaded.assortment.items)
        write_json({"step": "recommend", "site": the_site.name, **answer}) if as_json else show_answer(answer)


def request_of(
    items: list[str], times: list[str], kinds: list[str], user: str, time_zone: str, default: "Request"
) -> "Request":
    """The session that options tell."""
    from serving_export.request import read_request

    for name, told, fits in (("--at", times, [0, len(items)]), ("--event-type", kinds, [0, 1, len(items)])):
        if len(told) not in fits:
            raise ConfigurationError(f"{name} is given {len(told)} times for {len(items)} items; give it once for each")
    kinds = kinds * len(items) if len(kinds) == 1 else kinds
    events = [
        {"item_id": item, "occurred_at": when, "event_type": kind}
        for item, when, kind in zip_longest(items, times, kinds)
    ]
    try:
        return read_request({"items": events, "user_id": user or None}, time_zone, default)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error


def read_requests(path: Path, time_zone: str, default: "Request") -> "list[Request]":
    """Sessions of a JSON Lines file."""
    from serving_export.request import read_request

    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
    requests = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            requests.append(read_request(json.loads(line), time_zone, default))
        except ValueError as error:
            raise ConfigurationError(
                f'{path}, line {number}: {line[:80]!r} is no session; write ["a", "b"] or '
                f'{{"items": [{{"item_id": "a"}}]}} ({error})'
            ) from error
    return requests


def show_answer(answer: dict[str, Any]) -> None:
    """A list as a table, with where it comes from."""
    unknown = f"{answer['num_unknown']} of {answer['num_items']} items are unknown"
    history = f"; {answer['num_history']} earlier events of the user" if answer["num_history"] else ""
    left_out = f"; the oldest {answer['num_left_out']} events are not read" if answer["num_left_out"] else ""
    if answer["source"] == "model":
        write_text(f"model version {answer['model_version']}; {unknown}{history}{left_out}")
    else:
        write_text(f"popular items, because {unknown} and nothing is left to score")
    items = [item | {"because": in_words(item)} if "reasons" in item else item for item in answer["items"]]
    reasons = ("because",) if any("reasons" in item for item in items) else ()
    write_table(items, ("rank", "item_id", "score", "title", "category", *reasons))
    if reasons:
        write_text("because: what drew the item in, and what the score would lose without an event, the most first")
    for name, classes in answer.get("intents", {}).items():
        told = ", ".join(f"{each['value']} {each['probability']:.0%}" for each in classes[:MOST_REASONS])
        write_text(f"intent: {name} {told}")
    if weights := answer.get("intent_weights"):
        told = ", ".join(f"{name} {weight:.2f}" for name, weight in weights.items())
        write_text(f"weights of the intents (a diagnostic, they are no causes): {told}")


def in_words(item: dict[str, Any]) -> str:
    """What drew an item in, and the influence of the events that do most, in a line."""
    drawn = f"{item['because']['text'].removeprefix('because ')}: " if "because" in item else ""
    influence = (
        f"{reason['item_id']}{' (earlier)' if reason['of'] == 'history' else ''} {reason['influence']:+.2f}"
        for reason in item["reasons"][:MOST_REASONS]
    )
    return drawn + ", ".join(influence)


@app.command()
def serve(
    site: SiteOption,
    host: Annotated[str, typer.Option(help="Loopback unless told otherwise; there is no login.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8600,
) -> None:
    """Answer over HTTP, for sessions in progress, from the served model and the last release; see docs/online.md."""
    for name, value in SERVE_WITH.items():
        os.environ.setdefault(name, value)
    from serving_export.online.server import serve

    serve(read_site(site), host, port)


@app.command()
def read(
    site: SiteOption,
    user: UserOption = "",
    session: SessionOption = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line instead of a table.")] = False,
) -> None:
    """Read the exported lists of a user, or of an anonymous visitor."""
    from pipeline.catalogue import latest_items
    from pipeline.privacy import named_visitor, user_id_secret
    from pipeline.publish import open_store
    from serving_export.reader import Recommendations
    from serving_export.recommend import with_titles

    the_site = read_site(site)
    named_visitor(the_site, user, session)
    store = open_store(the_site, must_exist=True)
    try:
        secret = (user_id_secret(the_site) or b"").decode()
        lists = Recommendations(store.root, when_stale="ignore", secret=secret)
        facts, rows = lists.facts, lists.session(session) if session else lists.user(user)
    except LookupError as error:
        raise ConfigurationError(str(error)) from error
    items = with_titles(
        rows.select("channel", "rank", "item_id", "score", "source", "because").to_dicts(),
        latest_items(store, date.max),
    )
    asked = {"session_id": session} if session else {"user_id": user}
    if as_json:
        write_json({"step": "read", "site": the_site.name, **asked, **facts, "items": items})
        return
    if not items:
        within = format_duration(the_site.export.active_within)
        write_text(f"{(session or user)!r} has no list: no event within {within}; show `popular_items`")
        return
    expired = " (expired)" if facts["is_expired"] else ""
    write_text(
        f"made {facts['generated_at']} by model version {facts['model_version']}, "
        f"data through {facts['data_through']}, valid until {facts['valid_until']}{expired}"
    )
    write_table(items, ("channel", "rank", "item_id", "score", "source", "because", "title", "category"))


@app.command(context_settings={"allow_extra_args": True})
def send(
    context: typer.Context,
    site: SiteOption,
    to: Annotated[str, typer.Option(help="A .parquet, .jsonl or .csv file, redis://… or postgresql://…")] = "",
    to_from: Annotated[str, typer.Option("--to-from", help="An environment variable that holds the address.")] = "",
    channel: Annotated[str, typer.Option(help="This channel only.")] = "",
    form: Annotated[ListForm, typer.Option(help="rows, or nested: one row a user.")] = ListForm.rows,
    version: Annotated[int | None, typer.Option(help="A version that `history` lists; else the newest.")] = None,
    guard_formulas: GuardOption = False,
) -> None:
    """Send the published lists to a file, Redis or PostgreSQL; readers there see the former ones until all is there."""
    from pipeline.publish import open_store
    from serving_export.addresses import read_address
    from serving_export.send import send

    if context.args:  # parts of an address without quotes, which the usual message would repeat
        raise ConfigurationError("send takes options only; put quotes around an address with spaces or &")
    the_site = read_site(site)
    started = time.monotonic()
    address = read_address(to, to_from)
    store = open_store(the_site, must_exist=True)
    told = send(the_site, store, address, channel or None, form.value, version, guard_formulas=guard_formulas)
    write_json({"step": "send", "site": the_site.name, "seconds": round(time.monotonic() - started, 2), **told})


@app.command()
def report(site: SiteOption, day: DateOption = "", first: FromOption = "", last: ToOption = "") -> None:
    """Write the HTML page of a day: data, models, lists, ten users; it opens offline."""
    from pipeline.publish import open_store
    from serving_export.report import write_report

    the_site = read_site(site)
    for each in read_days(day, first, last):
        page = write_report(the_site, open_store(the_site, must_exist=True), each)
        write_json({"step": "report", "site": the_site.name, "date": each.isoformat(), "page": str(page)})


@app.command()
def history(
    site: SiteOption,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line a release instead of a table.")] = False,
) -> None:
    """List the releases, newest first: model, data day, counts, metrics, and which can be restored."""
    from pipeline.publish import open_store
    from serving_export.history import as_row, releases

    the_site = read_site(site)
    found = releases(open_store(the_site, must_exist=True))
    for release in found if as_json else []:
        write_json({"site": the_site.name, **release})
    if as_json:
        return
    rows = [as_row(release) for release in found]
    write_table(rows, tuple(dict.fromkeys(name for row in rows for name in row))) if rows else write_text(
        "no release yet"
    )


@app.command()
def lineage(
    site: SiteOption,
    user: UserOption = "",
    session: SessionOption = "",
    channel: Annotated[str, typer.Option(help="This channel only.")] = "",
    version: Annotated[int | None, typer.Option(help="A version that `history` lists; else the newest.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line instead of a table.")] = False,
) -> None:
    """Trace a visitor's lists back to release, model, runs, days and their verdicts, raw files, code and site file."""
    from pipeline.privacy import named_visitor
    from pipeline.publish import open_store
    from serving_export.lineage import lineage
    from serving_export.lineage_text import as_text

    the_site = read_site(site)
    visitor = named_visitor(the_site, user, session)
    told = lineage(the_site, open_store(the_site, must_exist=True), visitor, channel or None, version)
    write_json({"step": "lineage", **told}) if as_json else write_text(as_text(told))


@rollback_app.command("recommendations")
def rollback_recommendations_command(site: SiteOption, to: ToVersionOption = None) -> None:
    """Let readers see the release before the newest, or that of a version; can be run again."""
    from pipeline.publish import open_store
    from serving_export.rollback import rollback_recommendations

    the_site = read_site(site)
    with lock(the_site, "rollback", "recommendations"):  # forget waits for it
        facts = rollback_recommendations(open_store(the_site, must_exist=True), to)
    write_json({"step": "rollback", "what": "recommendations", "site": the_site.name, **facts})


@rollback_app.command("model")
def rollback_model_command(site: SiteOption, to: ToVersionOption = None) -> None:
    """Let the champion before the newest, or that of a version, stand and serve; can be run again."""
    from training.rollback import rollback_model

    the_site = read_site(site)
    write_json({"step": "rollback", "what": "model", "site": the_site.name, **rollback_model(the_site, to)})


@app.command()
def rejected(
    site: SiteOption,
    day: Annotated[str, typer.Option("--date", help="The day that the rows are booked on: as a rule their file's.")],
    reason: Annotated[str, typer.Option(help="Rows of this reason only.")] = "",
    form: Annotated[Form, typer.Option("--as", help="table; or the rows as delivered, to be mended.")] = Form.table,
    guard_formulas: GuardOption = False,
) -> None:
    """Show the rows of a day that became no event, or hand them back for repair."""
    from pipeline.publish import open_store
    from pipeline.quarantine import as_json_lines, as_separated, raw_rows, rejected_rows

    if guard_formulas and form not in (Form.csv, Form.tsv):
        raise ConfigurationError("--guard-formulas goes with --as csv and --as tsv")
    the_site = read_site(site)
    store = open_store(the_site, must_exist=True)
    rows = rejected_rows(store, read_day(day), reason or None)
    if form is Form.table:
        show_rejected(rows)
        return
    found, num_missing = raw_rows(the_site, store, rows)
    separator = "\t" if form is Form.tsv else ","
    separated = as_separated(found, separator, guard_formulas=guard_formulas)
    for line in as_json_lines(found) if form is Form.jsonl else separated:
        write_text(line)
    if num_missing:
        log.warning("%d rows are left out: their raw file is gone or was changed since", num_missing)


def show_rejected(rows: "pl.DataFrame") -> None:
    """Counts by reason, and the first rows of each."""
    counts = rows.group_by("reason").len("rows").sort("rows", "reason", descending=[True, False])
    if counts.is_empty():
        write_text("no row was rejected")
        return
    write_table(counts.to_dicts(), ("reason", "rows"))
    some = rows.group_by("reason", maintain_order=True).head(max(1, MOST_ROWS // counts.height)).sort("reason")
    shown = [
        row | {"file": row["source_file"].rsplit("/", 1)[-1], "fields": (row["fields"] or "")[:MOST_LETTERS]}
        for row in some.iter_rows(named=True)
    ]
    write_text("")
    write_table(shown, ("reason", "file", "record", "detail", "fields"))
    if rows.height > len(shown):
        write_text(f"… and {rows.height - len(shown)} more; --as jsonl prints all of them")


@app.command("days")
def days_command(
    site: SiteOption,
    first: FromOption = "",
    last: ToOption = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line a day instead of a table.")] = False,
) -> None:
    """Show the days of the store: files, counts, verdicts, and which step must run again."""
    from pipeline.day_report import day_report
    from pipeline.publish import open_store

    the_site = read_site(site)
    bounds = (date.min, date.max)
    if first or last:
        if not (first and last):
            raise ConfigurationError("give --from A and --to B, or neither for all days")
        bounds = read_range(first, last)
    report = day_report(open_store(the_site, must_exist=True), the_site.sessions, *bounds).to_dicts()
    for row in report if as_json else []:
        write_json(row)
    if not as_json:
        write_table(report, tuple(report[0])) if report else write_text("the store knows no day in that range")


@app.command()
def compact(site: SiteOption) -> None:
    """Put the small files of each partition together; readers see the same rows."""
    from pipeline import upkeep
    from pipeline.publish import open_store

    the_site = read_site(site)
    tables = upkeep.compact(open_store(the_site, must_exist=True), store_tables(the_site))
    write_json({"step": "compact", "site": the_site.name, "tables": tables})


@app.command()
def vacuum(
    site: SiteOption,
    day: Annotated[
        str,
        typer.Option("--date", help="Also remove what belongs to nights longer than keep_runs_for before this day."),
    ] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
) -> None:
    """Remove files that no version within keep_versions_for needs, and what old nights left."""
    from pipeline import upkeep
    from pipeline.publish import open_store

    the_site = read_site(site)
    store = open_store(the_site, must_exist=True)
    old: dict[str, Any] = {}
    if day:
        from serving_export.prune import prune

        old = {"date": day, "old": prune(the_site, store, read_day(day), dry_run=dry_run)}
    tables = upkeep.vacuum(store, dry_run=dry_run)
    total = {name: sum(table[name] for table in tables) for name in ("files", "bytes")}
    kept = format_duration(the_site.keep_versions_for)
    write_json(
        {
            "step": "vacuum",
            "site": the_site.name,
            **old,
            "dry_run": dry_run,
            "kept_for": kept,
            **total,
            "tables": tables,
        }
    )


@app.command()
def forget(
    site: SiteOption,
    user: Annotated[list[str] | None, typer.Option(help="The id of a user, as in the log; repeat it.")] = None,
    users: Annotated[Path | None, typer.Option(help="A file of user ids, one a line.")] = None,
    session: Annotated[
        list[str] | None,
        typer.Option(help="The session id, as in the log, of an anonymous visitor; repeat it."),
    ] = None,
) -> None:
    """Take users and anonymous visitors out of every table, and keep later ingests from bringing them back."""
    from features.tables import SEQUENCES
    from pipeline.forget import forget
    from pipeline.privacy import named_visitors
    from pipeline.publish import open_store
    from serving_export.tables import RECOMMENDATIONS, SESSION_INTENTS, TRIGGERS, USER_STATES

    the_site = read_site(site)
    refuse_while_running(the_site)
    listed = read_ids(users) if users else []
    visitors = named_visitors(the_site, [*(user or []), *listed], session or [])
    store = open_store(the_site, must_exist=True)
    of_lists = [(RECOMMENDATIONS, "user_id"), (TRIGGERS, "user_id"), (SESSION_INTENTS, "user_id")]
    facts = forget(the_site, store, visitors, [(SEQUENCES, "visitor"), *of_lists, (USER_STATES, "visitor")])
    if not any(facts["removed"].values()):
        log.warning("no table holds rows of them now; an id must be the one of the log, letter by letter")
    log.info(
        "raw logs, backups, sent copies, MLflow's artifacts and models that were trained before are out of reach "
        "(docs/runbook.md); earlier versions of the tables are gone after the first `nightjar vacuum` on or after %s",
        facts["gone_after"],
    )
    write_json({"step": "forget", "site": the_site.name, "visitors": len(visitors), **facts})


def read_ids(path: Path) -> list[str]:
    """The ids of a file, one a line; blank lines are none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(f"cannot read {path}: {error}. Give a text file in UTF-8 with an id a line") from error
    return [line for line in lines if line.strip()]


def store_tables(site: Site) -> "list[Table]":
    """The tables with partitions."""
    from features.tables import SEQUENCES, VOCABULARY
    from pipeline.tables import DAYS, FILES, ITEMS, OPEN_SESSIONS, REJECTED, events_table, sessions_table
    from serving_export.tables import DRIFT, LIST_CHECKS, RECOMMENDATIONS, SESSION_INTENTS, TRIGGERS, USER_STATES

    of_site = [events_table(site.source.context), sessions_table(site.source.context)]
    of_lists = [RECOMMENDATIONS, TRIGGERS, SESSION_INTENTS, LIST_CHECKS, DRIFT, USER_STATES]
    return [*of_site, REJECTED, FILES, DAYS, ITEMS, OPEN_SESSIONS, VOCABULARY, SEQUENCES, *of_lists]


@app.command()
def simulate(site: SiteOption, first: FromOption, last: ToOption, seed: int = 1) -> None:
    """Write the raw logs of a simulated shop where the site file looks for them."""
    from pipeline.simulate import Shop, simulate

    the_site = read_site(site)
    try:
        report = simulate(the_site, read_days("", first, last), Shop(seed=seed))
    except OSError as error:
        raise kind_of(error)(
            f"cannot write {error.filename or the_site.home}: {reason_of(error)}. Is NIGHTJAR_HOME writable?"
        ) from error
    write_json({"step": "simulate", "site": the_site.name, "days": len(report.days)})


def read_site(path: Path) -> Site:
    """The site file, with paths that hang from NIGHTJAR_HOME."""
    global store_at_work
    site = load_site(path, Site, home())
    store_at_work = site.resolve(site.store).rstrip("/")
    return site


def home() -> Path:
    """What relative paths hang from."""
    return Path(os.environ.get("NIGHTJAR_HOME") or ".")


def read_days(day: str, first: str, last: str) -> list[date]:
    """The days that --date, or --from and --to, name."""
    if bool(day) == bool(first or last) or bool(first) != bool(last):
        raise ConfigurationError("give --date D, or --from A and --to B")
    if day:
        return [read_day(day)]
    days = days_between(*read_range(first, last))
    if len(days) > MOST_DAYS:
        raise ConfigurationError(
            f"--from {first} to --to {last} are {len(days):,} days; give at most {MOST_DAYS:,} at once"
        )
    return days


def read_range(first: str, last: str) -> tuple[date, date]:
    """The days that --from and --to name, in this order."""
    bounds = read_day(first), read_day(last)
    if bounds[0] > bounds[1]:
        raise ConfigurationError(f"--from {first} is after --to {last}")
    return bounds


def read_day(text: str) -> date:
    """A date, and nothing else: a scheduler without a day says `None`."""
    if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
        try:
            day = date.fromisoformat(text)
        except ValueError:
            pass
        else:
            if FIRST_DAY <= day <= LAST_DAY:
                return day
            raise ConfigurationError(f"{text} is out of range; nightjar takes days from {FIRST_DAY} to {LAST_DAY}")
    raise ConfigurationError(f"{text!r} is no date; write YYYY-MM-DD, like 2026-03-01")


def run_step(name: str, site: Site, day: date, step: Step, label: str = "") -> None:
    """One step of one day under its lock, and its JSON line."""
    from pipeline.publish import open_store

    started = time.monotonic()
    with lock(site, f"{name}{label}", day):
        result = step(site, open_store(site, must_exist=name != "ingest"), day)
    facts = {"step": name, "site": site.name, "date": day.isoformat(), "seconds": round(time.monotonic() - started, 2)}
    write_json(facts | result)


def run_train(
    site: Site, day: date, recipe: str, seeds: tuple[int, ...] | None = None, purpose: Purpose = Purpose.nightly
) -> None:
    """Train one recipe as a step, for each of the seeds; by default those of the site."""
    for seed in site.training.seeds_of(recipe) if seeds is None else seeds:
        step = partial(train, recipe=recipe, seed=seed, purpose=purpose)
        run_step("train", site, day, step, label=f"-{recipe}-{seed}-{purpose.value}")


def lock(site: Site, step: str, what: date | str) -> AbstractContextManager[object]:
    """Keep a second runner of the same work out, on a day or a table; the system releases it when the process dies."""
    from filelock import FileLock, Timeout

    folder = site.home / "locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = FileLock(folder / f"{site.name}-{re.sub('[^a-z0-9_-]', '_', step)}-{what}.lock", timeout=0)
        return held.acquire()
    except Timeout as error:
        raise RetryableError(f"{step} of {site.name} for {what} is already running; wait for it to end") from error
    except OSError as error:
        raise kind_of(error)(
            f"cannot write {folder}: {reason_of(error)}. Make room, or set NIGHTJAR_HOME to a writable folder"
        ) from error


def refuse_while_running(site: Site) -> None:
    """Raise RetryableError if a step of the site is at work on this machine: it may hold rows that it has read."""
    from filelock import FileLock, Timeout

    for file in sorted((site.home / "locks").glob(f"{site.name}-*.lock")):
        try:
            FileLock(file, timeout=0).acquire().lock.release()
        except Timeout as error:
            raise RetryableError(f"{file.stem} is running; forget users when no step is at work") from error


STDOUT = 1
INTERRUPTED = 130
store_at_work: str | None = None
"""The root of the store that the command's site file names: a damaged file is looked for there."""


def write_json(facts: dict[str, Any]) -> None:
    """One line on the real stdout."""
    write_text(json.dumps(facts, default=str))


def write_text(text: str) -> None:
    """A line of the result on the real stdout."""
    try:
        os.write(STDOUT, (text + "\n").encode(errors="backslashreplace"))
    except BrokenPipeError:
        raise
    except OSError as error:
        raise RetryableError(
            f"cannot write to standard output: {reason_of(error)}. What the command did before that stands"
        ) from error


def write_table(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    """Aligned rows on the real stdout; columns that are empty everywhere are left out."""
    from pipeline.terminal import align

    shown = [name for name in columns if any(row.get(name) is not None for row in rows)]
    cells = [[told(row.get(name)) for name in shown] for row in rows]
    write_text(align([shown, *cells], left=len(shown)))


def told(cell: Any) -> str:
    """A cell of a table."""
    return "" if cell is None else f"{cell:.4f}" if isinstance(cell, float) else str(cell)


def keep_stdout_for_results() -> None:
    """Send everything that libraries print to stderr, also from C; results keep the real stdout."""
    global STDOUT
    sys.stdout.flush()
    STDOUT = os.dup(1)
    os.dup2(2, 1)


def die_with_parent() -> None:
    """End when the process that started us does, if NIGHTJAR_DIE_WITH_PARENT is set."""
    if os.environ.get("NIGHTJAR_DIE_WITH_PARENT"):
        end_with_parent()
        if os.getppid() == 1:
            sys.exit("the parent process is gone")


class WithoutPasswords(logging.Formatter):
    """A line of the log, ours or a library's, without the password of any address in it."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, and the traceback of an exception with it."""
        return redacted(super().format(record))


def main() -> None:
    """Run a command; a known fault is one sentence and its exit code."""
    die_with_parent()
    if "--help" not in sys.argv:
        keep_stdout_for_results()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(WithoutPasswords("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("nightjar").setLevel(logging.INFO)
    try:
        app()
    except BrokenPipeError:  # whoever read our results has seen enough
        sys.exit(0)
    except NightjarError as error:
        give_up(error)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            say_interrupted()
        aborted = getattr(stop.__context__, "__cause__", None)  # typer takes an EOFError for the end of a dialogue
        if isinstance(aborted, EOFError):
            explain_and_give_up(aborted)
        raise
    except KeyboardInterrupt:
        say_interrupted()
        sys.exit(INTERRUPTED)
    except Exception as error:
        explain_and_give_up(error)
    except BaseException as error:
        from pipeline.unexpected import is_panic

        if not is_panic(error):
            raise
        explain_and_give_up(error)


def give_up(error: NightjarError) -> NoReturn:
    """Say a sentence and end with its exit code."""
    sys.stderr.write(f"nightjar: {redacted(str(error))}\n")
    sys.exit(error.exit_code)


def explain_and_give_up(error: BaseException) -> NoReturn:
    """Say of an exception that nobody expected what it means, or where its traceback lies."""
    from pipeline.unexpected import explain, is_panic

    fault = explain(error, home(), store_at_work)
    if is_panic(error):  # threads of Rust are broken now, and would abort the process at its normal end
        sys.stderr.write(f"nightjar: {redacted(str(fault))}\n")
        sys.stderr.flush()
        os._exit(fault.exit_code)
    give_up(fault)


def say_interrupted() -> None:
    """Ctrl-C needs no traceback either."""
    sys.stderr.write(
        "nightjar: interrupted; readers keep what was published before, and the command can be run again\n"
    )
