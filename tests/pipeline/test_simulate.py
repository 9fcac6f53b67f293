import csv
import gzip
import json
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from nightjar import Site
from pipeline.errors import ConfigurationError
from pipeline.settings import PipelineSite
from pipeline.simulate import (
    CATEGORIES,
    COLUMNS,
    EVENT_TYPES,
    INTENTS,
    SOURCE_WEIGHTS,
    STAY,
    Shop,
    SimulatedDay,
    SimulationReport,
    World,
    draw_columns,
    draw_world,
    next_item_probabilities,
    oracle_ranks,
    oracle_recall,
    report_path,
    simulate,
    simulate_days,
)
from pipeline.site_file import load_site

DAYS = [date(2026, 3, 1) + timedelta(days=number) for number in range(4)]
SHOP = Shop(seed=7, num_items=240, num_visitors=500, sessions_per_day=400, late_share=0.02)
BROWSE, REDISCOVER = INTENTS.index("browse"), INTENTS.index("rediscover")


def make_site(home: Path, events: str = "raw/events-{date}.csv.gz", **source: object) -> PipelineSite:
    demo = load_site(Path(__file__).parents[2] / "conf/demo.yaml", Site, home)
    pipeline_part = demo.model_dump(include=set(PipelineSite.model_fields))
    return PipelineSite.model_validate(
        pipeline_part | {"home": home, "source": pipeline_part["source"] | {"events": events} | source}
    )


def with_items(site: PipelineSite, path: str | None) -> PipelineSite:
    items = site.items.model_copy(update={"path": path}) if site.items and path else None
    return site.model_copy(update={"items": items})


def read_raw(path: Path) -> str:
    content = path.read_bytes()
    return (gzip.decompress(content) if path.suffix == ".gz" else content).decode()


def read_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def report(home: Path) -> SimulationReport:
    return simulate(make_site(home), DAYS, SHOP)


@pytest.fixture(scope="module")
def world() -> World:
    return draw_world(SHOP)


@pytest.fixture(scope="module")
def truth(world: World) -> list[SimulatedDay]:
    return list(simulate_days(world, "UTC", DAYS[-1]))


def all_events(truth: list[SimulatedDay]) -> pl.DataFrame:
    rows = [rows.with_columns(day=pl.lit(today.date)) for today in truth for rows in (today.on_time, today.late)]
    return pl.concat(rows)


# Repeatable


def test_the_same_seed_gives_the_same_bytes(report: SimulationReport, home: Path, tmp_path: Path) -> None:
    simulate(make_site(tmp_path), DAYS, SHOP)
    assert len(read_files(home)) == 2 * len(DAYS) + 1
    assert read_files(tmp_path) == read_files(home)


def test_another_seed_gives_another_log(report: SimulationReport, home: Path, tmp_path: Path) -> None:
    simulate(make_site(tmp_path), DAYS[:1], replace(SHOP, seed=8))
    name = f"events-{DAYS[0]}.csv.gz"
    assert (tmp_path / "raw" / name).read_bytes() != (home / "raw" / name).read_bytes()


def test_a_day_does_not_depend_on_the_other_days_asked_for(
    report: SimulationReport, home: Path, tmp_path: Path
) -> None:
    alone = simulate(make_site(tmp_path), [DAYS[2]], SHOP)
    assert alone.days == (report.days[2],)
    names = [f"raw/demo/items-{DAYS[2]}.csv", f"raw/events-{DAYS[2]}.csv.gz"]
    written, among_others = read_files(tmp_path), read_files(home)
    assert sorted(written) == [*names, "raw/simulation.json"]
    assert [written[name] for name in names] == [among_others[name] for name in names]


def test_files_that_exist_are_replaced_and_nothing_is_left_aside(tmp_path: Path) -> None:
    path = tmp_path / "raw" / f"events-{DAYS[0]}.csv.gz"
    path.parent.mkdir()
    path.write_text("old")
    simulate(make_site(tmp_path), DAYS[:1], SHOP)
    assert gzip.decompress(path.read_bytes()).startswith(b"user_id,")
    assert path.read_bytes()[4:8] == bytes(4), "a time in the gzip header would change with every run"
    assert sorted(read_files(path.parent)) == [f"demo/items-{DAYS[0]}.csv", path.name, "simulation.json"]


