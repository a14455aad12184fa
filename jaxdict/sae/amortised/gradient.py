"""Steps of proximal gradient written out: ISTA and FISTA cut short, and the same with learned numbers."""

from dataclasses import replace
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from jaxdict.arrays import data_array
from jaxdict.encoding.jax_engine.gradient import largest_eigenvalue
from jaxdict.encoding.lasso import Lasso, codes_of, lasso_of
from jaxdict.meshes import on_any_mesh
from jaxdict.numerics import matmul, safe_divide
from jaxdict.problem import Dictionary, Problem
from jaxdict.sae.amortised.beginnings import cast, check_count, check_encoded, first_codes, regauged, unweighted
from jaxdict.sae.models import SAE


class UnrolledEncoder(eqx.Module):
    """T steps of proximal gradient for the codes of a fixed dictionary, from zero or from an SAE's codes:

        new = relu(v + s_t ((y - v A) A^T - l_t))

    with `y = sqrt(m) (x - b)` and `A = sqrt(m) D` (unit atoms in the penalised gauge); step sizes s and levels l are (T, atoms).

    - With `momentum` beta (T,), `v = z_t + beta_t (z_t - z_{t-1})` and `z_{t+1} = new`: ISTA, FISTA (`unroll`).
    - With None, `v = z_t` and each row goes the part of the way on which its F is least, `z_{t+1} = z_t + a (new - z_t)`, a in [0, 1]
      (`train_unrolled`): no step raises F of any row, whatever was learned and however unlike others the row is. A first step
      from zero is taken whole: it is an SAE's one matmul, `W_enc = A^T s_0`, `b_enc = -s_0 l_0`.

    These are 2 K numbers a step and no matrix. With `l_t = lam` a point is fixed by a step exactly where T1's codes line holds, whatever
    the step sizes, so that what is learned says how fast, not where to; a matrix in the place of `A^T` would have d K numbers for the
    rows to determine, and could only come back to it as steps go on (Ablin, Moreau, Massias, Gramfort 2019, "Learning step sizes for
    unfolded sparse coding"). From an SAE no step is the SAE itself. A step costs 2 d K multiply-adds a row, the first from zero d K, and
    d K more where lengths are sought.

    `encode` gives codes that are not negative, for the atoms as they are; exact ones from there are
    `jaxdict.encode(encoder.problem, encoder.dictionary, X, codes=encoder.encode(X))`. `equinox.tree_serialise_leaves(path, encoder)` keeps
    one, and `equinox.tree_deserialise_leaves(path, like)` reads it, `like` any of the same kind and shapes.

    **Raises** ValueError where shapes disagree.

    >>> encoder = unroll(Problem(lam=0.5), Dictionary(jnp.eye(2)), 3)
    >>> encoder.encode(jnp.array([[3.0, 0.25]])).tolist(), encoder.depth
    ([[2.5, 0.0]], 3)
    """

    problem: Problem
    dictionary: Dictionary
    step_sizes: Float[Array, "depth atoms"]
    levels: Float[Array, "depth atoms"]
    momentum: Float[Array, " depth"] | None
    start: SAE | None = None

    def __check_init__(self):
        shapes = {name: jnp.shape(getattr(self, name)) for name in ("step_sizes", "levels")}
        depth, n_atoms = (shapes["step_sizes"] or (0,))[0], jnp.shape(self.dictionary.atoms)[0]
        wanted: dict[str, tuple[int, ...]] = dict.fromkeys(shapes, (depth, n_atoms))
        if self.momentum is not None:
            shapes["momentum"], wanted["momentum"] = jnp.shape(self.momentum), (depth,)
        for name, shape in shapes.items():
            if shape != wanted[name]:
                raise ValueError(
                    f"{name} has shape {shape}, expected {wanted[name]}; give numbers for each of {depth} steps and {n_atoms} atoms"
                )
        check_encoded(self.problem, self.dictionary, self.start)

    @property
    def depth(self) -> int:
        """The number of steps."""
        return self.step_sizes.shape[0]

    def encode(self, X: Float[Array, "samples d"]) -> Float[Array, "samples atoms"]:
        """Codes of rows, in their dtype. Raises ValueError for rows of another width."""
        X = data_array(X)
        return _encode(encoder_like(self, X), X)


def unroll(
    problem: Problem, dictionary: Dictionary, depth: int, *, start: SAE | None = None, accelerated: bool = True
) -> UnrolledEncoder:
    """`depth` steps of FISTA, or of ISTA, as an encoder with nothing learned: `s = 1 / L`, `l = lam`.

    L is the largest eigenvalue of `A A^T`, with 5% to spare. `accelerated=False` leaves momentum out: then no step raises F, and from
    zero each row's is above its least by at most `L ||z*||^2 / (2 depth)` (Beck and Teboulle 2009). `start`: an SAE whose codes are
    the first ones, in the dictionary's gauge; without it they are zero. The problem's sample weights have no part in codes.

    **Raises** ValueError for signed codes, a negative depth, a start of other shapes, one that normalises its input, and
    one whose codes may be negative.

    >>> import jaxdict as jd
    >>> problem, dictionary, X = Problem(lam=0.1), Dictionary(jnp.array([[1.0, 0.0], [0.8, 0.6]])), jnp.array([[1.0, 1.0]])
    >>> [round(float(jd.objective(problem, dictionary, unroll(problem, dictionary, T).encode(X), X)), 4) for T in (1, 4, 16)]
    [0.2858, 0.1903, 0.155]
    """
    depth = check_count("depth", depth, 0)
    problem, dictionary, start = check_encoded(problem, dictionary, start)
    return _untrained(problem, dictionary, start, depth, accelerated)


