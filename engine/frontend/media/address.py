"""Which network addresses a client may have this server fetch from.

Whoever sends a URL chooses where this machine connects to, and behind its firewall lie services that trust it. So by
default only addresses of the public internet are fetched from. Knows no names and no sockets; called by `fetch`.
"""

from __future__ import annotations

import ipaddress

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

# IANA's special-purpose registries, multicast, and where clouds hand out their machines' credentials.
_PRIVATE_V4 = [ipaddress.IPv4Network(text) for text in (
    "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")]
_NEVER_V4 = [ipaddress.IPv4Network(text) for text in (
    "0.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15",
    "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
    "100.100.100.200/32", "168.63.129.16/32")]  # metadata services of Alibaba and Azure
_PRIVATE_V6 = [ipaddress.IPv6Network(text) for text in ("::1/128", "fc00::/7")]
_NEVER_V6 = [ipaddress.IPv6Network(text) for text in (
    "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",  # protocols' own, documentation, 6to4
    "fd00:ec2::254/128", "fd20:ce::254/128")]  # metadata services of Amazon and Google
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def refusal(address: str, *, private_too: bool = False) -> str:
    """Why `address` is not connected to; empty where it may be.

    `private_too`: the operator named the host, so it may be in a private network or on this machine. Never are
    link-local addresses, where metadata services are, and those that belong to nobody.
    """
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped
        if inner is None and found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is None:
            return _refusal_v6(found, private_too)
        found = inner
    if any(found in network for network in _NEVER_V4):
        return "it is link-local, reserved or a metadata service"
    if not private_too and any(found in network for network in _PRIVATE_V4):
        return "it is in a private network or on this machine"
    return ""


def _refusal_v6(found: ipaddress.IPv6Address, private_too: bool) -> str:
    if any(found in network for network in _NEVER_V6):
        return "it is link-local, reserved or a metadata service"
    if any(found in network for network in _PRIVATE_V6):
        return "" if private_too else "it is in a private network or on this machine"
    return "" if found in _GLOBAL_V6 else "it is link-local, reserved or a metadata service"