def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError("disk full")

    simulate(make_site(tmp_path), DAYS[:1], SHOP)
    before = read_files(tmp_path)
    monkeypatch.setattr("pipeline.durable.os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        simulate(make_site(tmp_path), DAYS[:1], replace(SHOP, seed=8))
    assert read_files(tmp_path) == before


def test_the_report_lies_beside_the_raw_files(report: SimulationReport, home: Path) -> None:
    written = json.loads(report_path(make_site(home)).read_text())
    assert written["seed"] == SHOP.seed
    assert [day["date"] for day in written["days"]] == [day.isoformat() for day in DAYS]
    assert written["days"][1]["rejected"] == report.days[1].rejected
    assert written["days"][1]["oracle"] == report.days[1].oracle


# The shop


def test_visits_have_the_promised_size_and_pace(truth: list[SimulatedDay]) -> None:
    events = all_events(truth).sort("session_id", "second")
    lengths = (
        events.filter(pl.col("session_id").str.starts_with(f"s{DAYS[1]:%Y%m%d}")).group_by("session_id").len()["len"]
    )
    gaps = events.select(gap=pl.col("second").diff().over("session_id")).drop_nulls()["gap"]
    assert len(lengths) == SHOP.sessions_per_day
    assert lengths.min() == 2
    assert lengths.max() <= 30
    assert 4.5 < lengths.mean() < 5.5
    assert gaps.min() >= 1
    assert gaps.max() < 25 * 60


def test_one_visit_in_seven_is_anonymous(truth: list[SimulatedDay], report: SimulationReport) -> None:
    sessions = all_events(truth).group_by("session_id").agg(is_anonymous=pl.col("user_id").is_null().all())
    assert sessions["is_anonymous"].mean() == pytest.approx(0.15, abs=0.005)
    assert {day.anonymous_sessions for day in report.days} == {60}


def test_most_users_come_back_on_another_day(truth: list[SimulatedDay]) -> None:
    days_per_user = all_events(truth).drop_nulls("user_id").group_by("user_id").agg(days=pl.col("day").n_unique())
    assert (days_per_user["days"] >= 2).mean() > 0.5
    assert (days_per_user["days"] == 1).any()


def test_visits_of_one_user_never_overlap(truth: list[SimulatedDay]) -> None:
    visits = (
        all_events(truth)
        .drop_nulls("user_id")
        .group_by("user_id", "session_id")
        .agg(start=pl.col("second").min(), end=pl.col("second").max())
        .sort("user_id", "start")
        .with_columns(next_start=pl.col("start").shift(-1).over("user_id"))
        .drop_nulls("next_start")
    )
    assert visits.height > SHOP.num_visitors
    assert (visits["next_start"] > visits["end"]).all()


def test_some_visits_run_over_midnight(truth: list[SimulatedDay], report: SimulationReport) -> None:
    days_per_session = (
        all_events(truth).group_by("session_id").agg(days=pl.col("day").n_unique(), first=pl.col("day").min())
    )
    over_midnight = days_per_session.filter(pl.col("days") == 2)
    assert over_midnight.height > 0
    for day in report.days[:-1]:
        assert (over_midnight["first"] == day.date).sum() == day.sessions_over_midnight


def test_an_item_is_neither_seen_nor_listed_before_its_launch(
    world: World, truth: list[SimulatedDay], report: SimulationReport, home: Path
) -> None:
    launches = pl.DataFrame({"item_id": world.item_ids, "launch": world.launch_days_I})
    seen = all_events(truth).group_by("item_id").agg(seen=(pl.col("day").min() - DAYS[0]).dt.total_days())
    seen = seen.join(launches, on="item_id")
    assert (seen["seen"] >= seen["launch"]).all()
    assert (seen.filter(pl.col("launch").is_between(1, len(DAYS) - 2))).height > 0
    listed = [pl.read_csv(home / f"raw/demo/items-{day}.csv").height for day in DAYS]
    assert listed == [day.items_on_sale for day in report.days]
    assert np.diff(listed).tolist() == [day.items_launched for day in report.days[1:]]
    assert listed[-1] > listed[0]


def test_one_item_table_for_all_days_is_that_of_the_last_day(
    report: SimulationReport, home: Path, tmp_path: Path
) -> None:
    simulate(with_items(make_site(tmp_path), "items.csv.gz"), DAYS, SHOP)
    last = home / f"raw/demo/items-{DAYS[-1]}.csv"
    assert read_raw(tmp_path / "items.csv.gz") == read_raw(last)


def test_a_site_can_do_without_items(report: SimulationReport, tmp_path: Path) -> None:
    assert simulate(with_items(make_site(tmp_path), None), DAYS[:1], SHOP).days == report.days[:1]
    assert sorted(read_files(tmp_path)) == [f"raw/events-{DAYS[0]}.csv.gz", "raw/simulation.json"]


def test_titles_with_a_comma_are_quoted(report: SimulationReport, home: Path) -> None:
    with (home / f"raw/demo/items-{DAYS[0]}.csv").open(newline="") as file:
        items = list(csv.DictReader(file))
    assert {len(item) for item in items} == {4}
    assert any("," in item["title"] for item in items)
    assert all(float(item["price"]) > 0 for item in items)


# The process


def test_chances_sum_to_one_and_leave_out_what_is_not_sold(world: World, truth: list[SimulatedDay]) -> None:
    today = truth[1]
    rows = np.arange(100)
    visits = today.visits
    for step in (0, 1):
        previous = np.where(step == 0, -1, visits.items_NT[rows, 0])
        chances = next_item_probabilities(today.shelf, visits, rows, previous, np.zeros(100, dtype=int))
        assert chances.sum(axis=1) == pytest.approx(np.ones(100))
        assert (chances[:, ~world.is_on_sale(today.date)] == 0).all()
        assert (~world.is_on_sale(today.date)).any()


def test_source_weights_of_an_intent_sum_to_one() -> None:
    assert SOURCE_WEIGHTS.sum(axis=1) == pytest.approx(np.ones(len(SOURCE_WEIGHTS)))


def test_who_liked_nothing_yet_goes_by_taste(world: World, truth: list[SimulatedDay]) -> None:
    today = truth[0]
    rows = np.flatnonzero(today.visits.intent_N == REDISCOVER)[:1]
    _, category, taste, liked, anywhere = SOURCE_WEIGHTS[REDISCOVER]
    chances = next_item_probabilities(today.shelf, today.visits, rows, np.array([-1]), np.array([-1]))[0]
    by_category = np.bincount(world.categories_I, weights=chances)
    everywhere = np.bincount(world.categories_I, weights=today.shelf.popularity_I)
    focus = np.arange(len(CATEGORIES)) == today.visits.focus_N[rows]
    expected = (
        (taste + liked) * world.tastes_VC[today.visits.visitor_N[rows[0]]] + category * focus + anywhere * everywhere
    )
    assert by_category == pytest.approx(expected / (category + taste + liked + anywhere))


def test_in_a_plain_shop_all_visitors_are_alike() -> None:
    shop = Shop(num_items=240, num_visitors=300, sessions_per_day=200, is_plain=True)
    plain = draw_world(shop)
    assert np.ptp(plain.tastes_VC, axis=0).max() < 1e-12
    *_, day = simulate_days(plain, "UTC", shop.opens_on + timedelta(days=2))
    assert set(day.visits.intent_N) == {INTENTS.index("none")}
    assert day.shelf.liked_VI.sum() > 0, "there would be something to come back to"
    rows, previous = np.arange(200), np.full(200, 5)
    chances = next_item_probabilities(day.shelf, day.visits, rows, previous, np.zeros(200, int))
    assert np.ptp(chances, axis=0).max() < 1e-12, "who the visitor is tells nothing of what comes next"


def test_drawing_follows_the_chances() -> None:
    chances = np.tile([0.0, 0.25, 0.0, 0.75], (4000, 1))
    drawn = draw_columns(chances, np.random.default_rng(0).random(4000))
    assert set(drawn.tolist()) == {1, 3}
    assert (drawn == 3).mean() == pytest.approx(0.75, abs=0.03)


def test_staying_on_an_item_goes_from_view_to_cart_to_purchase(truth: list[SimulatedDay]) -> None:
    items, types = truth[0].visits.items_NT, truth[0].visits.types_NT
    stays = (items[:, 1:] == items[:, :-1]) & (items[:, 1:] >= 0)
    before, after = types[:, :-1][stays], types[:, 1:][stays]
    assert (after == (before + 1) % len(EVENT_TYPES)).all()
    views = (types[:, :-1] == 0) & (items[:, 1:] >= 0)
    assert stays[views].mean() == pytest.approx(STAY[0], abs=0.05)
    moves = (items[:, 1:] != items[:, :-1]) & (items[:, 1:] >= 0)
    assert (types[:, 1:][moves] == 0).all()


def test_people_return_to_what_they_liked_on_earlier_days(truth: list[SimulatedDay]) -> None:
    def share_of_liked(intent: int) -> float:
        today = truth[-1]
        rows = np.flatnonzero(today.visits.intent_N == intent)
        liked = today.shelf.liked_VI[today.visits.visitor_N[rows], today.visits.items_NT[rows, 0]] > 0
        return float(liked.mean())

    assert truth[0].shelf.liked_VI.sum() == 0
    assert share_of_liked(REDISCOVER) > 2 * share_of_liked(BROWSE)


# The oracle


def popularity_recall_at_20(truth: list[SimulatedDay]) -> float:
    seen = np.concatenate([today.visits.items_NT[today.visits.items_NT >= 0] for today in truth[:-1]])
    counts = np.bincount(seen, minlength=SHOP.num_items)
    targets = truth[-1].visits.items_NT[:, 1:]
    ranks = (counts >= counts[targets[targets >= 0]][:, None]).sum(axis=1)
    return float((ranks <= 20).mean())


def test_the_oracle_beats_popularity_and_popularity_beats_chance(truth: list[SimulatedDay]) -> None:
    oracle = oracle_recall(truth[-1].shelf, truth[-1].visits)["next_recall_at_20"]
    popularity = popularity_recall_at_20(truth)
    assert popularity > 1.5 * 20 / SHOP.num_items
    assert popularity + 0.3 < oracle < 1


def test_an_oracle_with_the_wrong_latents_is_worse(truth: list[SimulatedDay]) -> None:
    shelf, visits = truth[-1].shelf, truth[-1].visits
    order = np.random.default_rng(0).permutation(len(visits.visitor_N))
    wrong_intent = replace(visits, intent_N=visits.intent_N[order])
    wrong_focus = replace(visits, focus_N=visits.focus_N[order])
    stranger = replace(visits, visitor_N=visits.visitor_N[order])
    best = oracle_recall(shelf, visits)["next_mrr_at_20"]
    for wrong in (wrong_intent, wrong_focus, stranger):
        assert oracle_recall(shelf, wrong)["next_mrr_at_20"] < best - 0.005


def test_shuffled_items_leave_the_oracle_little_to_know(truth: list[SimulatedDay]) -> None:
    shelf, visits = truth[-1].shelf, truth[-1].visits
    is_event = visits.items_NT >= 0
    shuffled = visits.items_NT.copy()
    shuffled[is_event] = np.random.default_rng(0).permutation(shuffled[is_event])
    assert oracle_recall(shelf, replace(visits, items_NT=shuffled))["next_recall_at_20"] < 0.3


def test_the_oracle_expects_what_it_reaches(truth: list[SimulatedDay]) -> None:
    """Its ranking is by the true chances: the chance of its best item is how often that item comes."""
    expected, reached = 0.0, 0
    for today in truth:
        visits = today.visits
        rows = np.arange(len(visits.visitor_N))
        first = visits.items_NT[:, 0]
        chances = next_item_probabilities(today.shelf, visits, rows, first, visits.types_NT[:, 0])
        expected += chances.max(axis=1).sum()
        reached += int((chances.argmax(axis=1) == visits.items_NT[:, 1]).sum())
    assert reached == pytest.approx(expected, rel=0.1)


def test_ranks_start_at_one_and_there_is_one_per_next_item(truth: list[SimulatedDay]) -> None:
    visits = truth[0].visits
    ranks = oracle_ranks(truth[0].shelf, visits)
    assert len(ranks) == (visits.num_events_N - 1).sum()
    assert ranks.min() == 1
    assert ranks.max() <= SHOP.num_items


def test_metrics_are_recall_and_mean_reciprocal_rank(truth: list[SimulatedDay], report: SimulationReport) -> None:
    ranks = oracle_ranks(truth[1].shelf, truth[1].visits).tolist()
    oracle = report.days[1].oracle
    assert report.days[1].oracle_targets == len(ranks)
    for k in (5, 10, 20):
        assert oracle[f"next_recall_at_{k}"] == pytest.approx(sum(rank <= k for rank in ranks) / len(ranks))
        assert oracle[f"next_mrr_at_{k}"] == pytest.approx(sum(1 / rank for rank in ranks if rank <= k) / len(ranks))


# The faults


def find_outcomes(
    home: Path, day: date, seen: set[tuple[str, ...]], limit: int = 300, lateness: int = 2
) -> dict[str, int]:
    """What a reader of our own finds in a day's file, row by row; `seen` holds the rows of earlier files."""
    outcomes: dict[str, int] = {}
    lines = list(csv.reader(read_raw(home / f"raw/events-{day}.csv.gz").splitlines()))
    assert lines[0] == COLUMNS
    per_visitor: dict[str, int] = {}
    for fields in lines[1:]:
        if len(fields) == len(COLUMNS):
            per_visitor[fields[0] or fields[1]] = per_visitor.get(fields[0] or fields[1], 0) + 1
    for fields in lines[1:]:
        outcome = judge(fields, day, per_visitor, limit, lateness)
        if outcome == "event" and tuple(fields) in seen:
            outcome = "duplicate"
        if outcome == "event":
            seen.add(tuple(fields))
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    return outcomes


def judge(fields: list[str], day: date, per_visitor: dict[str, int], limit: int, lateness: int) -> str:
    if len(fields) != len(COLUMNS):
        return "unparsable_row"
    row = dict(zip(COLUMNS, fields, strict=True))
    try:
        happened_on = date.fromisoformat(row["time"].split("T")[0])
    except ValueError:
        return "bad_time"
    if not row["user_id"] and not row["session_id"]:
        return "missing_user"
    if not row["item_id"]:
        return "missing_item"
    if row["event"] not in EVENT_TYPES:
        return "unknown_event_type"
    if happened_on > day:
        return "future_time"
    if happened_on < day - timedelta(days=lateness):
        return "too_late"
    return "bot" if per_visitor[row["user_id"] or row["session_id"]] > limit else "event"


def test_the_report_counts_what_the_files_hold(report: SimulationReport, home: Path) -> None:
    seen: set[tuple[str, ...]] = set()
    for day in report.days:
        found = find_outcomes(home, day.date, seen)
        assert found == {"event": day.events, "duplicate": day.duplicates, **day.rejected}
        assert day.rows == sum(found.values())


def test_every_kind_of_fault_is_planted_every_day(report: SimulationReport) -> None:
    kinds = {
        "unparsable_row",
        "missing_user",
        "missing_item",
        "bad_time",
        "future_time",
        "too_late",
        "unknown_event_type",
    }
    for day in report.days:
        assert set(day.rejected) == kinds | {"bot"}
        assert all(10 <= day.rejected[kind] <= 30 for kind in kinds)
        assert day.rejected["bot"] == 600
        assert day.duplicates > day.redelivered
    assert all(day.late > 0 and day.redelivered > 0 for day in report.days[1:])
    assert report.days[0].late == report.days[0].redelivered == 0


def test_late_rows_come_a_day_after_their_time(report: SimulationReport, truth: list[SimulatedDay], home: Path) -> None:
    late = set(truth[0].late["session_id"] + " " + truth[0].late["item_id"])
    text = read_raw(home / f"raw/events-{DAYS[1]}.csv.gz").splitlines()
    first_day = {" ".join(line.split(",")[1:3]) for line in text if f",{DAYS[0]}T" in line}
    assert len(truth[0].late) == report.days[1].late
    assert late <= first_day
    places = [place for place, line in enumerate(text) if " ".join(line.split(",")[1:3]) in late]
    assert np.median(places) == pytest.approx(len(text) / 2, rel=0.6), "they come in any place, not at the head"


def test_faults_whose_rule_is_off_are_not_planted(tmp_path: Path) -> None:
    day = simulate(make_site(tmp_path, lateness=None, bots={}), DAYS[:1], SHOP).days[0]
    assert not {"bot", "too_late"} & set(day.rejected)
    assert day.rejected["missing_item"] >= 10


def test_a_shop_can_be_without_faults(tmp_path: Path) -> None:
    shop = replace(SHOP, faults_per_day=0, bots_per_day=0, late_share=0.0)
    for day in simulate(make_site(tmp_path), DAYS[:2], shop).days:
        assert day.rejected == {}
        assert day.events == day.rows
        assert (day.late, day.duplicates) == (0, 0)


def test_json_lines_hold_the_same_counts(tmp_path: Path, report: SimulationReport) -> None:
    site = make_site(tmp_path, events="raw/events-{date}.jsonl")
    day = simulate(site, DAYS[:1], SHOP).days[0]
    assert day == report.days[0]
    rows = []
    for line in read_raw(tmp_path / f"raw/events-{DAYS[0]}.jsonl").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            rows.append(None)
    good = [row for row in rows if isinstance(row, dict)]
    assert len(rows) == day.rows
    assert len(rows) - len(good) == day.rejected["unparsable_row"]
    assert sum(row["item_id"] is None for row in good) == day.rejected["missing_item"]
    assert all(list(row) == COLUMNS for row in good)


def test_times_are_local_to_the_site(tmp_path: Path) -> None:
    site = make_site(tmp_path).model_copy(update={"time_zone": "Europe/Berlin"})
    summer_time_starts = date(2026, 3, 29)
    shop = replace(SHOP, opens_on=date(2026, 3, 28), faults_per_day=0, bots_per_day=0, late_share=0.0)
    simulate(site, [summer_time_starts], shop)
    times = [line.split(",")[4] for line in read_raw(tmp_path / "raw/events-2026-03-29.csv.gz").splitlines()[1:]]
    assert all(time.startswith("2026-03-29T") for time in times)
    assert {time[-6:] for time in times} == {"+01:00", "+02:00"}
    assert times == sorted(times)


# Refusals


def test_the_demo_site_can_be_simulated_at_its_defaults(tmp_path: Path) -> None:
    site = load_site(Path(__file__).parents[2] / "conf/demo.yaml", Site, tmp_path)
    report = simulate(site, [Shop().opens_on], Shop())
    assert 15_000 < report.days[0].events < 20_000
    assert sorted(path.name for path in (tmp_path / "raw/demo").iterdir()) == [
        "events-2026-03-01.csv.gz",
        "items-2026-03-01.csv",
        "simulation.json",
    ]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"events": "raw/*-{date}.csv"}, "wildcards"),
        ({"events": "s3://bucket/{date}.csv"}, "on this machine"),
        ({"events": "raw/{date}.parquet"}, r"\.jsonl"),
        ({"events": "raw/all.csv", "lateness": None}, "{date}"),
        ({"time_unit": "ms"}, "columns"),
        ({"event_type": {"constant": "view"}}, "columns"),
        ({"event_type": {"column": "event", "map": {"view": "view"}}}, "map"),
        ({"lateness": timedelta(hours=2)}, "lateness"),
        ({"bots": {"events_per_day": 20}}, "bots.events_per_day"),
    ],
)
def test_a_site_that_reads_something_else_is_refused(tmp_path: Path, changes: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigurationError, match=word):
        simulate(make_site(tmp_path, **changes), DAYS, SHOP)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_days_before_the_opening_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="opens on 2026-03-01"):
        simulate(make_site(tmp_path), [date(2026, 2, 28)], SHOP)
    with pytest.raises(ConfigurationError, match="no days"):
        simulate(make_site(tmp_path), [], SHOP)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"anonymous_share": 1.0}, "anonymous_share"),
        ({"num_items": 50}, "num_items"),
        ({"sessions_per_day": 0}, "sessions_per_day"),
        ({"num_visitors": 100}, "num_visitors"),
        ({"faults_per_day": -1}, "negative"),
    ],
)
def test_a_shop_that_makes_no_sense_is_refused(changes: dict[str, float], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        replace(SHOP, **changes)