@on_any_mesh
@partial(jax.jit, static_argnames=("depth", "accelerated"))
def _untrained(problem: Problem, dictionary: Dictionary, start: SAE | None, depth: int, accelerated: bool):
    atoms = lasso_of(problem, dictionary, dictionary.atoms[:1]).atoms
    n_atoms, d = atoms.shape
    gram = matmul(atoms, atoms.T) if n_atoms <= d else matmul(atoms.T, atoms)
    size = 1 / jnp.maximum(largest_eigenvalue(gram), jnp.finfo(atoms.dtype).tiny)
    ones = jnp.broadcast_to(jnp.ones_like(atoms[:, 0]), (depth, n_atoms))
    momentum = ones[:, 0] * jnp.asarray(fista_momentum(depth) if accelerated else np.zeros(depth), atoms.dtype)
    begin = None if start is None else regauged(start, dictionary)
    return UnrolledEncoder(problem, dictionary, size * ones, problem.lam * ones, momentum, begin)


def fista_momentum(depth: int) -> np.ndarray:
    """`(t_i - 1) / t_{i+1}` with `t_1 = 1`, `t_{i+1} = (1 + sqrt(1 + 4 t_i^2)) / 2`; the first step has nothing to go on with.

    >>> fista_momentum(3).round(3).tolist()
    [0.0, 0.0, 0.282]
    """
    t, found = 1.0, [0.0]
    for _ in range(1, depth):
        new = 0.5 * (1 + np.sqrt(1 + 4 * t * t))
        found.append((t - 1) / new)
        t = new
    return np.asarray(found[:depth])


def encoder_like(encoder, X: Float[Array, "samples d"]):
    """An encoder in the data's dtype; raises ValueError for data of another width."""
    dictionary = encoder.dictionary.like(X)
    problem = unweighted(encoder.problem).like(X)
    return replace(cast(encoder, X.dtype), problem=problem, dictionary=dictionary)


def codes_by_steps(encoder: UnrolledEncoder, X: Float[Array, "samples d"]) -> Float[Array, "samples atoms"]:
    """`encode`, of arrays that fit."""
    problem, dictionary = encoder.problem, encoder.dictionary
    lasso, sizes, levels, momentum = (
        lasso_of(problem, dictionary, X),
        encoder.step_sizes,
        encoder.levels,
        encoder.momentum,
    )
    z = former = first_codes(problem, dictionary, encoder.start, X)
    if encoder.start is None and encoder.depth > 0:  # of zero codes y is what is left
        z = jnp.maximum(sizes[0] * (matmul(lasso.targets, lasso.atoms.T) - levels[0]), 0)
        sizes, levels, momentum = sizes[1:], levels[1:], None if momentum is None else momentum[1:]
    if sizes.shape[0] == 0:
        return codes_of(problem, dictionary, z)
    if momentum is None:
        carry = z, lasso.targets - matmul(z, lasso.atoms)
        (z, _), _ = jax.lax.scan(partial(_best_part, lasso), carry, (sizes, levels))
    else:
        (z, _), _ = jax.lax.scan(partial(_whole_step, lasso), (z, former), (sizes, levels, momentum))
    return codes_of(problem, dictionary, z)


def _whole_step(lasso: Lasso, carry, numbers):
    (z, former), (size, level, beta) = carry, numbers
    v = z + beta * (z - former)
    pulls = matmul(lasso.targets - matmul(v, lasso.atoms), lasso.atoms.T)
    return (jnp.maximum(v + size * (pulls - level), 0), z), None


def _best_part(lasso: Lasso, carry, numbers):
    """A step of the best length: F falls by `a fall - a^2 bend / 2` along it, and what is left moves with the codes."""
    (z, r), (size, level) = carry, numbers
    pulls = matmul(r, lasso.atoms.T)
    change = jnp.maximum(z + size * (pulls - level), 0) - z
    moved = matmul(change, lasso.atoms)
    fall, bend = jnp.sum(change * (pulls - lasso.lam), axis=1), jnp.sum(moved * moved, axis=1)
    part = jnp.clip(safe_divide(fall, bend), 0, 1)[:, None]
    return (jnp.maximum(z + part * change, 0), r - part * moved), None


_encode = on_any_mesh(jax.jit(codes_by_steps), lambda rows: P(rows))
