"""What holds of every exporter: what comes out at the other end is what was sent; readers there see whole releases."""

import json
from pathlib import Path

import polars as pl
import pytest

from pipeline.errors import ConfigurationError, RetryableError
from pipeline.publish import Store
from pipeline.tables import SITE
from serving_export import parcel as parcels
from serving_export.exporters import EXPORTERS, csv
from serving_export.parcel import Parcel, pack
from serving_export.reader import Recommendations, bucket_of, nested
from serving_export.tables import RECOMMENDATIONS

ODD_IDS = [
    'it\'s "quoted"',
    "a,b;c\td",
    "two\nlines\r\n",
    "🦜 emoji",
    "ü" * 10_000,
    " spaces ",
    "\\N",
    "%27/../x",
    "'; DROP",
]
SERVICES = {"redis": "redis_server", "rediss": None, "postgresql": "postgresql_server"}
FACTS = {"model_version": "3", "run_id": "r", "data_through": "2026-03-04", "generated_at": "2026-03-05T04:00:00+00:00"}
FILES = [name for name in EXPORTERS if name not in SERVICES]
RUN = [*FILES, *(pytest.param(name, marks=pytest.mark.services) for name, server in SERVICES.items() if server)]


def store_with(folder, users: list[str], length: int = 3) -> Store:
    """A store with one release: `length` items in `home`, two in `email`, odd ids."""
    store = Store(str(folder))
    site = {"name": "small", "buckets": 2, "user_id_secret": None}
    store.replace(SITE, pl.DataFrame([site], schema=dict(SITE.columns)), {})
    publish(store, users, length)
    return store


def publish(store: Store, users: list[str], length: int = 3) -> None:
    rows = [
        {"user_bucket": bucket_of(user, 2), "user_id": user, "channel": channel, "rank": rank, "score": 1 / rank}
        | {
            "item_id": f"{rank} {user}"[:50],
            "source": "model",
            "because": user if rank == 1 else None,
            "session_id": "s",
        }
        for user in users
        for channel, size in (("home", length), ("email", 2))
        for rank in range(1, size + 1)
    ]
    frame = pl.DataFrame(rows, schema=dict(RECOMMENDATIONS.columns))
    facts = FACTS | {"valid_until": "2999-01-01T00:00:00+00:00", "quality": '{"home": {}, "email": {}}'}
    store.replace(RECOMMENDATIONS, frame, {"user_bucket": [0, 1]}, facts)


@pytest.fixture
def store(tmp_path) -> Store:
    return store_with(tmp_path / "store", ODD_IDS)


@pytest.fixture
def target(request, tmp_path):
    """Where an exporter sends to."""

    def address(name: str) -> str:
        service = SERVICES.get(name)
        return request.getfixturevalue(service) if service else str(tmp_path / "out" / f"lists.{name}")

    return address


def from_json(frame: pl.DataFrame) -> pl.DataFrame:
    item = pl.Struct({"item_id": pl.String, "score": pl.Float64, "source": pl.String, "because": pl.String})
    return frame.with_columns(pl.col("items").str.json_decode(pl.List(item))) if "items" in frame else frame


def read_csv(address: str, parcel: Parcel) -> pl.DataFrame:
    types = {name: kind for name, kind in RECOMMENDATIONS.columns.items() if name in parcel.columns}
    return from_json(pl.read_csv(address, schema_overrides=types | {"model_version": pl.String}))


def read_jsonl(address: str, parcel: Parcel) -> pl.DataFrame:
    return pl.read_ndjson(address, infer_schema_length=None)


def read_redis(address: str, parcel: Parcel) -> pl.DataFrame:
    import redis

    server, rows, facts = redis.Redis.from_url(address, decode_responses=True), [], {}
    for channel in parcel.channels:
        generation = server.get(f"nightjar:{parcel.site}:{channel}:current")
        found = server.hgetall(f"nightjar:{parcel.site}:{channel}:{generation}")
        facts = json.loads(server.get(f"nightjar:{parcel.site}:{channel}:{generation}:facts"))
        rows += [{"user_id": user, "channel": channel, **json.loads(told), **facts} for user, told in found.items()]
    return pl.DataFrame(rows, infer_schema_length=None)


def read_postgresql(address: str, parcel: Parcel) -> pl.DataFrame:
    import psycopg

    name = "recommendations" if parcel.is_whole else f"recommendations_{parcel.channels[0]}"
    view = f"nightjar_{parcel.site}.{name}{'_nested' if parcel.form == 'nested' else ''}"
    with psycopg.connect(address) as connection:
        cursor = connection.execute(f"SELECT * FROM {view}")
        return pl.DataFrame(cursor.fetchall(), schema=[c.name for c in cursor.description], orient="row")


READ_BACK = {
    "parquet": lambda address, parcel: pl.read_parquet(address),
    "jsonl": read_jsonl,
    "csv": read_csv,
    "redis": read_redis,
    "rediss": read_redis,
    "postgresql": read_postgresql,
}


