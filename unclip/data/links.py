"""Which links from strangers we follow: http and https, to public addresses, in a spelling that servers understand."""

import ipaddress
import re
import socket
from urllib.parse import quote, urlsplit, urlunsplit

from unclip.data.contracts import Reason

SCHEMES = ("http", "https")
PRIVATE_NAMES = ("localhost", "local", "internal", "localdomain", "lan", "home.arpa")  # as a whole name or as its ending
GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # all of IPv6 that is given out; what lies outside wraps something, or is reserved
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_.])?")
_URL_CHARACTERS = "%/:=&?~#+!$,;'@()*[]|"


class RefusedError(Exception):
    """A row that can't be used: its reason (one of contracts.REASONS) and a few words of detail."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def is_public(address: str) -> bool:
    """Whether an IP address, as text, is one of the open internet; addresses wrapped in IPv6 count as what they wrap."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        wrapped = ip.ipv4_mapped or ip.sixtofour or (ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in NAT64 else None)
        if wrapped is not None:
            return is_public(str(wrapped))
        if ip not in GLOBAL_UNICAST:
            return False
    return ip.is_global and not ip.is_multicast


def is_private_name(host: str) -> bool:
    """Whether a host name or address literal, in any spelling that resolvers take, points at a private place by itself."""
    bare = host.rstrip(".").lower()
    if any(bare == name or bare.endswith(f".{name}") for name in PRIVATE_NAMES):
        return True
    try:
        return not is_public(bare)
    except ValueError:
        pass
    if re.fullmatch(r"[0-9a-fx.]+", bare) and bare[0].isdigit():
        try:
            return not is_public(socket.inet_ntoa(socket.inet_aton(bare)))  # 127.1, 0x7f000001, 2130706433
        except OSError:
            return False
    return False


def cleaned_url(given: str, *, allow_private: bool) -> str:
    """The link as it will be fetched: without outer spaces and fragment, percent-encoded, the host in lower-case ASCII.

    Raises:
        RefusedError: it can't or must not be followed.
    """
    text = given.strip()
    if not text:
        raise RefusedError("url missing")
    if any(0xD800 <= ord(character) <= 0xDFFF for character in text):
        raise RefusedError("url malformed", "not valid UTF-8")
    if _CONTROL.search(text):
        raise RefusedError("url malformed", "control characters")
    scheme, colon, _ = text.partition(":")
    if scheme.lower() not in SCHEMES:
        raise RefusedError("url not http(s)", f"scheme {scheme[:20]!r}" if colon else "no scheme")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
        ascii_host = host if host.isascii() else host.encode("idna").decode()
    except (ValueError, UnicodeError) as error:
        raise RefusedError("url malformed", str(error)) from None
    is_v6 = ":" in ascii_host
    if not is_v6 and not _HOST.fullmatch(ascii_host):
        raise RefusedError("url malformed", f"host {host[:60]!r}")
    if parts.username is not None:
        raise RefusedError("url malformed", "user name in the link")
    if not allow_private and is_private_name(ascii_host):
        raise RefusedError("private address", ascii_host)
    where = f"[{ascii_host}]" if is_v6 else ascii_host
    where += "" if port is None else f":{port}"
    return urlunsplit((parts.scheme.lower(), where, quote(parts.path, safe=_URL_CHARACTERS), quote(parts.query, safe=_URL_CHARACTERS), ""))
