"""Which addresses a stranger's URL may lead to."""

from __future__ import annotations

import pytest

from quire.engine.frontend.media.address import refusal

PRIVATE = ["127.0.0.1", "127.8.8.8", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "::1",
           "fc00::1", "fd12::1", "::ffff:10.0.0.1", "::ffff:7f00:1", "64:ff9b::7f00:1", "64:ff9b::192.168.0.1"]
NEVER = ["0.0.0.0", "169.254.169.254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "168.63.129.16",
         "100.100.100.200", "192.0.0.192", "192.0.2.1", "192.88.99.1", "198.18.0.1", "198.51.100.1", "203.0.113.1",
         "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "::", "fe80::1", "fec0::1", "ff02::1",
         "fd00:ec2::254", "fd20:ce::254", "2001:db8::1", "2002:7f00:1::1", "2001:0:7f00:1::1", "3fff::1", "100::1",
         "64:ff9b:1::1", "::7f00:1", "::127.0.0.1"]
PUBLIC = ["1.1.1.1", "8.8.8.8", "172.15.0.1", "172.32.0.1", "100.63.0.1", "169.253.0.1", "2606:4700:4700::1111",
          "2a00:1450:4001::1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_for_hosts_that_the_operator_named(address: str) -> None:
    assert "private network" in refusal(address)
    assert not refusal(address, private_too=True)


@pytest.mark.parametrize("address", NEVER)
def test_metadata_and_reserved_addresses_are_for_nobody(address: str) -> None:
    assert refusal(address) and refusal(address, private_too=True)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_fetched_from(address: str) -> None:
    assert not refusal(address)