def in_order(frame: pl.DataFrame, parcel: Parcel) -> list[dict]:
    is_nested = "items" in frame.columns
    flat = frame.explode("items").unnest("items") if is_nested else frame
    rank = pl.int_range(1, pl.len() + 1).over("user_id", "channel")
    flat = flat.with_columns(rank=rank) if is_nested else flat
    columns = ["user_id", "channel", "rank", "item_id", "score", "source", "because", "session_id"]
    return (
        flat.with_columns(pl.col("score").cast(pl.Float64))
        .select(columns)
        .sort("user_id", "channel", "rank")
        .to_dicts()
    )


def test_every_exporter_can_be_read_back():
    assert set(READ_BACK) == set(EXPORTERS)


@pytest.mark.parametrize("form", ["rows", "nested"])
@pytest.mark.parametrize("name", RUN)
def test_what_is_sent_comes_back(store, target, name, form, monkeypatch):
    monkeypatch.setattr(parcels, "ROWS_AT_ONCE", 4)  # several parts a file
    parcel = pack("small", Recommendations(store.root), None, form)
    EXPORTERS[name](parcel, target(name))
    back = READ_BACK[name](target(name), parcel)
    assert in_order(back, parcel) == in_order(parcel.lists.rows().collect(), parcel)
    assert set(back["data_through"]) == {"2026-03-04"}
    assert set(back["channel"]) == {"home", "email"}


@pytest.mark.parametrize("name", RUN)
def test_a_second_release_replaces_the_first(store, target, name):
    EXPORTERS[name](pack("small", Recommendations(store.root), None, "nested"), target(name))
    publish(store, ["only one"], 1)
    parcel = pack("small", Recommendations(store.root), None, "nested")
    EXPORTERS[name](parcel, target(name))
    assert set(READ_BACK[name](target(name), parcel)["user_id"]) == {"only one"}


@pytest.mark.parametrize("name", RUN)
def test_one_channel_alone(store, target, name):
    parcel = pack("small", Recommendations(store.root), "email", "rows")
    EXPORTERS[name](parcel, target(name))
    back = READ_BACK[name](target(name), parcel)
    assert set(back["channel"]) == {"email"}
    assert len(in_order(back, parcel)) == 2 * len(ODD_IDS)


class Interrupted(Parcel):
    """A parcel whose sender dies half-way."""

    def flat_parts(self):
        yield next(super().flat_parts())
        raise KeyboardInterrupt


@pytest.mark.parametrize("name", RUN)
def test_a_killed_send_leaves_the_former_lists_and_the_next_one_works(store, target, name, monkeypatch):
    monkeypatch.setattr(parcels, "ROWS_AT_ONCE", 4)
    whole = pack("small", Recommendations(store.root), None, "nested")
    EXPORTERS[name](whole, target(name))
    before = in_order(READ_BACK[name](target(name), whole), whole)
    publish(store, ["other", "users"])
    lists = Recommendations(store.root)
    with pytest.raises(KeyboardInterrupt):
        EXPORTERS[name](Interrupted("small", lists, ("email", "home"), "nested"), target(name))
    assert in_order(READ_BACK[name](target(name), whole), whole) == before
    EXPORTERS[name](pack("small", lists, None, "nested"), target(name))
    assert set(READ_BACK[name](target(name), whole)["user_id"]) == {"other", "users"}
    assert leftovers(name, target(name)) == []


def leftovers(name: str, address: str) -> list[str]:
    """What is left of former or killed sends, and will not go by itself."""
    if name == "redis":
        import redis

        server = redis.Redis.from_url(address, decode_responses=True)
        current = {server.get(key) for key in server.keys("*:current")}
        kept = [key for key in server.keys("nightjar:*") if server.ttl(key) < 0]
        return [key for key in kept if key.split(":")[3] not in {*current, "current", "generations"}]
    if name == "postgresql":
        import psycopg

        with psycopg.connect(address) as connection:
            shown = "SELECT tablename FROM pg_tables WHERE tablename LIKE 'recommendations_nested__%'"
            return [table for (table,) in connection.execute(shown).fetchall()][1:]
    return [file.name for file in Path(address).parent.iterdir() if file.name != Path(address).name]


@pytest.mark.parametrize("name", FILES)
def test_a_release_of_nobody_is_a_file_without_rows(store, target, name):
    publish(store, [])
    EXPORTERS[name](pack("small", Recommendations(store.root), None, "rows"), target(name))
    assert name != "csv" or Path(target(name)).read_text().startswith('"user_id","channel","rank"')
    assert name != "parquet" or pl.read_parquet(target(name)).is_empty()


