"""Ends a run at a step's end when the process is asked to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["stop_on_signals"]


@contextmanager
def stop_on_signals(request_stop: Callable[[str], None]) -> Iterator[None]:
    """Turns the first Ctrl-C or SIGTERM into ``request_stop(name of the signal)``.

    The second one acts as if this context weren't there. Outside the main thread, where Python
    can't handle signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # A signal that the process was told to ignore (nohup, background jobs) stays ignored.
    previous = {
        number: signal.getsignal(number)
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) != signal.SIG_IGN
    }

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def handle(number: int, frame: FrameType | None) -> None:
        restore()
        request_stop(signal.Signals(number).name)

    for number in previous:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore()
