"""What a request looks like from outside a proxy: `X-Forwarded-*`, believed from `WORKSPACE_RUNTIME_TRUSTED_PROXIES` alone.

A chain of proxies writes lists. The last item was written by the proxy that we trust; what stands before it may be the
client's own invention. So of scheme and host the last item counts, and of addresses the last that is no proxy of ours.
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FORWARDED = frozenset({b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-for"})


@dataclass(frozen=True, slots=True)
class Outside:
    """Scheme (`http` or `https`), host with port, and the client's address, as the client's side of the proxies has them."""

    scheme: str
    host: bytes
    client: str


class Proxies:
    """The trusted ones. `any`: there are some, so that `outside` can differ from the scope."""

    def __init__(self, networks: tuple[str, ...]) -> None:
        self._networks = [ipaddress.ip_network(network) for network in networks]
        self._seen: dict[str, bool] = {}
        self.any = bool(networks)

    def outside(self, scope: Mapping[str, Any], headers: Mapping[bytes, bytes]) -> Outside:
        """`headers` holds the request's `host` and `x-forwarded-*`, repeated ones joined by commas."""
        client = scope.get("client")
        address = str(client[0]) if client else ""
        scheme = "https" if scope["scheme"] in ("https", "wss") else "http"
        host = headers.get(b"host", b"")
        if not self.any or not self.trusts(address):
            return Outside(scheme, host, address)
        told = _last(headers.get(b"x-forwarded-proto", b"")).lower()
        if told:
            scheme = "https" if told in (b"https", b"wss") else "http"
        for item in reversed(headers.get(b"x-forwarded-for", b"").split(b",")):
            candidate = _without_port(item.strip().decode("latin-1"))
            if not candidate:
                break
            address = candidate
            if not self.trusts(candidate):
                break
        return Outside(scheme, _last(headers.get(b"x-forwarded-host", b"")) or host, address)

    def trusts(self, address: str) -> bool:
        """Whether this is the address of one of them."""
        known = self._seen.get(address)
        if known is None:
            known = self._judge(address)
            if len(self._seen) < 256:
                self._seen[address] = known
        return known

    def _judge(self, address: str) -> bool:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        mapped = getattr(parsed, "ipv4_mapped", None)
        return any((mapped or parsed) in network or parsed in network for network in self._networks)


def _last(value: bytes) -> bytes:
    return value.rpartition(b",")[2].strip()


def _without_port(text: str) -> str:
    """An address of `X-Forwarded-For`; empty when it is none."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return ""
