"""Which addresses may be connected to: public ones, and none of this machine or network.

A page could otherwise have the model read what only this machine can reach: a router, a service on
loopback, a cloud's metadata. The lists are IANA's special-purpose registries, so that they do not
depend on Python's version.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Sequence

Resolver = Callable[[str, int], Sequence[str]]
"""The addresses of a host, best first. Raises OSError."""

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_REFUSED_4 = [
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's metadata, a public address
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",  # multicast, reserved, broadcast
    )
]
_PUBLIC_6 = ipaddress.IPv6Network("2000::/3")
"""All that is assigned to the public Internet."""

_REFUSED_6 = [
    ipaddress.IPv6Network(network)
    for network in ("2001::/23", "2001:db8::/32", "2620:4f:8000::/48", "3fff::/20")
]
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Whether an address is one of the public Internet, also where it holds an IPv4 address."""
    try:
        parsed: IPAddress = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv4Address):
        return not any(parsed in network for network in _REFUSED_4)
    inside = parsed.ipv4_mapped
    if parsed in _NAT64:
        inside = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
    if parsed.sixtofour is not None:
        inside = parsed.sixtofour
    if inside is not None:
        return is_public(str(inside))
    return parsed in _PUBLIC_6 and not any(parsed in network for network in _REFUSED_6)


def system_addresses(host: str, port: int) -> list[str]:
    """The addresses that this system's resolver gives. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))
