import gzip
from datetime import date
from typing import Any

import polars as pl
import pytest

from pipeline.catalogue import latest_items, read_side_table, update_items
from pipeline.errors import ConfigurationError
from pipeline.tables import ITEMS

DAY_1, DAY_2, DAY_3 = (date(2026, 3, day) for day in (1, 2, 3))
COLUMNS = {"item_id": "id", "title": "name", "category": "kind", "price": "price", "available": "stock"}


def row(day: int, item: str) -> str:
    return f"ann,,{item},2026-03-{day:02}T10:00:00Z,view"


@pytest.fixture
def shop(make_small: Any) -> Any:
    """A site with a side table `items-<day>.csv`."""
    return make_small(items={"path": "raw/items-{date}.csv", "columns": COLUMNS, "separator": ";"})


def tell_items(shop: Any, day: date, *rows: str, header: str = "id;name;kind;price;stock") -> None:
    (shop.home / f"raw/items-{day}.csv").write_text("\n".join([header, *rows, ""]))


def update(site: Any, *days: date) -> None:
    for day in days:
        site.ingest(day)
        update_items(site.site, site.store, day)


def known(site: Any, day: date) -> dict[str, Any]:
    """Item -> when it was first seen."""
    return dict(latest_items(site.store, day).sort("item_id").select("item_id", "first_seen").iter_rows())


def snapshots(site: Any) -> list[date]:
    return sorted(site.table(ITEMS)["snapshot_date"].unique())


def test_the_side_table_is_read_and_typed(shop):
    tell_items(shop, DAY_1, " a ;Lamp;light;9.50;yes", "b;;;cheap;maybe", "c;Old;;1;0", "c;New;;2;FALSE", ";no id;;;")
    shop.deliver("2026-03-01", row(1, "a"), row(1, "seen only"))
    update(shop, DAY_1)
    assert latest_items(shop.store, DAY_1).sort("item_id").drop("snapshot_date").rows() == [
        ("a", "Lamp", "light", 9.5, True, DAY_1),
        ("b", None, None, None, None, None),
        ("c", "New", None, 2.0, False, None),
        ("seen only", None, None, None, None, DAY_1),
    ]


def test_a_side_table_without_a_header_takes_its_names_from_the_site_file(make_small):
    shop = make_small(
        items={"path": "raw/i.tsv", "columns": {"item_id": "id"}, "separator": "\t", "header": ["id", "x"]}
    )
    (shop.home / "raw/i.tsv").write_text("a\t1\nb\t2\n")
    shop.deliver("2026-03-01", row(1, "a"))
    update(shop, DAY_1)
    assert known(shop, DAY_1) == {"a": DAY_1, "b": None}


@pytest.mark.parametrize("name", ["i.jsonl", "i.ndjson.gz"])
def test_a_side_table_may_be_json_lines(make_small, name):
    shop = make_small(items={"path": f"raw/{name}", "columns": COLUMNS})
    lines = b"""{"id": "new\\nline", "price": 9.5, "stock": true, "more": {"x": 1}}\n{"id": 7, "kind": "k"}\n"""
    (shop.home / f"raw/{name}").write_bytes(gzip.compress(lines) if name.endswith(".gz") else lines)
    shop.deliver("2026-03-01", row(1, "7"))
    update(shop, DAY_1)
    assert latest_items(shop.store, DAY_1).sort("item_id").drop("snapshot_date").rows() == [
        ("7", None, "k", None, None, DAY_1),
        ("new\nline", None, None, 9.5, True, None),
    ]


def test_a_side_table_whose_rows_name_no_item_is_refused(make_small):
    shop = make_small(items={"path": "raw/i.jsonl", "columns": COLUMNS})
    (shop.home / "raw/i.jsonl").write_text('{"sku": "a"}\n')
    shop.deliver("2026-03-01", row(1, "a"))
    with pytest.raises(ConfigurationError, match=r"no row of .*i\.jsonl has a 'id'"):
        update(shop, DAY_1)


def items_of(shop: Any) -> dict[str, Any]:
    """Item -> title, of the items that the side table describes."""
    items, _ = read_side_table(shop.site, shop.site.items, DAY_1)
    return dict(items.select("item_id", "title").iter_rows())


