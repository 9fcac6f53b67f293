import numpy as np
import polars as pl
import pytest

from pipeline.errors import ContractError
from pipeline.publish import StagedFile
from pipeline.tables import ITEMS, events_table
from serving_export import tally
from serving_export.export import export
from serving_export.quality import RULES, check_release
from serving_export.reader import Recommendations
from serving_export.tables import LIST_CHECKS, RECOMMENDATIONS
from serving_export.tally import OF_ROWS, gini


@pytest.fixture
def lists(released):
    """The lists that were published, which broke nothing."""
    return released.store.scan(RECOMMENDATIONS).collect().sort("user_id", "channel", "rank")


def check(shop, rows, site=None, has_model=True):
    staged = shop.store.stage(RECOMMENDATIONS, rows)
    return check_release(site or shop.site, shop.store, staged, shop.days[3], has_model=has_model)


def verdicts(shop) -> dict[str, float]:
    rows = shop.store.scan(LIST_CHECKS).filter(pl.col("data_through") == shop.days[3]).collect()
    return dict(rows.select("rule", "value").iter_rows())


FIRST = (pl.col("user_id") == pl.col("user_id").first()) & (pl.col("rank") == 1)
SECOND = (pl.col("user_id") == pl.col("user_id").first()) & (pl.col("rank") == 2)


def change(at: pl.Expr, **values: object):
    def tamper(rows: pl.DataFrame, shop) -> pl.DataFrame:
        changed = {name: pl.when(at).then(pl.lit(value)).otherwise(name) for name, value in values.items()}
        return rows.with_columns(**changed)

    return tamper


def without_a_user(rows, shop):
    return rows.filter(pl.col("user_id") != pl.col("user_id").first())


def with_a_stranger(rows, shop):
    return pl.concat([rows, rows.head(10).with_columns(user_id=pl.lit("stranger"))])


def with_an_item_twice(rows, shop):
    return rows.with_columns(item_id=pl.when(SECOND).then(pl.col("item_id").first()).otherwise("item_id"))


def with_a_seen_item(rows, shop):
    user = rows["user_id"][0]
    events = shop.store.scan(events_table([])).filter(pl.col("event_date") <= shop.days[3], pl.col("user_id") == user)
    return change(FIRST, item_id=events.collect()["item_id"][0])(rows, shop)


def with_an_unavailable_item(rows, shop):
    items = shop.store.scan(ITEMS).collect()
    gone = pl.when(pl.col("item_id") == rows["item_id"][0]).then(pl.lit(False)).otherwise("available")
    days = items["snapshot_date"].unique().to_list()
    shop.store.replace(ITEMS, items.with_columns(available=gone), {"snapshot_date": days})
    return rows


TAMPERED = {
    "users_listed": without_a_user,
    "users_active": with_a_stranger,
    "ranks_dense": change(SECOND, rank=3),
    "items_once": with_an_item_twice,
    "items_known": change(FIRST, item_id="no such item"),
    "items_allowed": with_an_unavailable_item,
    "items_unseen": with_a_seen_item,
    "scores_finite": change(FIRST, score=float("nan")),
    "scores_fall": change(SECOND, score=1e9),
    "fallback_share": lambda rows, shop: rows.with_columns(source=pl.lit("popular")),
}


@pytest.mark.parametrize("rule", TAMPERED)
def test_lists_that_break_a_rule_are_refused_by_its_name(released, lists, rule):
    with pytest.raises(ContractError, match=rf"(?s)Nothing was published.*\n  {rule} in home \(") as refused:
        check(released, TAMPERED[rule](lists, released))
    assert [name for name in RULES if f"\n  {name} in home" in str(refused.value)] == [rule], "it alone"
    assert "allowed at most" in str(refused.value)
    assert rule not in OF_ROWS or ", like user '" in str(refused.value)
    kept = released.store.scan(LIST_CHECKS).filter(~pl.col("held")).collect()
    assert kept.select("channel", "rule").rows() == [("home", rule)]


def test_every_rule_is_tested():
    assert {*TAMPERED, "coverage_kept", "evenness_kept"} == set(RULES)


