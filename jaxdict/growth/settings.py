"""What `grow` is asked for, refused before any compute where it makes no sense."""

import itertools
from typing import Any

import numpy as np

from jaxdict.problem import Dictionary
from jaxdict.solvers.growing import Growing


def checked_widths(widths, start: Dictionary | None) -> list[int]:
    """Ascending whole numbers, the last above the start's."""
    if widths is None:
        raise ValueError("widths is not given; give the numbers of atoms to go through, as (64, 128, 256)")
    found = [widths] if np.ndim(widths) == 0 else list(widths)
    whole = all(hasattr(width, "__index__") and not isinstance(width, bool) for width in found)
    if not found or not whole or found[0] < 1 or any(b <= a for a, b in itertools.pairwise(found)):
        raise ValueError(f"widths={widths!r} makes no sense; give ascending whole numbers from 1, as (64, 128, 256)")
    if start is not None and np.shape(start.atoms)[0] >= found[-1]:
        raise ValueError(
            f"start has {np.shape(start.atoms)[0]} atoms and the last of the widths is {found[-1]}; give a larger one"
        )
    return [int(width) for width in found]


def check_settings(X: Any, source, key, solver, numbers: dict[str, float]) -> None:
    """Rows from one place, a key, a solver of one width, numbers from 0."""
    if (X is None) == (source is None):
        raise ValueError("rows come in memory, as X, or from a source: give one of the two")
    if key is None:
        raise ValueError("key is not given; give jax.random.key(seed), so that the same key gives the same result")
    for name, value in numbers.items():
        if not value >= 0:
            raise ValueError(f"{name}={value!r} makes no sense; give a number from 0")
    if isinstance(solver, Growing):
        raise ValueError("solver is a Growing; give the solver of each width, as Combined()")
