"""Which requests may ask a server that listens on loopback: those that name this machine, and no website's name.

A website whose name is made to mean 127.0.0.1 (DNS rebinding) could otherwise read histories from a visitor's browser.
"""

import re
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address

from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline.errors import ConfigurationError
from serving_export.online.limits import fault

AUTHORITY = re.compile(r"(\[(?P<address>[^\[\]]+)\]|(?P<name>[^:\[\]]+))(:\d*)?")
"""A host with or without a port."""


class LoopbackNames:
    """Refuses requests whose Host header is neither a name of loopback nor the one that the server was started with."""

    def __init__(self, app: ASGIApp, host: str) -> None:
        self.app, self.host = app, plain_name(host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what asks for this machine."""
        if scope["type"] == "http":
            told = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
            if len(told) != 1 or not (plain_name(told[0]) == self.host or names_loopback(told[0])):
                refused = fault(400, "this server listens on loopback: ask for it as localhost, not by another name")
                await refused(scope, receive, send)
                return
        await self.app(scope, receive, send)


def listens_on_loopback(host: str, port: int) -> bool:
    """Whether only this machine reaches a server that binds `host`; raises ConfigurationError if it means nothing."""
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(
            f"cannot listen at the host {host!r}: {getattr(error, 'strerror', None) or error}. Give --host a name or "
            "an address of this machine"
        ) from error
    return all(is_loopback(ip_address(str(address[0]))) for *_, address in found)


def names_loopback(authority: str) -> bool:
    """Whether a Host header names loopback: localhost, or an address however it is written, with or without a port."""
    name = plain_name(authority)
    if name == "localhost" or name.endswith(".localhost"):
        return True
    address = parse_address(name)
    return address is not None and is_loopback(address)


def plain_name(authority: str) -> str:
    """A host in small letters, without its port, brackets and the dot at its end."""
    parts = AUTHORITY.fullmatch(authority.strip())
    name = (parts["address"] or parts["name"]) if parts else authority
    return name.lower().removesuffix(".")


def parse_address(name: str) -> IPv4Address | IPv6Address | None:
    """The address that a text stands for, also in the short forms of IPv4 (`127.1`, `0x7f.1`); None for a name."""
    try:
        return ip_address(name)
    except ValueError:
        pass
    if not name or not all(part.isalnum() and part.isascii() and part[0].isdigit() for part in name.split(".")):
        return None
    try:
        return IPv4Address(socket.inet_aton(name))
    except OSError:
        return None


def is_loopback(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address reaches this machine only; an IPv4 one may be mapped into IPv6."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback
