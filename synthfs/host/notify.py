"""Tells systemd how a service fares (sd_notify): one datagram to the socket that $NOTIFY_SOCKET names, if there is one.

Source: sd_notify(3), "Standalone implementations".
"""

import contextlib
import os
import socket
import time

from synthfs.text import printable

_LIMIT = 1.0


def is_supervised() -> bool:
    """Whether anybody listens."""
    return os.environ.get("NOTIFY_SOCKET", "").startswith(("/", "@"))


def notify(**fields: str | int) -> None:
    """Sends `fields`, named as systemd names them. A service that nobody supervises sends nothing and misses nothing."""
    if not is_supervised():
        return
    address = os.environ["NOTIFY_SOCKET"]
    message = "\n".join(f"{name}={printable(str(value))}" for name, value in fields.items())
    # A supervisor that went away, or does not read for a while, is no reason to stop serving.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.settimeout(_LIMIT)
        channel.connect(f"\0{address[1:]}" if address.startswith("@") else address)
        channel.sendall(message.encode())


def monotonic_microseconds() -> int:
    """The time that goes with RELOADING=1."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def watchdog_interval() -> float | None:
    """Seconds between signs of life that keep the watchdog content: half of what it waits. None where there is none."""
    wanted = os.environ.get("WATCHDOG_USEC", "")
    meant_for_us = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(wanted) / 2_000_000 if wanted.isdigit() and meant_for_us else None
