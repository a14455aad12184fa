"""The two engines that solve codes, behind one interface, and the choice between them: plain JAX anywhere, numba's kernels on a CPU."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdict.encoding.jax_engine import calls as jax_calls
from jaxdict.encoding.jax_engine.supports import supports_by_jax
from jaxdict.encoding.jax_engine.values import values_by_jax
from jaxdict.encoding.lasso import Lasso, Solved, is_minute
from jaxdict.encoding.numba_engine.calls import codes_by_numba, kernels, require_kernels
from jaxdict.encoding.numba_engine.subsets import supports_by_numba, values_by_numba
from jaxdict.encoding.numba_engine.sums import sums_by_numba
from jaxdict.encoding.slots import Slots

# The process that solved first.
PROCESSES: dict[str, int] = {}
# Looks at all atoms that the kernels may take for sums.
LOOKS = 200


class Engine(NamedTuple):
    """One way of solving the plain problem.

    - `solve(lasso, start, tol, defect_tol, *, n_slots, dense, max_rounds)`: exact codes of each sample, as `Slots` (the largest
      `n_slots`), as dense codes (None unless `dense`), and how well they are `Solved`. `start` is `Slots`, dense codes, or None;
      `defect_tol` bounds T1's codes line beside the gap (None: the gap is enough).
    - `sums(lasso, weights, slots, tol, defect_tol, *, dense)`: codes likewise from `slots`, the `Moments` of the plain form (weights
      as given, their sum one for means; gaps not computed), and the worst sample's gap over its objective.
    - `values(lasso, slots, *, signed)`: the values of least error on the slots in use; lam has no part in it, nor in the next.
    - `supports(lasso, start, most, tol, *, signed, max_steps)`: at most `most` atoms a sample, as `Slots` like `start`, how many
      exchanges were made, and one where `max_steps` cut them short.
    """

    solve: Callable
    sums: Callable
    values: Callable
    supports: Callable


def on_engine(method: str, call: Callable, *args) -> Any:
    """`call(engine, *args)` with the engine that the method names; "auto" is numba's where it is installed and the program runs on a CPU.

    That choice is made when the program is lowered, so a program for an accelerator holds no kernels and one for a CPU does not
    compile the other branch.
    """
    if method != "auto":
        return call(ENGINES[method], *args)
    if kernels() is None:
        return call(JAX_ENGINE, *args)
    with_numba, with_jax = (lambda *args: call(NUMBA_ENGINE, *args)), (lambda *args: call(JAX_ENGINE, *args))
    return jax.lax.platform_dependent(*args, cpu=with_numba, default=with_jax)


def refuse_after_fork():
    """RuntimeError in a child forked from a process that has solved here: jax's threads are not in it, and it would wait for ever."""
    if os.getpid() != PROCESSES.setdefault("first", os.getpid()):
        raise RuntimeError(
            "this process was forked from one where jax was running, so jax would hang here; start worker processes by "
            'multiprocessing.get_context("spawn")'
        )


def check_method(method: str, methods: tuple[str, ...]) -> None:
    """ValueError for an unknown method, ImportError for "numba" without numba, RuntimeError in a forked child."""
    if method not in methods:
        raise ValueError(f"method={method!r} is unknown; use one of {methods}")
    if method == "numba":
        require_kernels()
    refuse_after_fork()


def on_numba(method: str = "auto") -> bool:
    """Whether numba's kernels solve codes here, outside a program for another platform."""
    return method == "numba" or (method == "auto" and kernels() is not None and jax.default_backend() == "cpu")


def _numba_solve(lasso: Lasso, start, tol, defect_tol=None, *, n_slots: int, dense: bool, max_rounds: int):
    slots, Z, gap, primal, used, steps = codes_by_numba(
        lasso, start, tol, max_rounds, defect_tol, n_slots=n_slots, dense=dense
    )
    solved = (gap <= tol * primal) & (~is_minute(primal) | (used == 0) & _surely_zero(lasso))
    overflow = jnp.zeros_like(solved) if dense else (used > n_slots) & ~solved
    limited = ~solved & ~overflow & (steps >= max_rounds)
    return slots, Z, Solved(gap, primal, solved, overflow, limited, steps.astype(jnp.int32))


def _surely_zero(lasso: Lasso):
    """Samples whose codes are zero because no atom can correlate with them enough."""
    reach = jnp.max(jnp.abs(lasso.atoms)) * lasso.targets.shape[1]
    return jnp.max(jnp.abs(lasso.targets), axis=1) * reach <= lasso.lam


def _numba_sums(lasso: Lasso, weights, slots: Slots, tol, defect_tol, *, dense: bool):
    return sums_by_numba(lasso, weights, slots, tol, defect_tol, LOOKS, dense=dense)


JAX_ENGINE = Engine(jax_calls.solve, jax_calls.sums, values_by_jax, supports_by_jax)
GRADIENT_ENGINE = JAX_ENGINE._replace(solve=jax_calls.solve_by_gradient)
NUMBA_ENGINE = Engine(_numba_solve, _numba_sums, values_by_numba, supports_by_numba)
# By the name of the method that asks for them.
ENGINES = {"gradient": GRADIENT_ENGINE, "working_set": JAX_ENGINE, "jax": JAX_ENGINE, "numba": NUMBA_ENGINE}
