from pathlib import Path

import pytest

from nightjar import Site
from pipeline.errors import ConfigurationError
from pipeline.settings import RESERVED, PipelineSite
from pipeline.site_file import load_site
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
