"""The socket that a server listens on, taken before anything is loaded."""

from __future__ import annotations

import errno
import ipaddress
import socket

from tpudeploy.errors import UsageError

_BACKLOG = 2048


class AddressError(UsageError):
    """An address that cannot be listened on."""


def listen(host: str, port: int) -> socket.socket:
    """Listen on an address.

    From now on nobody else can have it, and clients that come early wait.

    :param host: a name or an address.
    :param port: 0 takes any that is free.
    :raises AddressError: taken, not this machine's, or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError):
        raise AddressError(f"{host!r} is no address of this machine.", hint="Try --host 127.0.0.1.") from None
    listener = socket.socket(family, kind, protocol)
    try:
        # A port that is still winding down after the last server is no obstacle; one that is listened on is.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise _explained(error, host, port) from error
    listener.setblocking(False)
    return listener


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can reach an address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def url_of(listener: socket.socket) -> str:
    """``http://127.0.0.1:8000``, as a person would open it."""
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _explained(error: OSError, host: str, port: int) -> AddressError:
    where = f"{host}:{port}"
    if error.errno == errno.EADDRINUSE:
        return AddressError(
            f"{where} is taken by another program.", hint="Choose another --port; 0 takes any that is free."
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return AddressError(f"{host} is no address of this machine.", hint="Try --host 127.0.0.1.")
    if error.errno in (errno.EACCES, errno.EPERM):
        return AddressError(f"no permission to listen on {where}.", hint="Ports below 1024 belong to root.")
    return AddressError(f"cannot listen on {where}: {error.strerror}.")