FORMULAS = ["=cmd|' /C calc'!A0", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1", "'=1", "''+1"]
TEXT = ["plain", "-0.23", "+1e5", ".5", "a=b", "'", "x@y"]


@pytest.mark.parametrize("form", ["rows", "nested"])
def test_a_guarded_csv_holds_no_formula_harms_no_number_and_can_be_restored(store, tmp_path, form):
    publish(store, FORMULAS + TEXT)
    file = str(tmp_path / "lists.csv")
    parcel = pack("small", Recommendations(store.root), None, form)
    csv.send(parcel, file)
    plain = pl.read_csv(file, infer_schema=False)
    csv.send(parcel, file, guard_formulas=True)
    guarded = pl.read_csv(file, infer_schema=False)
    assert set(guarded["user_id"]) == {f"'{user}" for user in FORMULAS} | set(TEXT)
    restored = guarded.with_columns(pl.all().str.replace(r"^'('*[=+\-@\t\r\n＝＋－＠])", "$1"))
    assert restored.equals(plain)
    if form == "rows":
        assert guarded.select("rank", "score").equals(plain.select("rank", "score"))


@pytest.mark.services
def test_grants_and_views_of_readers_outlive_a_release(store, target):
    import psycopg

    address = target("postgresql")
    EXPORTERS["postgresql"](pack("small", Recommendations(store.root), None, "rows"), address)
    with psycopg.connect(address) as connection:
        connection.execute("CREATE ROLE reader")
        connection.execute("GRANT USAGE ON SCHEMA nightjar_small TO reader")
        connection.execute("GRANT SELECT ON nightjar_small.recommendations TO reader")
        connection.execute("CREATE VIEW best AS SELECT * FROM nightjar_small.recommendations WHERE rank = 1")
    publish(store, ["someone"])
    EXPORTERS["postgresql"](pack("small", Recommendations(store.root), None, "rows"), address)
    with psycopg.connect(address) as connection:
        connection.execute("SET ROLE reader")
        count = connection.execute("SELECT count(*) FROM nightjar_small.recommendations").fetchone()[0]
        assert count == 5
        connection.execute("RESET ROLE")
        assert connection.execute("SELECT count(*) FROM best").fetchone()[0] == 2


@pytest.mark.services
def test_two_senders_at_once(store, target):
    import psycopg

    with psycopg.connect(target("postgresql"), autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(hashtext('nightjar_small.recommendations'))")
        with pytest.raises(RetryableError, match=r"another `nightjar send` is filling nightjar_small.recommendations"):
            EXPORTERS["postgresql"](pack("small", Recommendations(store.root), None, "rows"), target("postgresql"))


@pytest.mark.services
def test_an_id_that_postgresql_cannot_hold_is_told(store, target):
    publish(store, ["a\0b"])
    with pytest.raises(ConfigurationError, match=r"cannot hold these lists: .*0x00") as told:
        EXPORTERS["postgresql"](pack("small", Recommendations(store.root), None, "rows"), target("postgresql"))
    assert "pa55word" not in str(told.value)


@pytest.mark.parametrize("name", ["redis", "postgresql"])
def test_a_server_that_does_not_answer_is_told_without_its_password(store, name):
    with pytest.raises(RetryableError, match=rf"cannot send to {name}://127.0.0.1:1/0: .*former lists") as told:
        EXPORTERS[name](pack("small", Recommendations(store.root), None, "rows"), f"{name}://me:pa55word@127.0.0.1:1/0")
    assert "pa55word" not in str(told.value)


def test_the_command_sends_and_says_what(released, command, tmp_path, monkeypatch):
    file = tmp_path / "out.jsonl"
    code, out, err = command(released.home, "send", "--site", released.file, "--to", file, "--form", "nested")
    assert code == 0, err
    told = json.loads(out)
    assert (told["to"], told["channels"], told["table_version"]) == (str(file), ["home"], 1)
    twin = nested(Recommendations(released.store.root).channel("home")).collect()
    assert pl.read_ndjson(file).select(twin.columns).sort("user_id").equals(twin.sort("user_id"))
    monkeypatch.setenv("LISTS_URL", "redis://:pa55word@127.0.0.1:1/0")
    code, out, err = command(released.home, "send", "--site", released.file, "--to-from", "LISTS_URL")
    assert (code, out) == (1, "")
    assert "pa55word" not in err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give --to ADDRESS, or --to-from VARIABLE"),
        (["--to-from", "NO_SUCH_VARIABLE"], "the environment variable NO_SUCH_VARIABLE is empty"),
        (["--to", "postgresql://me:pa55word@db/x"], "postgresql://db/x was given with a password"),
        (["--to", "lists.xls"], "cannot be sent to lists.xls"),
        (["--to", "ftp://host/lists"], "cannot be sent to ftp://host/lists"),
        (["--to", "lists.jsonl", "--guard-formulas"], "--guard-formulas is for csv files; lists.jsonl is none"),
        (["--to", "x.csv", "--channel", "hoem"], "no lists for the channel 'hoem'; there are home"),
        (["--to", "x.csv", "--version", "77"], "has no version 77"),
    ],
    ids=["no address", "empty variable", "password", "ending", "scheme", "guard", "channel", "version"],
)
def test_wrong_use_is_told(released, command, arguments, sentence):
    code, out, err = command(released.home, "send", "--site", released.file, *arguments)
    assert (code, out) == (2, "")
    assert sentence in err
    assert "pa55word" not in err
