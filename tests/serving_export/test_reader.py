import shutil
import subprocess
import sys
import warnings

import duckdb
import polars as pl
import pytest
from deltalake import DeltaTable

from pipeline.privacy import anonymous
from pipeline.publish import Store
from serving_export.reader import Recommendations, StaleError, StaleWarning, bucket_of, nested
from serving_export.tables import RECOMMENDATIONS

BASE_INSTALL = """
import importlib.machinery, sys
allowed = {"polars", "_polars_runtime_32", "pyarrow", "deltalake", "arro3", "deprecated", "wrapt", "typing_extensions"}
ours = {"serving_export", "serving_export.reader"}
class BaseInstall:
    def find_spec(name, path=None, target=None):
        top = name.split(".")[0]
        found = importlib.machinery.PathFinder.find_spec(name, path, target)
        is_foreign = found and "site-packages" in str(found.origin) and top not in allowed
        is_other = top in ("pipeline", "features", "training", "dags", "nightjar")
        is_other |= top == "serving_export" and name not in ours
        return None if is_foreign or is_other else found
sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = BaseInstall
from serving_export.reader import Recommendations
lists = Recommendations(sys.argv[1], when_stale="ignore")
print(lists.user(sys.argv[2]).height, lists.channel("home").collect().height, lists.facts["table_version"])
print(lists.dataset().count_rows(), "torch" in sys.modules)
"""


@pytest.fixture
def store(released) -> Store:
    return released.store


@pytest.fixture
def rows(store):
    return store.scan(RECOMMENDATIONS).collect().sort("user_id", "channel", "rank").drop("user_bucket")


@pytest.fixture
def lists(store) -> Recommendations:
    return Recommendations(store.root, when_stale="ignore")


def publish(store: Store, rows: pl.DataFrame, **metadata: object) -> int:
    """A release with the facts of the one before, and others where told."""
    facts = Recommendations(store.root, when_stale="ignore").facts
    told = {name: facts[name] for name in ("model_version", "run_id", "data_through", "generated_at", "valid_until")}
    buckets = rows["user_bucket"].unique().to_list()
    return store.replace(RECOMMENDATIONS, rows, {"user_bucket": buckets}, told | metadata)


def test_an_address_with_a_password_is_refused_and_not_repeated():
    with pytest.raises(LookupError, match="holds a password") as refused:
        Recommendations("s3://key:hush@bucket/store")
    assert "hush" not in str(refused.value)


