"""The code problem in plain form, and its duality gap (T2).

For a fixed dictionary problem P splits into one non-negative lasso a sample:

    min_{z >= 0}  1/2 ||y - z A||^2 + lam sum_k z_k,      y = sqrt(m) (x - b),   A = sqrt(m) D

The metric is absorbed in y and A, the penalised gauge in unit atoms, signs in the doubled dictionary (A, -A).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdict.numerics import matmul, power_of_two, safe_norm
from jaxdict.problem import Dictionary, Problem, metric_of, offset_of


class Lasso(NamedTuple):
    """`min_{z >= 0} 1/2 ||y - z A||^2 + lam sum z` for each row y of targets."""

    targets: Float[Array, "samples d"]
    atoms: Float[Array, "atoms d"]
    lam: Float[Array, ""]


class Solved(NamedTuple):
    """How well plain codes are solved, sample by sample, and the rounds or steps that it took."""

    gap: Float[Array, " samples"]
    primal: Float[Array, " samples"]  # the objective
    solved: Bool[Array, " samples"]  # proved within the tolerance
    overflow: Bool[Array, " samples"]  # unsolved for want of slots
    limited: Bool[Array, " samples"]  # unsolved because the rounds or steps ran out
    steps: Int[Array, ""]


class Check(NamedTuple):
    """What one look at all atoms says of codes: residual, correlations `<a_k, r_n>`, objective and duality gap of each sample."""

    residual: Float[Array, "samples d"]
    correlations: Float[Array, "samples atoms"] | None  # None where they are not kept
    primal: Float[Array, " samples"]
    gap: Float[Array, " samples"]
    defect: Float[Array, " samples"]  # T1's codes line: |1 - s| on the support, (s - 1)_+ off it


def lasso_of(problem: Problem, dictionary: Dictionary, X: Float[Array, "samples d"]) -> Lasso:
    """The plain form of the code problem for a dictionary; `codes_of` takes its solution back."""
    atoms = jnp.asarray(dictionary.atoms, X.dtype)
    if problem.gauge == "penalised":
        atoms = atoms / code_scales(problem, dictionary).astype(X.dtype)[:, None]
    root = jnp.sqrt(metric_of(problem, X))[None]
    atoms = root * atoms
    if problem.signed:
        atoms = jnp.concatenate([atoms, -atoms])
    return Lasso(root * (X - offset_of(dictionary).astype(X.dtype)[None]), atoms, jnp.asarray(problem.lam, X.dtype))


def zero_codes(X: Float[Array, "samples d"], n_atoms: int) -> Float[Array, "samples atoms"]:
    """Codes of zero to start from, born from the data: they shard as it does, and compiling does not fold them away for seconds."""
    return jnp.broadcast_to(0 * X[:, :1], (X.shape[0], n_atoms))


def codes_of(
    problem: Problem, dictionary: Dictionary, Z: Float[Array, "samples plain"]
) -> Float[Array, "samples atoms"]:
    """Codes of the problem from codes of its plain form."""
    if problem.signed:
        half = Z.shape[1] // 2
        Z = Z[:, :half] - Z[:, half:]
    return Z / code_scales(problem, dictionary).astype(Z.dtype)[None]


def plain_codes(
    problem: Problem, dictionary: Dictionary, codes: Float[Array, "samples atoms"]
) -> Float[Array, "samples plain"]:
    """Codes of the plain form from codes of the problem (a warm start); the inverse of `codes_of`."""
    Z = codes * code_scales(problem, dictionary).astype(codes.dtype)[None]
    return jnp.concatenate([jnp.maximum(Z, 0), jnp.maximum(-Z, 0)], axis=1) if problem.signed else jnp.maximum(Z, 0)


def code_scales(problem: Problem, dictionary: Dictionary) -> Float[Array, " atoms"]:
    """What a code of the plain form is of the problem's: the atom's norm in the penalised gauge (one for a zero atom), else one."""
    atoms = jnp.asarray(dictionary.atoms)
    if problem.gauge != "penalised":
        return jnp.ones_like(atoms[:, 0])
    norms = row_norms(atoms)
    return jnp.where(norms > 0, norms, 1)


def check(lasso: Lasso, Z: Float[Array, "samples atoms"]) -> Check:
    """One look at all atoms, from dense codes."""
    r = lasso.targets - matmul(Z, lasso.atoms)
    correlations = matmul(r, lasso.atoms.T)
    return measured(lasso, Z, r, correlations, correlations)


def measured(lasso: Lasso, values, r, value_correlations, correlations) -> Check:
    """The `Check` of codes in use (dense, or slots) and their residual, from correlations of the codes in use and of all atoms."""
    squared, top = jnp.sum(r * r, axis=1), jnp.max(correlations, axis=1, initial=0)
    primal = 0.5 * squared + lasso.lam * jnp.sum(values, axis=1)
    gap = duality_gap(lasso.lam, squared, values, value_correlations, top)
    return Check(r, correlations, primal, gap, codes_defect(lasso.lam, values, value_correlations, top))


def duality_gap(lam, squared, values, value_correlations, top) -> Float[Array, " samples"]:
    """The gap of T2 of each sample. With `c = min(1, lam / max_k <a_k, r>)` it is

        1/2 (1 - c)^2 ||r||^2 + sum_k z_k (lam - c <a_k, r>),

    a sum of non-negative terms in which nothing cancels: what is left in float32 is the rounding of r itself.
    """
    c = jnp.minimum(1, lam / jnp.where(top > 0, top, lam))
    slack = jnp.sum(jnp.maximum(values * (lam - c[:, None] * value_correlations), 0), axis=1)
    return 0.5 * (1 - c) ** 2 * squared + slack


def codes_defect(lam, values, value_correlations, top) -> Float[Array, " samples"]:
    """T1's codes line, the worst of each sample: `|1 - s|` on the support, `(s - 1)_+` off it, `s = <a_k, r> / lam`."""
    on_support = jnp.max(jnp.where(values > 0, jnp.abs(lam - value_correlations), 0), axis=1, initial=0)
    return jnp.maximum(jnp.maximum(on_support, top - lam) / lam, 0)


