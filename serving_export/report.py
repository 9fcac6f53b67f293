"""The report of a day for people: one HTML page that opens offline.

Reads   `days`, `rejected`, the night's runs in MLflow, the day's release, `list_checks` and `drift`, `events`, `items`
Writes  reports/report-SITE-DAY.html

What a day does not have is said, not left out: a page can be written after any step. It shows ten users' histories, so
`forget` removes the pages of a site.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
from markupsafe import Markup

from features.histories import active_events
from pipeline.catalogue import latest_items
from pipeline.checkpoint import allowed_in_words, show_number
from pipeline.data_docs import volume_chart, with_status
from pipeline.dates import ONE_DAY
from pipeline.days import passed_days, read_days
from pipeline.errors import ConfigurationError
from pipeline.forget import report_pages
from pipeline.ids import sha256
from pipeline.measures import trailing_days, usual_volume
from pipeline.pages import render, write_page
from pipeline.publish import Store
from pipeline.tables import REJECTED, events_table
from serving_export.drift import MEASURES
from serving_export.drift_picture import drift_picture
from serving_export.history import releases
from serving_export.quality import RULES
from serving_export.reader import Recommendations
from serving_export.report_pictures import popularity_of_lists, share_of_items
from serving_export.tables import DRIFT, LIST_CHECKS
from training import compare
from training.gate import GUARDS
from training.settings import TrainingSite
from training.tracking import Tracking

PAGE = Path(__file__).parent / "report.html"
NUM_DRIFT_DAYS = 28
NUM_DAYS, NUM_USERS, NUM_EVENTS, NUM_ITEMS = 7, 10, 8, 8
SHOWN_ITEMS = ("coverage", "gini", "mean_popularity", "novelty")
"""What lists show, beside hits: names of metrics."""
FIGURES = {
    "users": "users",
    "rows": "rows",
    "mean_length": "mean length",
    "fallback_share": "popular items",
    "cold_share": "cold items",
    "items": "different items",
    "coverage": "coverage",
    "gini": "Gini",
}


def write_report(site: TrainingSite, store: Store, day: date) -> Path:
    """Write the page of a day; return where it lies. ConfigurationError for a day that the store does not know."""
    store = store.pinned()
    days = with_status(read_days(store))
    if days.filter(pl.col("event_date") == day).is_empty():
        raise ConfigurationError(f"{site.name}: the store knows nothing of {day}. Run `nightjar ingest` for it first")
    lists = release_of(store, day)
    page = render(
        PAGE,
        title=f"{site.name}, {day}",
        release=None if lists is None else lists.facts,
        **of_data(store, days, day),
        **of_models(site, day),
        **of_lists(site, store, lists, day),
        **of_drift(store, day),
        users=[] if lists is None else some_users(site, store, lists, day),
    )
    return write_page(report_pages(site) / f"report-{site.name}-{day}.html", page)


def release_of(store: Store, day: date) -> Recommendations | None:
    """The newest release of a day that can still be read."""
    found = [r for r in releases(store) if r["data_through"] == str(day) and r["is_restorable"]]
    return Recommendations(store.root, found[0]["table_version"], when_stale="ignore") if found else None


def of_data(store: Store, days: pl.DataFrame, day: date) -> dict[str, Any]:
    """Counts of the last days and what was rejected of this one."""
    shown = days.filter(pl.col("event_date").is_between(day - (NUM_DAYS - 1) * ONE_DAY, day)).sort("event_date")
    rejected = store.scan(REJECTED).filter(pl.col("event_date") == day)
    reasons = rejected.group_by("reason").agg(pl.len(), pl.col("detail").drop_nulls().min()).collect()
    return {
        "days": shown.sort("event_date", descending=True).to_dicts(),
        "volume": Markup(volume_chart(days, day, usual_volume(trailing_days(store, day)))),
        "reasons": reasons.sort("len", "reason", descending=[True, False]).to_dicts(),
    }


def of_models(site: TrainingSite, day: date) -> dict[str, Any]:
    """The models of the night beside each other, as `nightjar compare` shows them, and what their lists were like."""
    tracking = Tracking(site)
    try:
        rows = compare.compare(site, tracking, day)
    except ConfigurationError:  # nothing was trained for this day
        return {"models": None}
    headings, lines = compare.cells(rows, site)
    names = list_metrics(rows, max(site.training.metric_ks))
    return {
        "models": {"headings": headings, "rows": lines},
        **of_gate(tracking.night_run(day).data.tags),
        "list_metrics": {
            "headings": ["model", *names],
            "rows": [[row.name, *(compare.cell(row, name) for name in names)] for row in rows],
        },
        "model_pictures": in_page(compare.draw(rows, site)),
    }


def of_gate(tags: Mapping[str, str]) -> dict[str, Any]:
    """What the gate decided, why, and each guard with what was found and allowed."""
    guards = json.loads(tags.get("gate.guards") or "[]")
    return {
        "gate": tags.get("gate.reason", ""),
        "guards": [check_row({"rule": guard["name"], **guard}, GUARDS) for guard in guards],
    }


def list_metrics(rows: Sequence[compare.Compared], k: int) -> list[str]:
    """Metrics of whole lists at a length, of any model."""
    known = dict.fromkeys(name for row in rows for name in row.numbers)
    wanted = [f"list/any_recall_at_{k}", *(f"all/{name}_at_{k}" for name in SHOWN_ITEMS)]
    return [name for name in wanted if name in known]


def of_lists(site: TrainingSite, store: Store, lists: Recommendations | None, day: date) -> dict[str, Any]:
    """List QA of the day, the release's figures, and pictures of what is listed."""
    checks = store.scan(LIST_CHECKS).filter(pl.col("data_through") == day).collect()
    order = {rule: place for place, rule in enumerate(RULES)}
    told = [check_row(row) for row in checks.iter_rows(named=True)]
    found: dict[str, Any] = {"checks": sorted(told, key=lambda row: (row["channel"], order.get(row["rule"], 99)))}
    if lists is None:
        return found | {"figures": None, "list_pictures": {}}
    quality = lists.facts["quality"] or {}
    rows = [
        [name, *(show_number(figures.get(key, 0.0)) for key in FIGURES)] for name, figures in sorted(quality.items())
    ]
    days = passed_days(store, day - (NUM_DAYS - 1) * ONE_DAY, day)
    events = store.scan(events_table(site.source.context)).filter(pl.col("event_date").is_in(days))
    popularity = events.group_by("item_id").agg(events=pl.len()).collect()
    listed = lists.rows().group_by("channel", "item_id").agg(lists=pl.len()).collect()
    items = latest_items(store, day).select("item_id")
    pictures = {
        "How many items fill the lists": share_of_items(listed, popularity, items.height),
        "Popular and rare items in lists": popularity_of_lists(listed, popularity),
    }
    return found | {
        "figures": {"headings": ["channel", *FIGURES.values()], "rows": rows},
        "list_pictures": in_page(pictures),
    }


