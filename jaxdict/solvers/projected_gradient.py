"""Joint accelerated projected gradient: dictionary, codes and offset move together. The mission's own method: matmuls only."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdict.certificates.stationarity import from_moments
from jaxdict.encoding.jax_engine.gradient import largest_eigenvalue
from jaxdict.geometry import project_ball, soft_threshold
from jaxdict.numerics import matmul, safe_norm
from jaxdict.objectives import moments, objective, residual
from jaxdict.problem import Dictionary, Problem, metric_of, offset_of, sample_weights
from jaxdict.solvers.reduced import Iterate, point_at

SHRINK, GROW = 0.5, 1.1


class Joint(eqx.Module):
    """The variables of the joint step."""

    atoms: Float[Array, "atoms d"]
    codes: Float[Array, "samples atoms"]
    offset: Float[Array, " d"]


class Accelerated(eqx.Module):
    """Where the method stands: the iterate, the extrapolated point, the momentum's counter and the trial step."""

    here: Joint
    ahead: Joint
    counter: Float[Array, ""]
    size: Float[Array, ""]
    objective: Float[Array, ""]
    stationarity: Float[Array, ""]
    stuck: Array


class ProjectedGradient(eqx.Module):
    """Accelerated projected gradient on (D, Z, b) at once, with backtracking and restarts.

    `y = x + beta (x - x_prev)`, `x+ = Proj(y - t H^-1 grad F(y))`: atoms on the unit ball, codes on the orthant (soft threshold
    in the signed variant). H holds one curvature a block: `lambda_max(D m D^T) w_n / N` for codes, `max(m) lambda_max(E[z z^T])`
    for atoms, `max(m)` for the offset. t shrinks until the quadratic model bounds F and grows slowly after; momentum restarts
    where F would rise, so F never increases. One step of the loop is one trial. All is matmuls and elementwise work: works
    under jit and vmap, and is the method for accelerators at small sizes; the last digits come slowly.

    >>> import jaxdict as jd
    >>> jd.solvers.ProjectedGradient(acceleration=False).acceleration
    False
    """

    acceleration: bool = eqx.field(static=True, default=True)
    slots: int | None = eqx.field(static=True, default=None)

    def init_at(self, problem: Problem, X: Float[Array, "samples d"], point: Iterate, codes) -> Accelerated:
        here = Joint(point.dictionary.atoms, codes, offset_of(point.dictionary))
        one = jnp.ones_like(point.objective)
        return Accelerated(here, here, one, one, point.objective, point.stationarity, ~jnp.isfinite(point.objective))

    def step(self, problem: Problem, X: Float[Array, "samples d"], state: Accelerated) -> Accelerated:
        y, t = state.ahead, state.size
        value, slope = jax.value_and_grad(_smooth)(y, problem, X)
        curvature = _curvatures(problem, X, y)
        moved = jax.tree.map(lambda v, g, h: v - t * g / h, y, slope, curvature)
        new = _project(problem, X, moved, t, curvature)
        step = jax.tree.map(jnp.subtract, new, y)
        length = sum(jnp.sum(h * v * v) for h, v in zip(jax.tree.leaves(curvature), jax.tree.leaves(step), strict=True))
        inner = sum(
            jnp.vdot(g, v, precision=jax.lax.Precision.HIGHEST)
            for g, v in zip(jax.tree.leaves(slope), jax.tree.leaves(step), strict=True)
        )
        rounding = 8 * jnp.finfo(X.dtype).eps * jnp.abs(value)
        bounded = _smooth(new, problem, X) <= value + inner + length / (2 * t) + rounding
        dictionary = Dictionary(new.atoms, new.offset)
        now = objective(problem, dictionary, new.codes, X)
        descends = now <= state.objective + rounding
        accepted = bounded & descends & jnp.isfinite(now)
        counter = 0.5 * (1 + jnp.sqrt(1 + 4 * state.counter**2))
        beta = (state.counter - 1) / counter if self.acceleration else jnp.zeros_like(counter)
        pick = lambda a, b: jax.tree.map(lambda u, v: jnp.where(accepted, u, v), a, b)  # noqa: E731
        ahead = jax.tree.map(lambda a, b: a + beta * (a - b), new, state.here)
        ahead = eqx.tree_at(lambda j: j.atoms, ahead, jax.vmap(project_ball)(ahead.atoms))
        worst = from_moments(problem, dictionary, moments(problem, dictionary, new.codes, X)).worst
        return Accelerated(
            pick(new, state.here),
            pick(ahead, state.here),  # a refused trial restarts the momentum
            jnp.where(accepted, counter, 1),
            jnp.where(bounded, jnp.where(accepted, GROW * t, t), SHRINK * t),
            jnp.where(accepted, now, state.objective),
            jnp.where(accepted, worst, state.stationarity),
            t < jnp.finfo(X.dtype).eps,
        )

    def progress_of(self, state: Accelerated):
        return state.objective, state.stationarity, state.stuck

    def point(self, problem: Problem, X: Float[Array, "samples d"], state: Accelerated) -> tuple[Iterate, Array]:
        """The iterate with unit atoms (norms folded into the codes lower the penalty), as a point, and its codes."""
        norms = safe_norm(state.here.atoms)
        safe = jnp.where(norms > 0, norms, 1)
        dictionary = Dictionary(state.here.atoms / safe[:, None], state.here.offset)
        Z = state.here.codes * norms[None]
        return point_at(problem, X, dictionary, Z, self.slots or 64), Z


def _smooth(joint: Joint, problem: Problem, X: Float[Array, "samples d"]):
    """The data term, and the penalty where it is linear (codes of one sign)."""
    dictionary = Dictionary(joint.atoms, joint.offset if problem.offset else jax.lax.stop_gradient(joint.offset))
    if not problem.signed:
        return objective(problem, dictionary, joint.codes, X)
    r = residual(dictionary, joint.codes, X)
    return jnp.sum(sample_weights(problem, X)[:, None] * 0.5 * metric_of(problem, r)[None] * r * r) / X.shape[0]


def _curvatures(problem, X: Float[Array, "samples d"], y: Joint) -> Joint:
    w, m = sample_weights(problem, X) / X.shape[0], metric_of(problem, X)
    tiny = jnp.finfo(X.dtype).tiny
    steepest = jnp.max(m)
    smaller = matmul(y.atoms * m[None], y.atoms.T) if y.atoms.shape[0] <= X.shape[1] else None
    gram = smaller if smaller is not None else matmul((jnp.sqrt(m)[None] * y.atoms).T, jnp.sqrt(m)[None] * y.atoms)
    by_codes = jnp.maximum(largest_eigenvalue(gram), tiny) * jnp.where(w > 0, w, 1 / X.shape[0])
    by_atoms = jnp.maximum(steepest * largest_eigenvalue(matmul((w[:, None] * y.codes).T, y.codes)), jnp.sqrt(tiny))
    return Joint(
        jnp.full_like(y.atoms, by_atoms),
        jnp.broadcast_to(by_codes[:, None], y.codes.shape),
        jnp.full_like(y.offset, steepest),
    )


def _project(problem, X: Float[Array, "samples d"], moved: Joint, t, curvature: Joint) -> Joint:
    if problem.signed:
        w = sample_weights(problem, X) / X.shape[0]
        width = t * jnp.asarray(problem.lam, X.dtype) * w[:, None] / curvature.codes
        codes = soft_threshold(moved.codes, width)
    else:
        codes = jnp.maximum(moved.codes, 0)
    return Joint(jax.vmap(project_ball)(moved.atoms), codes, moved.offset)