def test_it_needs_the_base_install_only(store, rows):
    arguments = [store.root, rows["user_id"][0]]
    done = subprocess.run([sys.executable, "-c", BASE_INSTALL, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["10", str(rows.height), "1", str(rows.height), "False"]


def test_one_user_and_many_users(lists, rows):
    users = rows["user_id"].unique().sort().to_list()
    one = lists.user(users[3])
    assert one["item_id"].to_list() == rows.filter(pl.col("user_id") == users[3])["item_id"].to_list()
    many = lists.users([users[7], users[2], "nobody", "x' OR 1=1"])
    assert many.select(rows.columns).equals(rows.filter(pl.col("user_id").is_in([users[2], users[7]])))
    assert lists.users([]).is_empty()


def test_facts_stand_beside_the_rows(lists, rows):
    told = lists.rows().select("data_through", "model_version", "valid_until").unique().collect()
    assert told.rows() == [("2026-03-04", lists.facts["model_version"], "2026-03-06T00:00:00+00:00")]
    assert lists.rows().select(rows.columns).sort("user_id", "channel", "rank").collect().equals(rows)


def test_a_channel_and_one_that_is_not_there(lists, rows):
    assert lists.channel("home").collect().height == rows.height
    with pytest.raises(LookupError, match=r"has no lists for the channel 'hoem'; there are home"):
        lists.channel("hoem")


def test_popular_items_are_those_of_the_release(released, store, lists):
    before = lists.popular("home")
    assert before["rank"].to_list() == list(range(1, 11))
    from serving_export.tables import POPULAR_ITEMS

    store.replace(POPULAR_ITEMS, POPULAR_ITEMS.empty(), {})
    assert lists.popular("home").equals(before)


def test_all_answers_belong_to_one_release_whatever_is_published_later(store, lists, rows):
    whole = store.scan(RECOMMENDATIONS).collect()
    lazy = lists.rows()
    version = publish(store, whole.with_columns(item_id=pl.lit("new")))
    assert "new" not in lazy.collect()["item_id"]
    assert "new" not in lists.user(rows["user_id"][0])["item_id"]
    assert set(Recommendations(store.root, when_stale="ignore").rows().collect()["item_id"]) == {"new"}
    older = Recommendations(store.root, version - 1, when_stale="ignore")
    assert older.facts["table_version"] == version - 1
    assert older.user(rows["user_id"][0])["item_id"].to_list() == lists.user(rows["user_id"][0])["item_id"].to_list()


def test_a_stale_release_is_told_or_refused(store):
    with pytest.warns(StaleWarning, match="were good until 2026-03-06T00:00:00"):
        Recommendations(store.root)
    with pytest.raises(StaleError, match="data through 2026-03-04"):
        Recommendations(store.root, when_stale="raise")
    publish(store, store.scan(RECOMMENDATIONS).collect(), valid_until="2999-01-01T00:00:00+00:00")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not Recommendations(store.root).facts["is_expired"]
        Recommendations(store.root, when_stale="raise")


def test_a_version_that_is_gone_is_told(store):
    whole = store.scan(RECOMMENDATIONS).collect()
    version = publish(store, whole)
    with pytest.raises(LookupError, match=rf"has no version {version + 5}"):
        Recommendations(store.root, version + 5)
    with pytest.raises(LookupError, match="holds no release"):
        Recommendations(store.root, 0)
    table = DeltaTable(store.table_uri("recommendations"))
    table.vacuum(0, dry_run=False, enforce_retention_duration=False)
    with pytest.raises(LookupError, match=r"version 1 .* were vacuumed away. `nightjar history`"):
        Recommendations(store.root, 1)
    assert Recommendations(store.root, version, when_stale="ignore").rows().collect().height == whole.height


def test_a_store_without_lists_says_so(loaded_shop):
    with pytest.raises(LookupError, match="nothing was exported"):
        Recommendations(loaded_shop.store.root)


def test_duckdb_reads_the_dataset(lists, rows):
    dataset = lists.dataset()  # noqa: F841  DuckDB finds it by its name
    user = rows["user_id"][0]
    found = duckdb.execute("SELECT item_id FROM dataset WHERE user_id = ? ORDER BY rank", [user]).fetchall()
    assert [item for (item,) in found] == lists.user(user)["item_id"].to_list()
    assert duckdb.execute("SELECT count(*), count(DISTINCT user_id) FROM dataset").fetchone() == (
        rows.height,
        rows["user_id"].n_unique(),
    )


def test_pandas_reads_the_dataset(lists, rows):
    frame = lists.dataset().to_table(filter=pl_filter(rows["user_id"][0])).to_pandas()
    assert frame.sort_values("rank")["item_id"].tolist() == rows["item_id"].to_list()[:10]
    assert len(lists.rows().collect().to_pandas()) == rows.height


def pl_filter(user):
    import pyarrow.compute as pc

    return pc.field("user_id") == user


def test_lists_as_one_row_a_user(lists, rows):
    twin = nested(lists.channel("home")).collect()
    assert twin.columns == ["user_id", "channel", "session_id", "items"]
    assert twin.height == rows["user_id"].n_unique()
    back = twin.explode("items").unnest("items")
    assert back["item_id"].to_list() == rows["item_id"].to_list()
    assert back["score"].to_list() == rows["score"].to_list()


def test_odd_ids_come_back_as_they_were(store, tmp_path):
    odd = ['it\'s "quoted"', "a,b;c\td", "two\nlines\r\n", "🦜 emoji", "ü" * 10_000, " spaces ", "%27/../x", "'; DROP"]
    home = Store(str(tmp_path / "odd"))
    shutil.copytree(f"{store.root}/site", f"{home.root}/site")
    facts = {"data_through": "2026-03-04", "valid_until": "2999-01-01T00:00:00+00:00"}
    told = [
        {"user_bucket": bucket_of(user, 2), "user_id": user, "channel": "home", "rank": 1, "item_id": f"{user}!"}
        for user in odd
    ]
    rows = pl.DataFrame(told).with_columns(
        score=pl.lit(1.0), source=pl.lit("model"), because=pl.lit(None, pl.String), session_id=pl.lit("s")
    )
    home.replace(RECOMMENDATIONS, rows, {"user_bucket": [0, 1]}, facts)
    lists = Recommendations(home.root)
    assert [lists.user(user)["item_id"].to_list() for user in odd] == [[f"{user}!"] for user in odd]
    assert set(lists.dataset().to_table()["user_id"].to_pylist()) == set(odd)


def test_a_user_and_an_anonymous_session_of_one_id_have_lists_of_their_own(store, tmp_path):
    home = Store(str(tmp_path / "twins"))
    shutil.copytree(f"{store.root}/site", f"{home.root}/site")
    facts = {"data_through": "2026-03-04", "valid_until": "2999-01-01T00:00:00+00:00"}
    names = {"42": "of the user", anonymous("42"): "of the session", anonymous("43"): "of another session"}
    told = [
        {"user_bucket": bucket_of(name, 2), "user_id": name, "channel": "home", "rank": 1, "item_id": item}
        for name, item in names.items()
    ]
    rows = pl.DataFrame(told).with_columns(
        score=pl.lit(1.0), source=pl.lit("model"), because=pl.lit(None, pl.String), session_id=pl.lit("s")
    )
    home.replace(RECOMMENDATIONS, rows, {"user_bucket": [0, 1]}, facts)
    lists = Recommendations(home.root)
    assert lists.user("42")["item_id"].to_list() == ["of the user"]
    assert lists.session("42")["item_id"].to_list() == ["of the session"]
    assert lists.session("41").is_empty()
    for asked in ("43", anonymous("43"), anonymous("42")):
        assert lists.user(asked).is_empty(), "no user id names an anonymous visitor"
