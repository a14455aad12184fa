"""What codes of other kinds are asked of: checked arrays, the plain problem in units of its own size, one program an engine."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdict.arrays import as_jax, is_concrete, look, real_array
from jaxdict.encoding.engines import check_method
from jaxdict.encoding.lasso import Lasso, Units, in_units, lasso_of
from jaxdict.problem import Dictionary, Problem
from jaxdict.validation import check_data, check_dictionary

METHODS = ("auto", "jax", "numba")


def check_inputs(
    dictionary: Dictionary, X: Float[Array, "samples d"], signed: bool, metric, method: str
) -> tuple[Problem, Dictionary, Float[Array, "samples d"]]:
    """The problem without its penalty, the dictionary and the data in one dtype; ValueError where they do not fit."""
    check_method(method, METHODS)
    X = check_data(X, wide="allow")
    dictionary = check_dictionary(dictionary, X)
    problem = Problem(lam=0.0, signed=signed, metric=metric).like(X)
    if is_concrete(problem.metric) and not bool(look(lambda xp, m: xp.all(xp.isfinite(m)), problem.metric)):
        raise ValueError("metric has NaN or infinity; give finite positive numbers")
    return problem, dictionary, X


def plain(problem: Problem, dictionary: Dictionary, X: Float[Array, "samples d"]) -> tuple[Lasso, Units]:
    """Targets `sqrt(m) (x - b)` and atoms `sqrt(m) D` in units of their own size; signs and lam have no part in them."""
    unpenalised = Problem(lam=0.0, metric=problem.metric)
    return in_units(lasso_of(unpenalised, dictionary, X))


def where_finite(lasso: Lasso, values: Float[Array, "samples slots"]) -> Float[Array, "samples slots"]:
    """The values, NaN where a sample or the atoms are not finite."""
    fine = jnp.all(jnp.isfinite(lasso.targets), axis=1) & jnp.all(jnp.isfinite(lasso.atoms))
    return jnp.where(fine[:, None], values, jnp.nan)


def check_n_active(n_active, X: Float[Array, "samples d"], n_atoms: int) -> Int[Array, " samples"]:
    """How many codes each row may have, (samples,), or a ValueError where they are no whole numbers from 0 on, one or one a row.

    >>> import jax.numpy as jnp
    >>> check_n_active(-1, jnp.ones((2, 3)), 5)
    Traceback (most recent call last):
    ValueError: n_active=-1 is negative; give how many codes a row may have, from 0 to the number of atoms
    """
    given = real_array(n_active, "n_active")
    if not jnp.issubdtype(given.dtype, jnp.integer):
        raise ValueError(f"n_active has dtype {given.dtype}; give a whole number, or one for each row")
    if given.shape not in ((), (X.shape[0],)):
        raise ValueError(
            f"n_active has shape {given.shape} but the data {X.shape[0]} rows; give one number, or one for each row"
        )
    if is_concrete(given) and given.size and int(look(lambda xp, n: xp.min(n), given)) < 0:
        worst = int(look(lambda xp, n: xp.min(n), given))
        raise ValueError(
            f"n_active={worst} is negative; give how many codes a row may have, from 0 to the number of atoms"
        )
    if is_concrete(given):
        given = np.minimum(np.asarray(given), n_atoms)
    most = jnp.clip(as_jax(given, jnp.int32), 0, n_atoms)
    return most if most.ndim else jnp.broadcast_to(most, X.shape[:1])


def slots_for(n_active, slots: int | None, n_atoms: int) -> int:
    """How many slots hold a row's codes: `slots`, or what the largest known `n_active` needs."""
    if slots is None:
        if not is_concrete(n_active):
            raise ValueError(
                "slots is not given: where n_active is traced the number of slots must be a Python integer"
            )
        slots = int(look(lambda xp, n: xp.max(n, initial=0), np.asarray(n_active)))
    if isinstance(slots, bool) or not hasattr(slots, "__index__") or int(slots) < 0:
        raise ValueError(f"slots={slots!r} is no number of slots; give a Python integer, at least the largest n_active")
    return max(1, min(int(slots), n_atoms))
