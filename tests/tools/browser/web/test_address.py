"""Which addresses are public: those that a page may lead to."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_mlx.tools.browser.web.address import is_public

PRIVATE = """
0.0.0.0 0.1.2.3 10.0.0.1 100.64.0.1 100.100.100.200 127.0.0.1 127.255.255.254 169.254.169.254
168.63.129.16 172.16.0.1 172.31.255.255 192.0.0.1 192.0.0.8 192.0.2.1 192.88.99.1 192.168.1.1
198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.250 240.0.0.1
255.255.255.255
:: ::1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:a9fe:a9fe 64:ff9b::7f00:1
64:ff9b::10.0.0.1 64:ff9b:1::1 100::1 2001::1 2001:db8::1 2001:20::1 2002:7f00:1::
2002:a00:1::1 2002:c0a8:101::1 2620:4f:8000::1 3fff::1 5f00::1 fc00::1 fd00:ec2::254 fe80::1
fe80::1%eth0 fec0::1 ff02::1 ffff::1 4000::1
""".split()  # noqa: SIM905
PUBLIC = """
1.1.1.1 8.8.8.8 100.63.255.255 100.128.0.1 172.15.255.255 172.32.0.1 192.0.1.1 198.17.255.255
223.255.255.254 2606:4700::1111 2a00:1450:4001::1 ::ffff:8.8.8.8 64:ff9b::808:808 2002:808:808::1
""".split()  # noqa: SIM905
BROKEN = ("", "localhost", "127.1", "0x7f000001", "2130706433", "1.2.3.4.5", "::g", "1.1.1.1/8")


@pytest.mark.parametrize("address", PRIVATE)
def test_refused(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_allowed(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", BROKEN)
def test_what_is_no_address_is_refused(address: str) -> None:
    assert not is_public(address)


@given(st.ip_addresses())
def test_nothing_is_public_that_python_knows_as_private(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    if is_public(str(address)):
        assert address.is_global or str(address).startswith(("2002:", "64:ff9b:", "::ffff:"))
        assert not address.is_multicast
        assert not address.is_loopback
        assert not address.is_link_local


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_in_an_ipv6_address_is_judged_as_itself(
    address: ipaddress.IPv4Address,
) -> None:
    number = int(address)
    for inside in (0xFFFF << 32 | number, 0x64FF9B << 96 | number, 0x2002 << 112 | number << 80):
        assert is_public(str(ipaddress.IPv6Address(inside))) == is_public(str(address))
