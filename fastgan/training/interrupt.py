"""Ends a run at a step's end on a signal, and in any case after a while."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

PATIENCE = 120.0
"""Seconds from the first signal to the forced end; a step takes less."""

# Windows has no SIGHUP.
_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


@contextmanager
def stop_on_signals(request_stop: Callable[[str], None]) -> Iterator[None]:
    """Turns the first Ctrl-C, SIGTERM or SIGHUP into ``request_stop(name of the signal)``.

    The second one has its default effect. Python runs handlers between two instructions, so a
    thread blocked in C, such as waiting for a hanging process, would notice neither: another thread
    ends the process at the second signal, or :data:`PATIENCE` seconds after the first. Does nothing
    outside the main thread, where Python can't handle signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # Ignored signals (nohup, background jobs) stay ignored.
    previous = {
        number: signal.getsignal(number)
        for number in _SIGNALS
        if signal.getsignal(number) != signal.SIG_IGN
    }
    heard = threading.Event()

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def handle(number: int, frame: FrameType | None) -> None:
        heard.set()
        restore()
        request_stop(signal.Signals(number).name)

    for number in previous:
        signal.signal(number, handle)
    # Sockets, because Windows can't wait for pipes.
    reader, writer = socket.socketpair()
    for end in (reader, writer):
        end.setblocking(False)
    # The C-level handler writes each signal's number there, even if the main thread is blocked.
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    arguments = (reader, {int(number) for number in previous}, heard)
    watcher = threading.Thread(target=_watch, args=arguments, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        restore()
        signal.set_wakeup_fd(before)
        writer.send(b"\0")
        watcher.join()
        writer.close()
        reader.close()


def _watch(reader: socket.socket, numbers: set[int], heard: threading.Event) -> None:
    first: int | None = None
    deadline: float | None = None
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select([reader], [], [], left)
        if not ready:
            assert first is not None
            _end(first, f"{PATIENCE:.0f} s of waiting")
        for number in reader.recv(64) if ready else b"":
            if number == 0:
                return
            if number not in numbers:
                continue
            if first is None:
                first, deadline = number, time.monotonic() + PATIENCE
            elif not heard.wait(2.0):
                _end(number, "a second signal")


def _end(number: int, after: str) -> None:
    name = signal.Signals(number).name
    text = f"fastgan: ended by {name} after {after}, unsaved: the last checkpoint stands\n"
    with suppress(OSError):
        os.write(2, text.encode())
    os._exit(128 + number)
