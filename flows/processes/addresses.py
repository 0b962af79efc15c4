"""Address that a server listens on: checked before anything is loaded, and written as a URL."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from dataclasses import dataclass

from flows.errors import UsageError


@dataclass(frozen=True)
class Address:
    """An IP address of this machine and a port that is free on it."""

    ip: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Return whether only programs of this machine can reach it."""
        return ipaddress.ip_address(self.ip.partition("%")[0]).is_loopback

    @property
    def url(self) -> str:
        """URL for a program of this machine: the loopback address if the server listens on all
        addresses.
        """
        any_address = ipaddress.ip_address(self.ip.partition("%")[0]).is_unspecified
        ip = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.ip, self.ip) if any_address else self.ip  # noqa: S104
        return f"http://[{ip}]:{self.port}" if ":" in ip else f"http://{ip}:{self.port}"


def listening_address(host: str, port: int) -> Address:
    """Resolve and try out ``--host`` and ``--port``; port 0: any free one.

    Raises:
        UsageError: the address is not one of this machine, or the port cannot be bound.
    """
    if not 0 <= port <= 65535:
        raise UsageError("--port", f"{port} is not a port", "set one from 1 to 65535, or 0 for any free one")
    try:
        found = socket.getaddrinfo(host.strip("[]") or "?", port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            "--host",
            f"{host!r} does not resolve ({reason})",
            "set an address of this machine, such as 127.0.0.1, ::1 or 0.0.0.0",
        ) from error
    # A name such as localhost may mean both; most clients try IPv4 first.
    family, _, _, _, place = min(found, key=lambda one: one[0] != socket.AF_INET)
    try:
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            # As servers do: an address that only waits for its last packets is free.
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(place)
            return Address(str(place[0]), int(trial.getsockname()[1]))
    except OSError as error:
        raise _why_not(error, host, port) from error


def _why_not(error: OSError, host: str, port: int) -> UsageError:
    if error.errno == errno.EADDRINUSE:
        return UsageError("--port", f"{port} is in use", "end what listens there, or choose another one")
    if error.errno in (errno.EACCES, errno.EPERM):
        return UsageError("--port", f"{port} may be opened by the system's administrator only", "choose one above 1023")
    if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        return UsageError(
            "--host", f"{host!r} is not an address of this machine", "set one that is, such as 127.0.0.1 or 0.0.0.0"
        )
    return UsageError("--host, --port", f"{host!r}, {port}: {os.strerror(error.errno or 0)}", "choose others")
