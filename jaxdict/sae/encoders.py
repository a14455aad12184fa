"""Encoders for a bare dictionary, so that it can be used where a sparse autoencoder is expected."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdict.arrays import is_concrete, look
from jaxdict.meshes import on_any_mesh
from jaxdict.numerics import matmul, unit_rows
from jaxdict.points import check_point
from jaxdict.problem import Codes, Dictionary, Problem, canonical, dense_codes, offset_of
from jaxdict.sae.models import SAE, Metadata


def tied_sae(dictionary: Dictionary, lam: float) -> SAE:
    """The SAE of one proximal step from zero: `f = relu((x - b) D^T - lam)`, unit atoms.

    Exact where atoms are orthogonal. Raises ValueError for lam < 0.

    >>> tied_sae(Dictionary(jnp.eye(2)), 0.5).encode(jnp.array([2.0, 0.25]))
    Array([1.5, 0. ], dtype=float32)
    """
    if is_concrete(lam) and not look(lambda xp, value: bool(xp.all(value >= 0)), lam):
        raise ValueError(f"lam is {lam}, expected a number >= 0")
    atoms, offset = _unit(dictionary)
    b_enc = jnp.full(atoms.shape[:1], -jnp.asarray(lam, atoms.dtype))
    return SAE(
        atoms.T,
        b_enc,
        atoms,
        offset,
        metadata=Metadata(lam=_told(lam), notes=("encoder tied: W_enc = atoms.T, b_enc = -lam",)),
    )


def fitted_sae(
    dictionary: Dictionary, lam: float, X: Float[Array, "samples d"], codes: Codes, *, ridge=1e-4, steps=100
) -> SAE:
    """The SAE whose encoder comes closest to given codes, `relu((x - b) W + c) ~ z`.

    Minimises the convex `sum_nk [z_nk > 0] (p_nk - z_nk)^2 + [z_nk = 0] relu(p_nk)^2 + ridge-penalty(W)` over `p = (x
    - b) W + c`: where a code is zero any p <= 0 will do. Each step solves a ridge regression on the targets `z` where
    positive and `min(p, 0)` elsewhere, an upper bound that touches at p, so the sum never rises; it starts from the
    tied encoder. `ridge` is relative to the mean variance of the inputs. X is (samples, d), codes (samples, atoms)
    dense or sparse, non-negative, for the atoms as given. Raises ValueError where shapes disagree or codes are
    negative.
    """
    _, dictionary, codes, X = check_point(Problem(lam=1.0), dictionary, codes, X)
    codes = dense_codes(codes, dictionary.atoms.shape[0])
    if is_concrete(codes) and look(lambda xp, Z: bool(xp.any(Z < 0)), codes):
        raise ValueError("codes are negative somewhere; a relu encoder cannot give them")
    _, codes = canonical(dictionary, codes)
    start = tied_sae(dictionary, lam)
    W, c = _fit(X - start.b_dec, codes, start.W_enc, start.b_enc, ridge, steps)
    return SAE(
        W,
        c,
        start.W_dec,
        start.b_dec,
        metadata=Metadata(lam=_told(lam), notes=("encoder fitted to codes by censored ridge regression",)),
    )


def _told(lam) -> float | None:
    """lam as metadata keeps it: a number, None where it is traced."""
    return float(lam) if is_concrete(lam) else None


def _unit(dictionary):
    dictionary = dictionary.alone()
    return unit_rows(dictionary.atoms), offset_of(dictionary)


@on_any_mesh
@jax.jit
def _fit(U, codes, W, c, ridge, steps):
    ones = jnp.ones((U.shape[0], 1), U.dtype)
    inputs = jnp.concatenate([U, ones], axis=1)
    gram = matmul(inputs.T, inputs)
    # The bias is not penalised, beyond what keeps the factorisation safe.
    penalty = ridge * jnp.trace(gram[:-1, :-1]) / U.shape[1]
    weights = jnp.full(gram.shape[:1], penalty).at[-1].set(1e-6 * U.shape[0])
    regression = jax.scipy.linalg.solve(gram + jnp.diag(weights), inputs.T, assume_a="pos")

    def improve(_, solution):
        p = matmul(inputs, solution)
        targets = jnp.where(codes > 0, codes, jnp.minimum(p, 0))
        return matmul(regression, targets)

    solution = jax.lax.fori_loop(0, steps, improve, jnp.concatenate([W, c[None]]))
    return solution[:-1], solution[-1]
