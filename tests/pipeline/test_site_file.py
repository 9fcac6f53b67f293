import copy
from datetime import date, datetime
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest
import yaml
from pydantic import BaseModel

from dags.site_files import read_site_files
from nightjar import Site
from pipeline.errors import ConfigurationError
from pipeline.settings import RESERVED, PipelineSite, time_zones
from pipeline.site_file import candidates, check_content, load_site
from pipeline.site_yaml import parse
from pipeline.tables import REJECTED, events_table, sessions_table

CONF = Path(__file__).parents[2] / "conf"
GOOD = """
name: shop
store: store/shop
source:
  events: raw/{date}.csv
  columns: {user_id: user, item_id: item, occurred_at: time}
"""


def load(tmp_path: Path, text: str, model: type[PipelineSite] = Site) -> PipelineSite:
    path = tmp_path / "shop.yaml"
    path.write_text(text)
    return load_site(path, model, tmp_path)


def fault(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigurationError) as error:
        load(tmp_path, text)
    assert "shop.yaml" in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_site_file_of_ours_loads(path, tmp_path):
    site = load_site(path, Site, tmp_path)
    assert site.name == path.stem
    assert site.resolve("raw/x.csv") == str(tmp_path / "raw/x.csv")
    assert site.resolve("s3://bucket/x.csv") == "s3://bucket/x.csv"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"cannot read the site file .*none\.yaml: No such file.*--site"):
        load_site(tmp_path / "none.yaml", Site, tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: [1", "no YAML"),
        (b"- a\n- b\n", "must hold `key: value`"),
        (b"", "must hold"),
        (b"\xff\xfe\x00", "cannot read"),
    ],
)
def test_what_is_no_site_file_is_said_so(tmp_path, content, said):
    path = tmp_path / "shop.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=said):
        load_site(path, Site, tmp_path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("time_zoen: UTC", "time_zoen: unknown key; did you mean `time_zone`?"),
        ("sessions: {gapp: 30m}", "sessions.gapp: unknown key; did you mean `gap`?"),
        (
            "items: {path: x.csv, columns: {item_id: i, titel: t}}",
            "items.columns.titel: unknown key; did you mean `title`?",
        ),
        ("sessions: {zzzz: 1}", "sessions.zzzz: unknown key; known keys: gap, max_events, max_duration"),
    ],
)
def test_a_misspelt_key_is_named_with_the_nearest_right_one(tmp_path, line, said):
    assert said in fault(tmp_path, GOOD + line)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("buckets: many", "buckets: Input should be a valid integer"),
        ("buckets: 0", "buckets: Input should be greater than or equal to 1"),
        ("sessions: {gap: soon}", "sessions.gap: 'soon' is no duration; write a number and a unit, like 30m"),
        ("sessions: {gap: 30}", "sessions.gap: 30 is no duration"),
        ("sessions: {max_duration: 25h}", "sessions.max_duration: a session lasts longer than 0s and at most 24h"),
        ("sessions: {max_duration: 0s}", "sessions.max_duration: a session lasts longer than 0s"),
        ("time_zone: Mars/Base", "time_zone: 'Mars/Base' is no time zone"),
        ("home: /tmp", "set the environment variable NIGHTJAR_HOME"),
        ("items: {path: a.csv, columns: {item_id: i}, separator: ab}", "items.separator: 'ab' cannot separate columns"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(tmp_path, line, said):
    assert said in fault(tmp_path, GOOD + line)


def test_a_wrong_name_is_refused(tmp_path):
    assert "name: String should match pattern" in fault(tmp_path, GOOD.replace("name: shop", "name: Shop One"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("  time_unit: msec", "source.time_unit: 'msec' is no time unit; write s, ms, us, ns, iso"),
        ("  event_type: {constant: view, column: type}", "source.event_type: give either `constant` or `column`"),
        ("  context: [user_id]", "source.context: 'user_id' is the name of a column that nightjar makes"),
        ("  context: [device, device]", "source.context: 'device' stands 2 times"),
        ("  exclude: [{reason: bot, column: a, one_of: [b]}]", "'bot' is a reason of nightjar's own"),
        (
            "  exclude: [{reason: odd, column: a}]",
            "source.exclude.0: give one of one_of, matches, less_than, more_than",
        ),
        ("  exclude: [{reason: odd, column: a, less_than: 0, more_than: 9}]", "found less_than and more_than"),
        ("  exclude: [{reason: odd, column: a, one_of: []}]", "source.exclude.0.one_of: List should have at least 1"),
        ("  exclude: [{reason: odd, column: a, matches: '(?=b)'}]", "'(?=b)' is no regular expression: look-around"),
        ("  exclude: [{reason: odd, colum: a, one_of: [b]}]", "source.exclude.0.colum: unknown key; did you mean"),
        ("  lateness: 999999999999d", "source.lateness: '999999999999d' is no duration"),
    ],
)
def test_a_wrong_value_of_the_source_is_named_with_its_place(tmp_path, line, said):
    assert said in fault(tmp_path, GOOD + line)


def test_all_faults_are_told_at_once(tmp_path):
    message = fault(tmp_path, GOOD + "time_zoen: UTC\nbuckets: many")
    assert "time_zoen" in message
    assert "buckets" in message


def test_a_log_needs_a_user_or_a_session(tmp_path):
    assert "belong to nobody" in fault(tmp_path, GOOD.replace("user_id: user, ", ""))


def test_lateness_needs_a_delivery_day(tmp_path):
    undated = GOOD.replace("{date}", "all") + "  lateness: 2d"
    assert "source.lateness needs {date}" in fault(tmp_path, undated)


def test_no_column_of_ours_can_be_taken_by_the_log():
    ours = {name for table in (events_table([]), sessions_table([]), REJECTED) for name in table.columns}
    assert ours <= set(RESERVED)


def test_a_variable_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOP_STORE", "s3://bucket/shop")
    assert load(tmp_path, GOOD.replace("store/shop", "${SHOP_STORE}")).store == "s3://bucket/shop"


@pytest.mark.parametrize("value", [None, ""])
def test_a_variable_that_is_not_set_takes_its_default(tmp_path, monkeypatch, value):
    monkeypatch.delenv("SHOP_STORE", raising=False)
    if value is not None:
        monkeypatch.setenv("SHOP_STORE", value)
    assert load(tmp_path, GOOD.replace("store/shop", "${SHOP_STORE:-here}/x")).store == "here/x"


def test_a_variable_that_is_not_set_and_has_no_default_is_an_error(tmp_path, monkeypatch):
    monkeypatch.delenv("SHOP_STORE", raising=False)
    message = fault(tmp_path, GOOD.replace("store/shop", "${SHOP_STORE}"))
    assert "uses ${SHOP_STORE}, which is not set. Set it, or write ${SHOP_STORE:-default}" in message


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("store", GOOD.replace("store/shop", "s3://key:hush@bucket/shop")),
        ("store", GOOD.replace("store/shop", "s3://key:hu/sh@bucket/shop")),
        ("source.events", GOOD.replace("raw/{date}.csv", "https://host/{date}.csv?token=hush")),
        ("items.path", GOOD + "items: {path: 'sftp://me:hush@host/items.csv', columns: {item_id: id}}"),
    ],
)
def test_an_address_with_a_password_is_refused_since_tables_and_messages_hold_it(tmp_path, key, text):
    told = fault(tmp_path, text)
    assert f"{key}: " in told
    assert "holds a password" in told
    assert "hush" not in told
    assert "hu/sh" not in told