def within(seen: Check, tol, defect_tol=None) -> Bool[Array, " samples"]:
    """Which samples are solved: gap at most `tol` times the objective and, where it is given, the defect at most `defect_tol`.

    A gap that underflows proves nothing. Where the objective is that small T1's line does: a defect of `tol / 2` bounds the gap by
    `tol` times the objective (put it in T2), and does not depend on size.
    """
    solved = jnp.where(is_minute(seen.primal), 2 * seen.defect <= tol, seen.gap <= tol * seen.primal)
    return solved if defect_tol is None else solved & (seen.defect <= defect_tol)


def is_minute(primal) -> Bool[Array, " samples"]:
    """Whether a part of an objective as small as its rounding is below what the dtype can hold."""
    limits = jnp.finfo(primal.dtype)
    return primal < float(limits.tiny) / float(limits.eps)


class Units(NamedTuple):
    """Powers of two that bring targets and atoms to size one: `targets = units.targets targets'`, `atoms = units.atoms atoms'`."""

    targets: Float[Array, ""]
    atoms: Float[Array, ""]

    def of_codes(self, values):
        """Codes of the lasso from those of the lasso in these units."""
        return values * self.targets / self.atoms

    def to_codes(self, values):
        """The inverse of `of_codes`."""
        return values * self.atoms / self.targets

    def of_gap(self, gap, minute):
        """A gap in the lasso's own units, rounded up where it is too small for the dtype (`minute`: where it was so before)."""
        own = gap * self.targets * self.targets
        return jnp.where((gap > 0) | minute, jnp.maximum(own, jnp.finfo(own.dtype).tiny), own)


def in_units(lasso: Lasso) -> tuple[Lasso, Units]:
    """The lasso in units of its own size, so that squares neither overflow nor underflow; nothing is rounded.

    Codes of `(y / s, A / t, lam / (s t))` are t / s times, and objectives 1 / s^2 times, those of (y, A, lam).
    """
    units = Units(power_of_two(lasso.targets), power_of_two(lasso.atoms))
    lam = lasso.lam / units.targets / units.atoms
    # Beyond these bounds all codes are zero, or none is changed by lam.
    lam = jnp.clip(lam, jnp.finfo(lam.dtype).tiny, 4 * lasso.atoms.shape[1])
    return Lasso(lasso.targets / units.targets, lasso.atoms / units.atoms, lam), units


def row_norms(atoms) -> Float[Array, " atoms"]:
    """Norms of rows of any size."""
    sizes = power_of_two(atoms, axis=1)
    return sizes * safe_norm(atoms / sizes[:, None])
