"""What a run that was stopped had reached, handed on with what stopped it."""

import contextlib


def hand_over(stopped: BaseException, **reached) -> None:
    """Give an exception what was reached, as attributes of these names; one whose class takes no attributes goes on without.

    >>> stopped = KeyboardInterrupt()
    >>> hand_over(stopped, solution=3)
    >>> stopped.solution
    3
    """
    with contextlib.suppress(AttributeError):
        for name, value in reached.items():
            setattr(stopped, name, value)