def of_drift(store: Store, day: date) -> dict[str, Any]:
    """How the day differed from the days before it, and how that went."""
    rows = store.scan(DRIFT).filter(pl.col("event_date") <= day).collect()
    order = {measure: place for place, measure in enumerate(MEASURES)}
    today = sorted(
        rows.filter(pl.col("event_date") == day).iter_rows(named=True),
        key=lambda row: (order.get(row["measure"], 99), row["part"]),
    )
    first = day - (NUM_DRIFT_DAYS - 1) * ONE_DAY
    pictures = {"Drift over the last days": drift_picture(rows, first, day)} if today else {}
    return {"drift": [drift_row(row) for row in today], "drift_picture": in_page(pictures)}


def drift_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A measure of drift for people."""
    numbers = {name: "" if row[name] is None else show_number(row[name]) for name in ("value", "usual")}
    told = {"what": MEASURES.get(row["measure"], ""), "allowed": allowed_in_words(row["low"], row["high"])}
    return dict(row) | numbers | told | {"is_measured": row["value"] is not None}


def check_row(row: Mapping[str, Any], promises: Mapping[str, str] = RULES) -> dict[str, Any]:
    """A verdict of list QA, or a guard of the gate, for people."""
    bound = allowed_in_words(row["low"], row["high"])
    return dict(row) | {"promise": promises.get(row["rule"], ""), "allowed": bound, "found": show_number(row["value"])}


def in_page(pictures: Mapping[str, bytes]) -> dict[str, str]:
    """Pictures as text that a page can hold."""
    return {name: base64.b64encode(content).decode() for name, content in pictures.items()}


def some_users(site: TrainingSite, store: Store, lists: Recommendations, day: date) -> list[dict[str, Any]]:
    """Ten users with what they did last and what each channel shows them, with titles; always the same ten."""
    events = active_events(site, store, day, site.export.active_within, 0).select(
        "user_id", "item_id", "event_type", "occurred_at"
    )
    lengths = events.group_by("user_id").agg(pl.len()).filter(pl.col("len") >= NUM_EVENTS // 2).collect()
    chosen = lengths.sort(sha256(pl.col("user_id"))).head(NUM_USERS)["user_id"]
    histories = events.filter(pl.col("user_id").is_in(chosen.implode())).collect()
    shown = lists.rows().filter(pl.col("user_id").is_in(chosen.implode()), pl.col("rank") <= NUM_ITEMS).collect()
    titles = latest_items(store, day).unique("item_id", keep="last").select("item_id", "title", "category")
    because = titles.select(because="item_id", because_title=pl.coalesce("title", "item_id"))
    history = histories.join(titles, on="item_id", how="left").sort("occurred_at", descending=True)
    shown = shown.join(titles, on="item_id", how="left").join(because, on="because", how="left")
    return [
        {
            "user_id": user,
            "events": history.filter(pl.col("user_id") == user).head(NUM_EVENTS).to_dicts(),
            "lists": {
                str(name): rows.sort("rank").to_dicts()
                for (name,), rows in shown.filter(pl.col("user_id") == user)
                .sort("channel")
                .partition_by("channel", as_dict=True, maintain_order=True)
                .items()
            },
        }
        for user in chosen
    ]
