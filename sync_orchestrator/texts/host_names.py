"""Reads the host names of requests and settings: ``Host`` and ``Origin`` headers, and lists of allowed hosts.

A web page can reach a service on this machine under a name of its own choice, because it controls what that name
resolves to (DNS rebinding). The browser sends that name in ``Host``, so a list of allowed names stops it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

MAX_HOST_CHARACTERS = 270

_HOST = re.compile(
    r"(?:\[(?P<address>[0-9a-f:.]{2,45})\]|(?P<name>[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*)\.?)"
    r"(?::(?P<port>[0-9]{1,5}))?",
    re.IGNORECASE | re.ASCII,
)
_DEFAULT_PORTS = {"http": 80, "https": 443}


class InvalidHost(ValueError):
    """A ``Host`` header that names no single host."""


@dataclass(frozen=True)
class Host:
    """A host name in lower case and without its final dot, or an address in its shortest form; the port is optional."""

    name: str
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> Host:
        """Reads ``name``, ``name:port``, ``address:port`` or ``[IPv6 address]:port``.

        Raises InvalidHost for everything else: user information, spaces, ports outside of 1 to 65535.
        """
        match = _HOST.fullmatch(text) if len(text) <= MAX_HOST_CHARACTERS else None
        if match is None:
            raise InvalidHost("not a host name")
        port = int(match["port"]) if match["port"] else None
        if port is not None and not 0 < port < 65_536:
            raise InvalidHost("not a port")
        name = (match["address"] or match["name"]).lower()
        address = _read_address(name)
        if match["address"] and not isinstance(address, IPv6Address):
            raise InvalidHost("not an IPv6 address")
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return cls(str(address or name), port)

    @cached_property
    def address(self) -> IPv4Address | IPv6Address | None:
        """The address, or None for a name."""
        return _read_address(self.name)

    @property
    def is_loopback(self) -> bool:
        """Whether it is a loopback address or ``localhost``."""
        return self.name == "localhost" or (self.address is not None and self.address.is_loopback)

    def __str__(self) -> str:
        name = f"[{self.name}]" if isinstance(self.address, IPv6Address) else self.name
        return name if self.port is None else f"{name}:{self.port}"


@dataclass(frozen=True)
class Origin:
    """Scheme, host name and port of a web page; the port is None where it is the default of the scheme."""

    scheme: str
    name: str
    port: int | None

    @classmethod
    def parse(cls, text: str) -> Origin | None:
        """Reads an ``Origin`` header. Returns None for ``null``, other schemes than http(s), and malformed ones."""
        scheme, separator, rest = text.partition("://")
        scheme = scheme.lower()
        if not separator or scheme not in _DEFAULT_PORTS:
            return None
        try:
            host = Host.parse(rest)
        except InvalidHost:
            return None
        return cls(scheme, host.name, port_without_default(host.port, scheme))

    @classmethod
    def of_url(cls, url: str) -> Origin | None:
        """The origin of the pages at a URL, or None where it is no http(s) URL."""
        try:
            parts = urlsplit(url)
        except ValueError:
            return None
        return cls.parse(f"{parts.scheme}://{parts.netloc}")

    def to_host(self) -> Host:
        """Its host and port, as a ``Host`` header names them."""
        return Host(self.name, self.port)


class AllowedHosts:
    """The hosts under which a service answers: ``localhost``, addresses, and configured names."""

    def __init__(self, configured: Iterable[str | Host], *, all_addresses: bool) -> None:
        """``configured``: names or addresses; those with a port are allowed with that port alone.

        ``all_addresses``: any IP address is allowed, otherwise loopback addresses only. No page can make a browser send
        an address that it does not connect to, so addresses are safe where the service has no other reason to refuse.
        Raises InvalidHost.
        """
        self._configured = {each if isinstance(each, Host) else Host.parse(each) for each in configured}
        self._all_addresses = all_addresses

    def allows(self, host: Host) -> bool:
        """Whether requests for this host are accepted."""
        if host.is_loopback or (self._all_addresses and host.address is not None):
            return True
        ports = (host.port, None) if host.port is not None else (None, *_DEFAULT_PORTS.values())
        return any(Host(host.name, port) in self._configured for port in ports)


def read_host(headers: Iterable[tuple[bytes, bytes]]) -> Host | None:
    """The host that an ASGI request is for; None without a ``Host`` header, which no browser leaves out.

    Raises InvalidHost for several headers and for a malformed one.
    """
    values = header_values(headers, b"host")
    if len(values) > 1:
        raise InvalidHost("several Host headers")
    return Host.parse(values[0]) if values else None


def header_values(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[str]:
    """All values of an ASGI request's header, without the spaces around them; ``name`` is in lower case."""
    return [value.decode("latin-1").strip(" \t") for each, value in headers if each.lower() == name]


def check_allowed_host(value: str) -> str:
    """Validates an entry of ``allowed_hosts``. Raises ValueError with a hint."""
    try:
        return str(Host.parse(value))
    except InvalidHost:
        raise ValueError(
            "write a host name or an address, with or without a port, such as dagster.example.org or "
            "10.0.0.7:8700: no scheme, no path, no wildcard; non-ASCII names as xn--…"
        ) from None


def port_without_default(port: int | None, scheme: str) -> int | None:
    """The port, or None where it is the scheme's default."""
    return None if port == _DEFAULT_PORTS[scheme] else port


def _read_address(name: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(name)
    except ValueError:
        return None
