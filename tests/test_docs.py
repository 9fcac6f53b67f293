"""The pages say what the code does: tables, columns, reasons and commands are all named."""

import re
from pathlib import Path

import pytest

from features.tables import SEQUENCES, VOCABULARY
from pipeline import tables
from pipeline.settings import REASONS
from serving_export.drift import MEASURES
from serving_export.quality import RULES
from serving_export.settings import Drift
from serving_export.tables import (
    DRIFT,
    LIST_CHECKS,
    POPULAR_ITEMS,
    RECOMMENDATIONS,
    RELATED_ITEMS,
    TRIGGERS,
    USER_STATES,
)
from training.export_settings import Checks
from training.gate import GUARDS
from training.settings import Gate

ROOT = Path(__file__).parent.parent
DECLARED = [
    tables.SITE,
    tables.FORGOTTEN,
    tables.FILES,
    tables.DAYS,
    tables.REJECTED,
    tables.OPEN_SESSIONS,
    tables.ITEMS,
    tables.events_table([]),
    tables.sessions_table([]),
    VOCABULARY,
    SEQUENCES,
    RECOMMENDATIONS,
    RELATED_ITEMS,
    POPULAR_ITEMS,
    TRIGGERS,
    LIST_CHECKS,
    DRIFT,
    USER_STATES,
]


@pytest.mark.parametrize("table", DECLARED, ids=lambda table: table.name)
def test_every_table_and_column_is_described(table):
    text = (ROOT / "docs" / "tables.md").read_text()
    start = text.index(f"**`{table.name}`**")
    end = text.find("\n**`", start + 1)
    described = text[start : end if end > 0 else None]
    assert [name for name in table.columns if not re.search(rf"\b{name}\b", described)] == []


def test_readers_are_told_the_types_and_sources_of_recommendations():
    text = (ROOT / "docs" / "tables.md").read_text()
    described = text[text.index("**`recommendations`**") : text.index("**`related_items`**")]
    told = dict(re.findall(r"^\| (\w+) \| (\w+) \|", described, re.MULTILINE))
    assert told == {"column": "type"} | {name: str(kind) for name, kind in RECOMMENDATIONS.columns.items()}
    assert {"rule", "model", "popular"} <= set(re.findall(r"`(\w+)`", described))


def test_every_reason_to_reject_is_described():
    told = (ROOT / "docs" / "tables.md").read_text()
    assert [reason for reason in REASONS if f"| {reason} |" not in told] == []


def test_every_rule_of_list_qa_is_described_with_its_limit():
    told = (ROOT / "docs" / "list-qa.md").read_text()
    assert [rule for rule in RULES if f"| {rule} |" not in told] == []
    limits = Checks().model_dump()
    assert [
        f"{rule} {limit}"
        for rule, limit in limits.items()
        if not re.search(rf"\| {rule} \|.*\| [^|]*\b{limit}\b", told)
    ] == []


def test_every_guard_and_every_measure_of_drift_is_described_with_its_limit():
    gate, drift = ((ROOT / "docs" / page).read_text() for page in ("evaluation.md", "drift.md"))
    assert [name for name in GUARDS if f"| `{name}` |" not in gate] == []
    assert [name for name in MEASURES if f"| `{name}` |" not in drift] == []
    assert [
        f"{name}: {limit}" for name, limit in Drift().model_dump().items() if f"  {name}: {limit}" not in drift
    ] == []
    assert "".join(f"{name}: {value:g}, " for name, value in Gate().model_dump().items())[:-2] in gate


def test_links_between_pages_lead_somewhere():
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]
    broken = [
        (page.name, link)
        for page in pages
        for link in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text())
        if not (page.parent / link).exists()
    ]
    assert broken == []
