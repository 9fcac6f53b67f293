"""Show an address, or what a driver says about one, without its password.

An address is a path, or `scheme://user:password@host:port/path?name=value`. What does not have that form is not shown
at all: a password with an unescaped `/` or `#` reads like a host, a port or a path.
"""

import re
from urllib.parse import unquote

HIDDEN = "…"
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,30}(?=://)")
HOST = r"(?:[\w.%*-]*|\[[0-9A-Fa-f:.%]*\])(?::\d*)?"
URL = re.compile(
    rf"(?P<scheme>{SCHEME.pattern})://(?P<user>[^/?#@]*@)?(?P<host>{HOST}(?:,{HOST})*)(?P<path>/[^?#]*)?(?P<rest>[?#].*)?",
    re.DOTALL,
)
USER_AND_PASSWORD = re.compile(r"(?://)?(?P<user>[^@:]*):(?P<password>.*)@", re.DOTALL)
SECRET_NAME = (
    r"(?:\w*(?:pass(?!file)|pwd|secret|token|credential|signature|(?:access|account|api|client|server)_?key)\w*|sig)"
)
SECRET_VALUE = re.compile(
    rf"(?<![\w-])(?P<name>(?:[\w-]*-)?{SECRET_NAME})\s*=\s*(?P<value>'(?:[^'\\]|\\.)*'|[^\s&;]+)", re.IGNORECASE
)
URL_USER = re.compile(r"(?<=://)(?:[^\s/?#@]*|[^\s:@]*:\S*)@")


def shown(address: str) -> str:
    """An address as it may be printed: no user, password or query, and only the scheme of one that is ambiguous."""
    if "://" not in address:
        return HIDDEN if holds_password(address) else address
    parts = URL.fullmatch(address)
    if parts is None or is_ambiguous(parts):
        return scheme_of(address)
    query = f"?{HIDDEN}" if parts["rest"] else ""
    return f"{parts['scheme']}://{parts['host']}{parts['path'] or ''}{query}"


def scheme_of(address: str) -> str:
    """What is shown of an address that cannot be read: `redis://…`."""
    scheme = SCHEME.match(address)
    return f"{scheme[0]}://{HIDDEN}" if scheme else HIDDEN


def is_ambiguous(parts: re.Match[str]) -> bool:
    """Whether the host and port may be the user and the beginning of a password: `redis://:12/34@cache`."""
    later = (parts["path"] or "") + (parts["rest"] or "")
    return "@" in later and (bool(parts["user"]) or ":" in parts["host"])


def holds_password(address: str) -> bool:
    """Whether an address, well-formed or not, or a `name=value` list holds what looks like a password."""
    return bool(secrets_of(address))


def secrets_of(address: str) -> set[str]:
    """The passwords in an address, as they are written, as they are decoded, and in the parts that a parser may see."""
    found = {match["value"].strip("'") for text in (address, unquote(address)) for match in SECRET_VALUE.finditer(text)}
    if with_user := USER_AND_PASSWORD.match(address.partition("://")[2] or address):
        found |= {with_user["password"], *re.split(r"[/?#@:]", with_user["password"])}
    return {text for secret in found for text in (secret, unquote(secret)) if text}


def split_login(address: str) -> tuple[str, str, str]:
    """An address without its user and password, and these two, decoded. Raises ValueError for an ambiguous address."""
    parts = URL.fullmatch(address)
    if parts is None or is_ambiguous(parts):
        raise ValueError(f"{scheme_of(address)} is ambiguous")
    login = parts["user"] or ""
    user, _, password = login.removesuffix("@").partition(":")
    return address.replace(login, "", 1) if login else address, unquote(user), unquote(password)


def redacted(text: str, *addresses: str) -> str:
    """A driver's message without the passwords of these addresses, and without users and passwords in any URL."""
    for secret in sorted({secret for address in addresses for secret in secrets_of(address)}, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    text = SECRET_VALUE.sub(lambda match: f"{match['name']}={HIDDEN}", text)
    return URL_USER.sub(f"{HIDDEN}@", text)
