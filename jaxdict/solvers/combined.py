"""Solvers in a row: each stage hands its point to the next. The default is alternating first, truncated Newton to the end."""

import equinox as eqx

from jaxdict.solvers.alternating import Alternating
from jaxdict.solvers.newton import Newton
from jaxdict.solvers.protocol import Solver

# Slots where a solver names none and nothing can be counted.
SLOTS = 64


class Combined(eqx.Module):
    """`first` for at most `first_steps` steps or until the stationarity is `switch`, then `second` to the end.

    Alternating minimisation takes the first digits in a few steps and stalls near 1e-2; Newton on the reduced problem is fast
    from there on. `second=QuasiNewton()` takes more and cheaper steps.

    >>> import jaxdict as jd
    >>> jd.solvers.Combined().first_steps
    20
    """

    first: Solver = Alternating()
    second: Solver = Newton()
    first_steps: int = eqx.field(static=True, default=20)
    switch: float = eqx.field(static=True, default=0.05)


class Stage(eqx.Module):
    """A solver with its own step limit (None: as long as the fit may run), stopping point and name."""

    solver: Solver
    steps: int | None = eqx.field(static=True)
    stop_at: float = eqx.field(static=True)
    name: str = eqx.field(static=True)


def stages_of(solver: Solver | Combined) -> tuple[Stage, ...]:
    """The stages of a solver: one, or those of `Combined`."""
    if isinstance(solver, Combined):
        first = Stage(solver.first, solver.first_steps, solver.switch, type(solver.first).__name__)
        return first, Stage(solver.second, None, 0.0, type(solver.second).__name__)
    return (Stage(solver, None, 0.0, type(solver).__name__),)


def with_plain_search(solver):
    """The solver with plain JAX's search in its Newton steps, whatever the engine: it brings no samples together."""
    if isinstance(solver, Combined):
        parts = with_plain_search(solver.first), with_plain_search(solver.second)
        return Combined(*parts, solver.first_steps, solver.switch)
    return Newton(solver.products, solver.slots, "working_set") if isinstance(solver, Newton) else solver


def with_slots(solver, slots: int):
    """The solver with that many slots a sample wherever none were given."""
    if isinstance(solver, Combined):
        return Combined(
            with_slots(solver.first, slots), with_slots(solver.second, slots), solver.first_steps, solver.switch
        )
    if solver.slots is not None:
        return solver
    static = {name: getattr(solver, name) for name in solver.__dataclass_fields__}
    return type(solver)(**(static | {"slots": slots}))