@pytest.mark.parametrize(
    "secret", ["*hush", "!hush", "a: b: hush", '"hush', "{hush", "x, y: [\n  *hush", "%hush", "'hush' x"]
)
def test_a_variable_that_breaks_the_yaml_is_not_shown(tmp_path, monkeypatch, secret):
    monkeypatch.setenv("SHOP_SECRET", secret)
    told = fault(tmp_path, GOOD + "schedule: {alerts: [{notifier: a.B, arguments: {token: ${SHOP_SECRET}}}]}\n")
    assert "no YAML" in told or "not a valid" in told
    assert "hush" not in told


def test_a_fault_of_the_yaml_itself_is_told_with_its_place(tmp_path):
    assert "found undefined alias (line 3, column 8)" in fault(tmp_path, "\nname: shop\nstore: *shop\n")


# YAML that is meant to break the reader


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in pairwise("abcdef")
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"intents: {nested(3_000)}\n", "line 7: it is nested deeper than 50 levels"),
        (f"intents: {nested(100_000)}\n", "line 7: it is nested deeper than 50 levels"),
        ("\n".join(" " * n + "a:" for n in range(200)), "nested deeper than 50 levels"),
        ("buckets: 2\nbuckets: 3\n", "line 8: the key `buckets` stands twice, first on line 7"),
        ("sessions: {gap: 1m, max_events: 9, gap: 2m}\n", "line 7: the key `gap` stands twice"),
        (BOMB, "holds more than 100,000 values, aliases expanded"),
        ("intents: &i [*i]\n", "line 7: the alias *i stands inside of what it names"),
        ("intents: 2026-99-99\n", "line 7: '2026-99-99' is no timestamp"),
        ("buckets: " + "9" * 5_000, "line 7: '9999999999999999999999999999999999999999' is no int"),
        ("buckets: !!bool x", "line 7: 'x' is no bool"),
        ("buckets: !!timestamp x", "line 7: 'x' is no timestamp"),
        ("buckets: !!python/object:os.system x", "line 7: could not determine a constructor"),
        ("# " + "x" * 1_000_000, "it is larger than 1,000,000 bytes"),
    ],
    ids=range(13),
)
def test_yaml_that_would_break_a_reader_is_refused_with_its_line(tmp_path, text, said):
    message = fault(tmp_path, GOOD + text)
    assert said in message
    assert len(message) < 500
    for name, content in {"bad": GOOD + text, "good": "name: good\n"}.items():
        (tmp_path / f"{name}.yaml").write_text(content)
    (tmp_path / "shop.yaml").unlink()
    found = read_site_files(tmp_path)  # as Airflow reads them: in a process that must not end
    assert [site.name for site in found.sites.values()] == ["good"]
    assert said in found.faults[tmp_path / "bad.yaml"]


