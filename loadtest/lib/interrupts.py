"""Ctrl-C and SIGTERM become one exception, raised once and never between a fork and the line that registers the child.

The first signal raises `Interrupted`; while the clean-up it causes is running, further signals are ignored. Each clean-up
step has a deadline of its own, so it always ends.
"""

import signal
from contextlib import contextmanager


class Interrupted(BaseException):
    """Somebody asked us to end. A BaseException, so that no handler of ordinary errors swallows it."""


class _State:
    deferring = 0
    asked = False
    raised = False


def install():
    """Route SIGINT, SIGTERM and SIGHUP here. Call once, before anything is started."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _handle)


@contextmanager
def deferred():
    """Hold a signal back until the block is done: for a start and its registration, which belong together."""
    _State.deferring += 1
    try:
        yield
    finally:
        _State.deferring -= 1
        if _State.asked:
            _raise_once()


def _handle(_number, _frame):
    _State.asked = True
    if not _State.deferring:
        _raise_once()


def _raise_once():
    if not _State.raised:
        _State.raised = True
        raise Interrupted()
