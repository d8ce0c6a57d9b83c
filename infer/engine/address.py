"""Address that a server or a page listens on."""

import ipaddress
import socket


def is_loopback(host: str) -> bool:
    """Return whether a host's name or address is this machine's own, reached from it alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_address(host: str, port: int, secret: str | None, option: str) -> None:
    """Raise ValueError for an address that others reach without a secret, or that is not free.

    Args:
        host: to listen on.
        port: likewise.
        secret: what callers have to say; None if nothing.
        option: the option that gives it.
    """
    if not is_loopback(host) and secret is None:
        raise ValueError(f"--host {host} lets others in; give {option}, or leave --host out")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"--host {host} --port {port}: {reason}; give others") from None
