"""No form of an address, well-formed or not, is shown with its password."""

import pytest

from pipeline.addresses import holds_password, redacted, shown, split_login


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("postgresql://me:hush@db:5432/lists", "postgresql://db:5432/lists"),
        ("postgresql://me:%68ush@db/lists", "postgresql://db/lists"),
        ("postgresql://a:1,b:2/lists?password=hush", "postgresql://a:1,b:2/lists?…"),
        ("postgresql:///lists?host=/run&password=hush", "postgresql:///lists?…"),
        ("redis://:hush@[::1]:6379/0", "redis://[::1]:6379/0"),
        ("redis://:hush@cache/0#hush", "redis://cache/0?…"),
        ("redis://:hush/hush@cache/0", "redis://…"),
        ("redis://:12/hush@cache/0", "redis://…"),
        ("redis://:12#hush@cache/0", "redis://…"),
        ("redis://:hush@hush@cache/0", "redis://…"),
        ("redis://:hush@[cache/0", "redis://…"),
        ("simplecache::s3://key:hush@bucket/x", "…"),
        ("s3://key:hush/hush@bucket/x.csv", "s3://…"),
        ("https://host/x.csv?X-Amz-Signature=hush", "https://host/x.csv?…"),
        ("redis:/:hush@cache", "…"),
        ("me:hush@cache/x.csv", "…"),
        ("host=db password = 'hu sh'", "…"),
        ("host=db passwd=hush", "…"),
    ],
)
def test_a_password_is_not_shown(address, text):
    assert shown(address) == text
    assert holds_password(address)


@pytest.mark.parametrize(
    "address",
    [
        "out/date=2026-03-01/lists at 04:00.csv",
        "s3://bucket/users@home/lists.csv",
        "redis://cache:6379/0",
        "postgresql:///lists",
        "sqlite:////home/me@work/mlflow.db",
    ],
)
def test_an_address_without_a_password_is_shown_as_it_is(address):
    assert shown(address) == address
    assert not holds_password(address)


def test_files_that_hold_a_key_are_no_passwords():
    assert not holds_password("postgresql://db/lists?passfile=/run/pgpass&sslkey=/run/key.pem")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unknown command 'AUTH', with args beginning with: 'hush'", "redis://:hush@cache"),
        ("unknown command 'AUTH', with args beginning with: 'hu@sh'", "redis://:hu%40sh@cache"),
        ("cannot resolve sh@cache, port hu", "redis://:hu/sh@cache"),
        ('missing "=" after "hush"', "host=db password='hush'"),
    ],
)
def test_what_a_driver_says_is_shown_without_the_password_of_its_address(text, address):
    cleaned = redacted(text, address)
    assert not any(part in cleaned for part in ("hu@sh", "hush", "sh@", "port hu"))


@pytest.mark.parametrize(
    "text",
    [
        "API request to http://me:hush@host:5000/api failed",
        "Invalid url: http://me:hu/sh-hush@host/api",
        "Could not parse 'postgresql+psycopg://me:hush@host/db'",
        "GET https://store/x?sv=1&sig=hush gave 403",
        "password=hush is wrong",
    ],
)
def test_a_password_in_any_url_of_a_message_is_hidden(text):
    assert "hush" not in redacted(text)
    assert redacted(text).split()[0] == text.split()[0].replace("=hush", "=…")


def test_a_message_without_a_password_stays_as_it_is():
    text = "see http://127.0.0.1:8080/dags, write to me@work, date=2026-03-01: 'a@b:c' has no key"
    assert redacted(text) == text


def test_a_login_is_split_from_its_address():
    assert split_login("http://me:hu%2Fsh@host:5000/x") == ("http://host:5000/x", "me", "hu/sh")
    assert split_login("http://host:5000") == ("http://host:5000", "", "")
    with pytest.raises(ValueError, match=r"^http://… is ambiguous$"):
        split_login("http://me:hu/sh@host")
