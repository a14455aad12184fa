"""How an optimum moves with what defined it: the implicit function theorem at its active set, and the envelope theorem (T3).

With the codes eliminated a fitted point is a zero of `G(D, b) = P (-E[z* m r], -E[m r])`, P the projection on the tangent space of
the spheres (live atoms) and on a free offset, z* the exact codes. Its derivative on that space is T4's Hessian,

    H v = P (dG v) + lam zbar_k dD_k,        so        d(D, b) = -H^-1 P (dG/dtheta) dtheta,

a linear system that is solved by conjugate gradients on products only.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array, Float, Int

from jaxdict.certificates.curvature import curvature, strictness_tolerance
from jaxdict.encoding.exact import encode
from jaxdict.encoding.implicit import implicit_codes
from jaxdict.meshes import on_any_mesh
from jaxdict.numerics import matmul
from jaxdict.objectives import objective, residual
from jaxdict.points import array_like, check_point
from jaxdict.problem import Codes, Dictionary, Problem, SparseCodes, dense_codes, metric_of, offset_of, sample_weights

# Conjugate gradients take at most this many steps; without rounding, as many as there are unknowns would do.
MAX_STEPS = 2000

EXACT, INEXACT, NOT_STRICT, NOT_FINITE = range(4)
MESSAGES = (
    "exact: the linear system is solved",
    "inexact: conjugate gradients ended above 1e-6 of the right side; the optimum is nearly flat",
    "refused: not a strict minimum (smallest curvature not above rounding), so the optimum has no derivative",
    "non-finite values met: look for NaN or inf in the point, the data or the change",
)


class Response(NamedTuple):
    """The change of an optimum, per unit of a change of what defined it, and how well it is known."""

    dictionary: Dictionary  # NaN where refused
    codes: Codes
    objective: Float[Array, ""]
    residual: Float[Array, ""]  # of the linear system, relative to its right side
    curvature: Float[Array, ""]  # smallest eigenvalue of the scaled Hessian (T4), whose largest is at most one
    status: Int[Array, ""]

    @property
    def condition(self) -> Float[Array, ""]:
        """Condition number of the scaled Hessian, at most: errors are at most `condition` times `residual`."""
        return 1 / self.curvature

    def message(self) -> str:
        """The status as a sentence, with residual and condition."""
        told = f"(relative residual {float(self.residual):.1e}, condition at most {float(self.condition):.1e})"
        return f"{MESSAGES[int(self.status)]} {told}"


def optimal_value(
    problem: Problem,
    dictionary: Dictionary,
    X: Float[Array, "samples d"],
    *,
    codes: Codes | None = None,
    tol: float = 1e-6,
) -> Float[Array, ""]:
    """The least value over codes, `phi(D, b) = min_{Z >= 0} F(D, Z, b)`, differentiable in one pass by the envelope theorem (T3).

        dphi/dlam = sum_k ||d_k|| E[z_k],    dphi/dx_n = w_n m r_n / N,    dphi/dD = -E[z m r],    dphi/db = -E[m r],

    and likewise for metric, weights and the penalised gauge: F's own derivatives at fixed codes. At a fitted dictionary
    those for lam, X, metric and weights are also those of the minimum over dictionaries. Second derivatives do follow
    the codes (`jaxdict.encoding.implicit`).

    `codes` are the optimal ones where they are known; else `jd.encode` finds them to `tol`. X is (samples, d); a scalar in squared
    units of the data. Raises what `encode` raises.

    >>> import jax, jax.numpy as jnp, jaxdict as jd
    >>> X, D = jnp.array([[3.0, 0.25]]), jd.Dictionary(jnp.eye(2))
    >>> float(jax.grad(lambda lam: optimal_value(jd.Problem(lam=lam), D, X))(0.5))  # the code is 3 - 1/2
    2.5
    """
    X = jnp.asarray(X)
    if codes is None:
        codes = encode(*jax.lax.stop_gradient((problem, dictionary, X)), tol=tol).codes
    inputs = problem.astype(X.dtype), _with_offset(dictionary, X), X
    return _value(inputs, jax.lax.stop_gradient(codes))


@jax.custom_jvp
def _value(inputs, codes):
    problem, dictionary, X = inputs
    return objective(problem, dictionary, codes, X)


@_value.defjvp
def _value_jvp(primals, tangents):
    (problem, dictionary, X), codes = primals
    codes = implicit_codes(problem, dictionary, X, codes)  # for the derivative of this rule; here they stand still
    value = lambda problem, dictionary, X: objective(problem, dictionary, codes, X)  # noqa: E731
    return jax.jvp(value, (problem, dictionary, X), tangents[0])


def implicit_optimum(
    problem: Problem, X: Float[Array, "samples d"], dictionary: Dictionary, codes: Codes, strict: bool | Array = True
):
    """A fitted point and its objective, as differentiable functions of (problem, X): `fit(..., implicit=True)`.

    Values are those given. Unit atoms, constrained gauge. Live atoms turn on their spheres, dead ones and a fixed offset stay, codes
    follow on their support; the objective's derivative is the envelope theorem's. `strict=False` (not a strict minimum) gives
    NaN derivatives of dictionary and codes.

    **Returns** (dictionary, codes, objective).

    >>> import jax, jax.numpy as jnp, jaxdict as jd
    >>> X, D, Z = jnp.array([[3.0, 0.0], [5.0, 0.0]]), jd.Dictionary(jnp.array([[1.0, 0.0]])), jnp.array([[2.5], [4.5]])
    >>> point = lambda lam: implicit_optimum(jd.Problem(lam=lam, offset=False), X, D, Z)
    >>> float(jax.jacobian(lambda lam: point(lam)[2])(0.5))  # the mean code
    3.5
    """
    X = jnp.asarray(X)
    dictionary, codes, strict = jax.lax.stop_gradient((_with_offset(dictionary, X), codes, jnp.asarray(strict)))
    inputs = _constrained(problem.astype(X.dtype)), X
    moving = _dictionary(inputs, dictionary, codes, strict)
    return moving, implicit_codes(inputs[0], moving, X, codes), _least_value(inputs, dictionary, codes, strict)


@jax.custom_jvp
def _dictionary(inputs, dictionary, codes, strict):
    return dictionary


@_dictionary.defjvp
def _dictionary_jvp(primals, tangents):
    inputs, dictionary, codes, strict = primals
    dictionary = _dictionary(inputs, dictionary, codes, strict)  # so that the rule's own derivative knows how it moves
    change, _ = dictionary_change(inputs, tangents[0], dictionary, codes)
    sure = jnp.where(strict, 1, jnp.nan).astype(inputs[1].dtype)  # by a product, which reverse mode keeps
    return dictionary, jax.tree.map(lambda leaf: leaf * sure, change)


@jax.custom_jvp
def _least_value(inputs, dictionary, codes, strict):
    return objective(inputs[0], dictionary, codes, inputs[1])


@_least_value.defjvp
def _least_value_jvp(primals, tangents):
    inputs, dictionary, codes, strict = primals
    dictionary = _dictionary(inputs, dictionary, codes, strict)
    codes = implicit_codes(inputs[0], dictionary, inputs[1], codes)
    value = lambda problem, X: objective(problem, dictionary, codes, X)  # noqa: E731
    return jax.jvp(value, inputs, tangents[0])


@jax.jit
def dictionary_change(inputs, moved, dictionary: Dictionary, codes) -> tuple[Dictionary, Float[Array, ""]]:
    """`d(D, b) = -H^-1 P (dG/dtheta) dtheta` for a change of inputs = (problem, X), and the linear system's relative residual.

    The unknowns are scaled as in `certificates/curvature.py`, so that the largest curvature is at most one.
    """
    problem, X = inputs
    atoms = dictionary.atoms

    def slopes(problem, X: Float[Array, "samples d"], dictionary):  # of phi, by T3
        Z = dense_codes(implicit_codes(problem, dictionary, X, codes), atoms.shape[0])
        pull = metric_of(problem, X)[None] * residual(dictionary, Z, X)
        pull = pull * (sample_weights(problem, X) / X.shape[0])[:, None]
        return Dictionary(-matmul(Z.T, pull), -jnp.sum(pull, axis=0))

    _, change = jax.linearize(slopes, problem, X, dictionary)
    none = jax.tree.map(jnp.zeros_like, (problem, X, dictionary))
    rates, scales = _rates_and_scales(problem, dictionary, implicit_codes(problem, dictionary, X, codes), X)

    def tangent(v):
        across = v.atoms - jnp.sum(v.atoms * atoms, axis=1, keepdims=True) * atoms
        offset = jnp.where(problem.offset, v.offset, 0)  # a linear zero: reverse mode asks for one
        return Dictionary(jnp.where(rates[:, None] > 0, across, 0), offset)

    def scaled(v):
        return Dictionary(v.atoms / scales[0][:, None], v.offset / scales[1])

    def product(v):  # the identity off the tangent space, where H would be zero
        inner = tangent(v)
        step = scaled(inner)
        bent = change(none[0], none[1], step)
        image = Dictionary(bent.atoms + rates[:, None] * step.atoms, bent.offset)
        return jax.tree.map(lambda a, b, c: a + b - c, tangent(scaled(tangent(image))), v, inner)

    pushed = tangent(scaled(tangent(change(*moved, none[2]))))
    solved = jax.lax.custom_linear_solve(
        product, jax.tree.map(jnp.negative, pushed), _conjugate_gradients, symmetric=True
    )
    left = jax.tree.map(jnp.add, product(solved), pushed)
    size = _norm(pushed)
    return tangent(scaled(tangent(solved))), _norm(left) / jnp.where(size > 0, size, 1)


def _conjugate_gradients(product, right):
    """Stops at a residual of `eps^0.8` of the right side's norm. (lineax's stops entry by entry, which a zero entry never does.)"""
    tol = float(jnp.finfo(right.offset.dtype).eps ** 0.8)
    solved, _ = cg(product, right, tol=tol, maxiter=MAX_STEPS)
    # A right side with NaN takes no step, and zeros would hide it.
    known = jnp.isfinite(_norm(right))
    return jax.tree.map(lambda leaf: jnp.where(known, leaf, jnp.nan), solved)


def _rates_and_scales(problem, dictionary, codes, X: Float[Array, "samples d"]):
    """`lam zbar_k`; square roots of `max(m) E[z_k^2] + lam zbar_k` and of `max(m)`."""
    w = sample_weights(problem, X) / X.shape[0]
    Z = dense_codes(codes, dictionary.atoms.shape[0])
    rates, top = problem.lam * matmul(w, jnp.abs(Z)), jnp.max(metric_of(problem, X))
    power = top * matmul(w, Z**2) + rates
    return rates, (jnp.sqrt(jnp.where(rates > 0, power, 1)), jnp.sqrt(top))


def response(
    problem: Problem,
    dictionary: Dictionary,
    codes: Codes,
    X: Float[Array, "samples d"],
    *,
    lam=0.0,
    data=None,
    metric=None,
    weights=None,
) -> Response:
    """How a stationary point moves as its problem does: the derivative along a change of lam, data, metric and weights.

    The tangent that `jax.jvp` through `fit(..., implicit=True)` gives, with what is known of its accuracy: the relative
    residual of the linear system and the smallest curvature. From the point alone, which must be stationary (`jd.certify`).

    `lam` (scalar), `data` (samples, d), `metric` (d,) and `weights` (samples,) are rates of change; metric and weights need one in the
    problem (`jnp.ones` will do). Unit atoms; problem in either gauge. Refused, with NaN, where the smallest scaled
    curvature is not above `strictness_tolerance`: then the point is no strict minimum.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> X, D, Z = jnp.array([[3.0, 0.0], [5.0, 0.0]]), jd.Dictionary(jnp.array([[1.0, 0.0]])), jnp.array([[2.5], [4.5]])
    >>> moved = response(jd.Problem(lam=0.5, offset=False), D, Z, X, data=jnp.array([[0.0, 1.0], [0.0, 0.0]]))
    >>> [round(float(v), 4) for v in moved.dictionary.atoms[0]], int(moved.status)  # 1.25 / (E[z^2] + lam zbar)
    ([0.0, 0.0833], 0)
    """
    problem, dictionary, codes, X = check_point(problem, dictionary, codes, X)
    given = {"lam": lam, "metric": metric, "weights": weights}
    for name, value in given.items():
        if value is not None and getattr(problem, name) is None:
            raise ValueError(
                f"{name} changes but the problem has none; give Problem({name}=jnp.ones(...)), which is the same"
            )
    problem = _constrained(problem)
    has = {name: getattr(problem, name) for name in given if getattr(problem, name) is not None}
    rates = [_rate_of(leaf, given[name], name) for name, leaf in has.items()]
    tangents = jax.tree.unflatten(jax.tree.structure(problem), rates)
    dX = _rate_of(X, data, "data")
    dictionary = _with_offset(dictionary, X)
    smallest = curvature(problem, dictionary, codes, X).eigenvalue
    return _response((problem, X), (tangents, dX), dictionary, codes, smallest)


@on_any_mesh
@jax.jit
def _response(inputs, moved, dictionary, codes, smallest):
    step, left = dictionary_change(inputs, moved, dictionary, codes)

    def values(problem, X: Float[Array, "samples d"], dictionary):
        followed = implicit_codes(problem, dictionary, X, codes)
        return followed.values if isinstance(followed, SparseCodes) else followed

    dvalues = jax.jvp(values, (*inputs, dictionary), (*moved, step))[1]
    dvalue = jax.jvp(lambda problem, X: objective(problem, dictionary, codes, X), inputs, moved)[1]
    flat = ~(smallest > strictness_tolerance(inputs[1].dtype))
    status = jnp.where(left <= 1e-6, EXACT, INEXACT)
    status = jnp.where(flat, NOT_STRICT, status)
    status = jnp.where(jnp.isfinite(left) & ~jnp.isnan(smallest), status, NOT_FINITE)
    step, dvalues = jax.tree.map(lambda leaf: jnp.where(flat, jnp.nan, leaf), (step, dvalues))
    dcodes = SparseCodes(codes.indices, dvalues) if isinstance(codes, SparseCodes) else dvalues
    return Response(step, dcodes, dvalue, left, smallest, status)


def _rate_of(moving: Array, rate, name: str) -> Array:
    return jnp.zeros_like(moving) if rate is None else array_like(rate, name, moving, "what changes")


def _constrained(problem: Problem) -> Problem:
    """The same problem in the constrained gauge: at unit atoms both agree."""
    return Problem(problem.lam, problem.offset, problem.signed, "constrained", problem.metric, problem.weights)


def _with_offset(dictionary: Dictionary, X: Float[Array, "samples d"]) -> Dictionary:
    return Dictionary(jnp.asarray(dictionary.atoms, X.dtype), offset_of(dictionary).astype(X.dtype))


def _norm(tree) -> Float[Array, ""]:
    return jnp.sqrt(sum(jnp.sum(leaf * leaf) for leaf in jax.tree.leaves(tree)))
