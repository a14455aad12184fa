"""Inputs of many runs at once: which of them have a run axis."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdict.problem import Dictionary, Problem


def stack_problems(problems, dtype) -> Problem:
    """Problems in a list as one with a run axis, in the data's dtype; they must agree in what is static and in which arrays they have."""
    if len({jax.tree.structure(problem) for problem in problems}) != 1:
        raise ValueError(
            "problems differ in offset, signed, gauge, or in having a metric or weights; batch like with like"
        )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(problem.astype(dtype) for problem in problems))


def run_axes(problems: Problem, X: Float[Array, "samples d"], keys, start) -> tuple[int, ...]:
    """Which inputs have a run axis: 0 or -1 (shared) for lam, metric, weights, X, keys, start."""
    sized = {
        "lam": (problems.lam, 0),
        "metric": (problems.metric, 1),
        "weights": (problems.weights, 1),
        "X": (X, 2),
        "keys": (keys, 0 if jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) else 1),
        "start": (start.atoms if isinstance(start, Dictionary) else None, 2),
    }
    runs = {
        name: array.shape[0] for name, (array, ndim) in sized.items() if array is not None and array.ndim == ndim + 1
    }
    if not runs:
        raise ValueError("nothing has a run axis: give lam, keys or X a leading axis of runs, or use fit")
    if len(set(runs.values())) > 1:
        raise ValueError(
            f"run axes differ: {runs}; write a grid out, as in lam=jnp.repeat(lams, n_keys), keys=jnp.tile(keys, n_lams)"
        )
    return tuple(0 if name in runs else -1 for name in sized)


def axis_tree(arrays, axes):
    """The run axis of every leaf (-1 for shared ones), in the shape of (problems, X, keys, start)."""
    problems, _, _, start = arrays
    fields = dict(zip(("lam", "metric", "weights"), axes, strict=False))
    leaves = [axis for name, axis in fields.items() if getattr(problems, name) is not None]
    tree = jax.tree.unflatten(jax.tree.structure(problems), leaves)
    return tree, axes[3], axes[4], jax.tree.map(lambda _: axes[5], start)