SMALL = {"item_id": "id", "title": "name"}
GOOD = '{"id": "a", "name": "x"}'


def test_a_row_with_a_blank_id_describes_no_item_and_is_counted(make_small, caplog):
    shop = make_small(items={"path": "raw/i.csv", "columns": SMALL})
    blanks = ["", " ", "\t ", '""', '"  "']
    (shop.home / "raw/i.csv").write_text("\n".join(["id,name", "a,x", *(f"{blank},y" for blank in blanks)]))
    shop.deliver("2026-03-01", row(1, "a"))
    shop.ingest(DAY_1)
    assert update_items(shop.site, shop.store, DAY_1) == {"items": 1, "items_rejected": {"missing_item": 5}}
    assert latest_items(shop.store, DAY_1)["item_id"].to_list() == ["a"]
    assert "5 rows describe no item (missing_item, the first is record 2): their 'id' is empty" in caplog.text


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        "[" * 1000,
        "[" * 100_000,
        '{"id": "b", "x": ' + "[" * 1000 + "]" * 1000 + "}",
        '{"id": "b", "x": ' + "[" * 1_000_000 + "]" * 1_000_000 + "}",
        '{"id": ' + "9" * 10_000 + "}",
        '{"id": NaN}',
        '{"id": "\\ud800"}',
        '{"id": true}',
        '{"id": ["b"]}',
        '{"id": {"b": 1}}',
        '{"id": 1.5}',
        '{"id": 9007199254740993.0}',
    ],
    ids=lambda line: line[:20],
)
def test_a_line_of_the_side_table_that_cannot_be_read_is_one_item_less(make_small, line):
    shop = make_small(items={"path": "raw/i.jsonl", "columns": SMALL})
    (shop.home / "raw/i.jsonl").write_text(f'{GOOD}\n{line}\n{{"id": 7.0, "name": "z"}}\n')
    assert items_of(shop) == {"a": "x", "7": "z"}
    _, rejected = read_side_table(shop.site, shop.site.items, DAY_1)
    assert rejected.select("record", "reason").rows() == [(2, "unparsable_row")]


@pytest.mark.parametrize("line", ["b", "b,y,z", '"b,y', "b\xff,y"])
def test_a_csv_row_of_the_side_table_that_cannot_be_read_is_one_item_less(make_small, line):
    shop = make_small(items={"path": "raw/i.csv", "columns": SMALL})
    (shop.home / "raw/i.csv").write_bytes(f"id,name\na,x\n{line}\nc,z\n".encode("latin-1"))
    assert items_of(shop) == {"a": "x", "c": "z"}


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (pl.Series([7.0, 8.5, None, float("nan"), 2.0**53]), ["7"]),
        (pl.Series(["7.00", "8.50"]).cast(pl.Decimal(10, 2)), ["7"]),
        (pl.Series(["a", " ", "", None]).cast(pl.Categorical), ["a"]),
    ],
)
def test_item_ids_of_a_typed_side_table_follow_the_rule_of_the_log(make_small, ids, expected):
    shop = make_small(items={"path": "raw/i.parquet", "columns": SMALL})
    table = pl.DataFrame({"id": ids, "name": "x", "tags": [[1]] * len(ids)})
    table.write_parquet(shop.home / "raw/i.parquet")
    assert sorted(items_of(shop)) == expected


def test_a_side_table_whose_ids_look_like_floats_is_reported(make_small, caplog):
    shop = make_small(items={"path": "raw/i.csv", "columns": SMALL})
    (shop.home / "raw/i.csv").write_text("id,name\n7.0,x\n8.0,y\n")
    shop.deliver("2026-03-01", row(1, "7.0"))
    update(shop, DAY_1)
    assert sorted(items_of(shop)) == ["7.0", "8.0"]
    assert "i.csv: ids in column 'id' look like 17850.0" in caplog.text


def test_a_damaged_side_table_is_refused_whole(make_small):
    shop = make_small(items={"path": "raw/i.csv.gz", "columns": SMALL})
    packed = gzip.compress(b"id,name\n" + b"".join(b"%d,x\n" % n for n in range(1000)))
    (shop.home / "raw/i.csv.gz").write_bytes(packed[:-20])
    with pytest.raises(ConfigurationError, match=r"cannot read the items of .*i\.csv\.gz: it was cut"):
        items_of(shop)