def test_a_key_may_replace_one_that_a_merge_brings():
    merged = "export: {channels: {a: &a {top_n: 3}, b: {<<: *a, top_n: 4}}}\n"
    assert parse(merged, merged)["export"]["channels"]["b"] == {"top_n": 4}


# Every key with odd values


ODD = [None, True, -1, 10**30, 1.5, float("nan"), "", " ", "\0", "é", "ab" * 5_000, "9" * 30, "0001-01-01", "900000d"]
ODD += ["foo://", "s3:/", "s3://", "{date}{", "../..", "%", "[", "(?P<", date(9999, 12, 31), [], [None], [[]], {}]
ODD += [{"a": {}}, {1: 2}, {None: None}, ["a", "a"], "Europe", "localtime", "Factory", "UTC\n", "off", "1e400"]


def places(model: type[BaseModel], before: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The path of every key that a site file may have."""
    found = []
    for name, field in model.model_fields.items():
        sections = [kind for kind in candidates(field.annotation) if hasattr(kind, "model_fields")]
        found.append((*before, name))
        for section in sections if len(before) < 3 else []:
            found += places(section, (*before, name))
    return list(dict.fromkeys(found))


def test_an_odd_value_of_any_key_is_taken_or_refused_with_the_keys_name(tmp_path):
    whole = yaml.safe_load(GOOD)
    path = tmp_path / "shop.yaml"
    wrong = []
    for place in places(Site):
        for value in ODD:
            content = copy.deepcopy(whole)
            section = content
            for key in place[:-1]:
                if not isinstance(section.get(key), dict):
                    section[key] = {}
                section = section[key]
            section[place[-1]] = value
            try:
                check_content(content, path, Site, tmp_path)
            except ConfigurationError as error:
                if place[0] not in str(error) and place[-1].removesuffix("s") not in str(error):
                    wrong.append((place, value, str(error)))
            except Exception as error:
                wrong.append((place, value, repr(error)))
    assert wrong == []


@pytest.mark.parametrize("zone", ["Europe", "localtime", "Factory", "posix/UTC", "../UTC", "/etc/passwd", "UTC "])
def test_what_polars_would_not_take_for_a_time_zone_is_refused(tmp_path, zone):
    assert f"time_zone: {zone!r} is no time zone" in fault(tmp_path, GOOD + f"time_zone: '{zone}'\n")


def test_every_time_zone_that_is_taken_is_one_of_polars():
    for zone in time_zones():
        pl.Series([datetime(2026, 3, 1)]).dt.replace_time_zone(zone)  # noqa: DTZ001


@pytest.mark.parametrize("store", ["foo://", "foo://a/b", "s3://", "s3:/bucket", "http://host/store", "memory://a"])
def test_an_address_that_is_no_object_store_is_refused(tmp_path, store):
    assert f"store: {store!r} is no address of a store" in fault(tmp_path, GOOD.replace("store/shop", store))


def test_a_duration_that_leads_out_of_the_calendar_is_refused(tmp_path):
    assert "source.lateness: '900000d' is too long; write at most 100000d" in fault(
        tmp_path, GOOD + "  lateness: 900000d"
    )