def test_lists_are_held_against_the_last_release(released, lists):
    some = lists["item_id"].unique().sort().head(4)
    narrow = lists.filter(pl.col("rank") <= 4).with_columns(
        item_id=pl.col("rank").replace_strict(dict(enumerate(some, 1)), return_dtype=pl.String)
    )
    free = released.with_changes(export={"seen": {"policy": "allow"}})
    with pytest.raises(ContractError, match=r"coverage_kept in home .* found 0\.\d+, allowed at least 0\.5"):
        check(released, narrow, free)
    loose = released.with_changes(
        export={"seen": {"policy": "allow"}, "checks": {"coverage_kept": 0.0, "evenness_kept": 0}}
    )
    figures = check(released, narrow, loose)["home"]
    assert (figures["items"], figures["mean_length"]) == (4, 4.0)
    assert verdicts(released)["evenness_kept"] < 0.5


def test_the_figures_of_a_release_stand_in_its_commit(released, lists):
    told = Recommendations(released.store.root, when_stale="ignore").facts
    home = told["quality"]["home"]
    assert int(told["users"]) == home["users"] == lists["user_id"].n_unique()
    assert int(told["rows"]) == home["rows"] == lists.height
    assert home["items"] == lists["item_id"].n_unique()
    catalogue = released.store.scan(ITEMS).select(pl.col("item_id").n_unique()).collect().item()
    assert home["coverage"] == pytest.approx(home["items"] / catalogue, abs=1e-6)
    assert home["fallback_share"] == pytest.approx((lists["source"] == "popular").mean(), abs=1e-6)
    assert {"all/next_mrr_at_20", "all/next_recall_at_20", "list/any_recall_at_20"} == set(told["metrics"])


def test_a_release_without_a_model_may_be_popular_items_only(released, lists):
    popular = lists.with_columns(source=pl.lit("popular"))
    assert check(released, popular, has_model=False)["home"]["fallback_share"] == 1.0


def test_who_has_seen_everything_needs_no_list(released, lists):
    user = lists["user_id"][0]
    events = released.store.scan(events_table([])).filter(pl.col("event_date") == released.days[3]).collect()
    theirs = events.filter(pl.col("user_id") == user)
    catalogue = released.store.scan(ITEMS).select(pl.col("item_id").unique()).collect()
    row = (theirs if theirs.height else events.with_columns(user_id=pl.lit(user))).head(1)
    assert theirs.height, "the first user must be active on the last day for this test"
    all_seen = row.drop("item_id").join(catalogue, how="cross").select(events.columns)
    more = pl.concat([events, all_seen.with_columns(event_id=pl.format("e{}", pl.int_range(pl.len())))])
    released.store.replace(events_table([]), more, {"event_date": [released.days[3]]})
    assert check(released, lists.filter(pl.col("user_id") != user))["home"]["users"] == lists["user_id"].n_unique() - 1


def test_parts_of_any_size_give_the_same_verdicts(released, lists, monkeypatch):
    whole = check(released, lists)
    monkeypatch.setattr(tally, "ROWS_AT_ONCE", 7)
    assert check(released, lists) == whole


def test_a_user_listed_in_two_files_is_found(released, lists):
    staged = released.store.stage(RECOMMENDATIONS, lists)
    again = released.store.stage(RECOMMENDATIONS, lists.head(10))
    with pytest.raises(ContractError, match=r"ranks_dense in home .*has several lists"):
        check_release(released.site, released.store, [*staged, *again], released.days[3], has_model=True)


def test_lists_that_break_their_contract_leave_the_last_release(released, monkeypatch, command):
    version = released.store.version(RECOMMENDATIONS)
    stage = type(released.store).stage

    def without_first_ranks(store, table, rows, **told) -> list[StagedFile]:
        return stage(store, table, rows.filter(pl.col("rank") > 1) if table is RECOMMENDATIONS else rows, **told)

    monkeypatch.setattr(type(released.store), "stage", without_first_ranks)
    code, out, err = command(released.home, "export", "--site", released.file, "--date", released.days[3])
    assert (code, out) == (3, "")
    assert "ranks_dense in home" in err
    assert released.store.version(RECOMMENDATIONS) == version
    monkeypatch.undo()
    assert export(released.site, released.store, released.days[3])["table_version"] == version + 1
    assert released.store.scan(LIST_CHECKS).select(pl.col("held").all()).collect().item()


@pytest.mark.parametrize(
    ("counts", "value"), [([1, 1, 1, 1], 0.0), ([0, 0, 0, 8], 0.75), ([0, 0], 0.0), ([1, 3], 0.25)]
)
def test_gini_of_known_counts(counts, value):
    assert gini(np.array(counts)) == pytest.approx(value)