def test_names_of_the_site_file_may_be_fewer_than_the_columns_of_the_file(make_small):
    shop = make_small(items={"path": "raw/i.dat", "columns": SMALL, "separator": "|", "header": ["id", "name"]})
    (shop.home / "raw/i.dat").write_text("a|x|1|2\nb|y|3|4\n")
    assert items_of(shop) == {"a": "x", "b": "y"}


def test_a_site_without_a_side_table_knows_its_items_from_the_log(small):
    small.deliver("2026-03-01", row(1, "a"))
    small.deliver("2026-03-02", row(2, "a"), row(2, "b"))
    update(small, DAY_1, DAY_2)
    assert known(small, DAY_1) == {"a": DAY_1}
    assert known(small, DAY_2) == {"a": DAY_1, "b": DAY_2}


def test_a_day_without_a_change_has_no_snapshot(small):
    for day in (1, 2, 3):
        small.deliver(f"2026-03-0{day}", row(day, "b" if day == 3 else "a"))
    update(small, DAY_1, DAY_2, DAY_3)
    assert snapshots(small) == [DAY_1, DAY_3]
    version = small.store.version(ITEMS)
    update(small, DAY_2, DAY_3)
    assert small.store.version(ITEMS) == version


def test_a_new_price_is_a_new_snapshot(shop):
    for day, price in ((DAY_1, 1), (DAY_2, 2)):
        tell_items(shop, day, f"a;;;{price};")
        shop.deliver(str(day), row(day.day, "a"))
    update(shop, DAY_1, DAY_2)
    assert [latest_items(shop.store, day)["price"].item() for day in (DAY_1, DAY_2, DAY_3)] == [1, 2, 2]


def test_before_the_first_snapshot_nothing_is_known(small):
    assert latest_items(small.store, DAY_1).is_empty()
    small.deliver("2026-03-02", row(2, "a"))
    update(small, DAY_2)
    assert latest_items(small.store, DAY_1).is_empty()


@pytest.mark.parametrize("order", [(DAY_3, DAY_1, DAY_2)])
@pytest.mark.parametrize("kind", ["small", "shop"])
def test_the_order_of_days_does_not_matter(request, kind, order):
    site = request.getfixturevalue(kind)
    for day, items in ((DAY_1, "ab"), (DAY_2, "bc"), (DAY_3, "ad")):
        tell_items(site, day, f"x;;;{day.day};", "a;;;;")
        site.deliver(str(day), *(row(day.day, item) for item in items))
    update(site, *order)
    extra = {"x": None} if kind == "shop" else {}
    assert known(site, DAY_1) == {"a": DAY_1, "b": DAY_1} | extra
    assert known(site, DAY_2) == {"a": DAY_1, "b": DAY_1, "c": DAY_2} | extra
    assert known(site, DAY_3) == {"a": DAY_1, "b": DAY_1, "c": DAY_2, "d": DAY_3} | extra
    if kind == "shop":
        told = latest_items(site.store, DAY_2).filter(pl.col("item_id") == "x")
        assert told["price"].item() == 2


def test_a_missing_side_table_is_named(shop):
    shop.deliver("2026-03-01", row(1, "a"))
    with pytest.raises(ConfigurationError, match=r"no file matches .*items-2026-03-01\.csv \(items\.path\)"):
        update(shop, DAY_1)


@pytest.mark.parametrize(
    ("header", "said"), [("id;name", r"has no column 'kind' .*; it has id, name"), ("", "cannot read")]
)
def test_a_side_table_that_is_not_as_it_should_be_is_refused(shop, header, said):
    shop.deliver("2026-03-01", row(1, "a"))
    tell_items(shop, DAY_1, header=header)
    with pytest.raises(ConfigurationError, match=said):
        update(shop, DAY_1)


def test_late_rows_correct_the_catalogue_of_their_own_day(make_small):
    shop = make_small()
    shop.deliver("2026-03-01", row(1, "a"))
    shop.deliver("2026-03-02", row(1, "b"), row(2, "a"))
    update(shop, DAY_1, DAY_2)
    assert known(shop, DAY_1) == {"a": DAY_1, "b": DAY_1}
    first = shop.table(ITEMS)
    update(shop, DAY_1)
    assert shop.table(ITEMS).equals(first)
