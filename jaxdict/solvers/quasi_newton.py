"""Quasi-Newton on the reduced problem: limited-memory BFGS over dictionary and offset, exact codes at every trial."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxdict.numerics import safe_norm, unit_rows
from jaxdict.problem import Codes, Dictionary, Problem, offset_of
from jaxdict.solvers.reduced import Iterate, codes_at, next_point

ARMIJO = 0.1
# Trials in a row without success before the memory is dropped, and again before the solver gives up.
TRIALS = 12
# Change of the logarithm of a variable's scale beyond which all are scaled anew.
DRIFT = 1.5


class LineSearch(eqx.Module):
    """Where the method stands: the accepted point, the variables there, the search direction and the next trial's step size."""

    point: Iterate
    variables: tuple[Array, Array]
    slopes: tuple[Array, Array]
    scale: Float[Array, " atoms"]
    memory: optax.OptState
    direction: tuple[Array, Array]
    slope: Float[Array, ""]
    size: Float[Array, ""]
    failures: Int[Array, ""]
    fresh: Bool[Array, ""]  # the memory is empty
    stuck: Bool[Array, ""]


class QuasiNewton(eqx.Module):
    """L-BFGS on `phi(D, b) = min_Z F` over the product of unit spheres, exact codes warm-started at every trial.

    The variables are `V_k` of norm about `sqrt(E[z_k^2] + lam zbar_k)` with `d_k = V_k / ||V_k||`: the sphere is met exactly,
    and the scale is that of the diagonal of the Hessian. A trial is accepted on Armijo's condition, or, where values no longer differ
    beyond rounding, on its slope (approximate Wolfe conditions, Hager and Zhang 2005), so that convergence goes on to about
    1e-12. One step of the loop is one trial. Works under jit and vmap.

    >>> import jaxdict as jd
    >>> jd.solvers.QuasiNewton(memory=10).memory
    10
    """

    memory: int = eqx.field(static=True, default=40)
    slots: int | None = eqx.field(static=True, default=None)

    def _transform(self):
        return optax.scale_by_lbfgs(memory_size=self.memory)

    def _direction(self, slopes, memory, variables):
        """The step that a memory makes of slopes, and the memory after; optax mixes integer types, whatever the caller's rules."""
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return self._transform().update(slopes, memory, variables)

    def init_at(self, problem: Problem, X: Float[Array, "samples d"], point: Iterate, codes) -> LineSearch:
        """Start from a point whose codes are solved (by another stage)."""
        scale = scales(problem, point)
        variables = (point.dictionary.atoms / scale[:, None], offset_of(point.dictionary))
        slopes = _slopes(variables, point)
        false = jnp.isnan(point.objective) & False
        memory = self._transform().init(variables)
        state = LineSearch(
            point,
            variables,
            slopes,
            scale,
            memory,
            slopes,
            point.objective,
            jnp.ones_like(point.objective),
            jnp.zeros_like(point.slots.indices[0, 0]),
            ~false,
            ~jnp.isfinite(point.objective),
        )
        return self._aim(state)

    def _steepest(self, state: LineSearch):
        """The direction of an empty memory, and the memory that begins with it."""
        steps, memory = self._direction(state.slopes, self._transform().init(state.variables), state.variables)
        return jax.tree.map(jnp.negative, steps), memory

    def _aim(self, state: LineSearch, drop: Bool[Array, ""] | bool = False) -> LineSearch:
        """A new direction from the accepted point; the memory is dropped on request, and where it does not point downhill."""
        steps, memory = self._direction(state.slopes, state.memory, state.variables)
        direction = jax.tree.map(jnp.negative, steps)
        slope = dot(direction, state.slopes)
        plain, plain_memory = self._steepest(state)
        good = (slope < 0) & ~jnp.asarray(drop)
        pick = lambda a, b: jax.tree.map(lambda x, y: jnp.where(good, x, y), a, b)  # noqa: E731
        direction, memory = pick(direction, plain), pick(memory, plain_memory)
        return eqx.tree_at(
            lambda s: (s.direction, s.memory, s.slope, s.size, s.fresh),
            state,
            (direction, memory, dot(direction, state.slopes), jnp.ones_like(state.size), ~good | (memory.count <= 1)),
        )

    def step(self, problem: Problem, X: Float[Array, "samples d"], state: LineSearch) -> LineSearch:
        dictionary, variables = self.propose(problem, X, state)
        trial = next_point(problem, X, dictionary, state.point.slots)
        return self.take(problem, X, state, variables, trial, None)

    def propose(self, problem: Problem, X: Float[Array, "samples d"], state: LineSearch) -> tuple[Dictionary, tuple]:
        variables = jax.tree.map(lambda v, p: v + state.size * p, state.variables, state.direction)
        return Dictionary(unit_rows(variables[0]), variables[1]), variables

    def take(self, problem: Problem, X: Float[Array, "samples d"], state: LineSearch, about, trial: Iterate, codes):
        variables = about
        slopes = _slopes(variables, trial)
        slope = dot(state.direction, slopes)
        eps = jnp.finfo(X.dtype).eps
        descends = trial.objective <= state.point.objective + ARMIJO * state.size * state.slope
        level = trial.objective <= state.point.objective + 8 * eps * jnp.abs(state.point.objective)
        flat = level & (slope <= (2 * ARMIJO - 1) * state.slope)
        accepted = (descends | flat) & trial.solved
        # Where codes have grown or shrunk out of the scale that the variables were given, start again with theirs.
        scale = scales(problem, trial)
        drift = jnp.max(jnp.abs(jnp.log(scale / state.scale))) > DRIFT
        scale = jnp.where(drift, scale, state.scale)
        variables = jnp.where(drift, trial.dictionary.atoms / scale[:, None], variables[0]), variables[1]
        ahead = eqx.tree_at(
            lambda s: (s.point, s.variables, s.slopes, s.scale, s.failures),
            state,
            (trial, variables, _slopes(variables, trial), scale, jnp.zeros_like(state.failures)),
        )
        return jax.tree.map(
            lambda a, b: jnp.where(accepted, a, b), self._aim(ahead, drift), self._retreat(state, trial)
        )

    def _retreat(self, state: LineSearch, trial: Iterate) -> LineSearch:
        """A shorter step, to the minimum of the parabola through value and slope here and the value there; from scratch after many."""
        rise = trial.objective - state.point.objective - state.size * state.slope
        parabola = -0.5 * state.slope * state.size / jnp.where(rise > 0, rise, jnp.inf)
        size = state.size * jnp.clip(jnp.where(jnp.isfinite(parabola), parabola, 0.1), 0.1, 0.5)
        failures = state.failures + 1
        out = failures >= TRIALS
        plain, memory = self._steepest(state)
        pick = lambda a, b: jax.tree.map(lambda x, y: jnp.where(out, x, y), a, b)  # noqa: E731
        direction = pick(plain, state.direction)
        return eqx.tree_at(
            lambda s: (s.direction, s.memory, s.slope, s.size, s.failures, s.fresh, s.stuck),
            state,
            (
                direction,
                pick(memory, state.memory),
                dot(direction, state.slopes),
                jnp.where(out, 1, size),
                jnp.where(out, 0, failures),
                state.fresh | out,
                out & state.fresh,
            ),
        )

    def point(
        self, problem: Problem, X: Float[Array, "samples d"], state: LineSearch, *, sparse: bool = False
    ) -> tuple[Iterate, Codes]:
        return state.point, codes_at(problem, X, state.point, sparse=sparse)

    def progress_of(self, state: LineSearch):
        return state.point.objective, state.point.stationarity, state.stuck


def scales(problem: Problem, point: Iterate) -> Float[Array, " atoms"]:
    """One over the root of the Hessian's diagonal, `E[z_k^2] + lam zbar_k`, bounded for atoms that are hardly used."""
    curvature = point.mean_squares + jnp.asarray(problem.lam, point.mean_codes.dtype) * point.mean_codes
    largest = jnp.max(curvature)
    return 1 / jnp.sqrt(jnp.maximum(curvature, 1e-6 * jnp.where(largest > 0, largest, 1)))


def _slopes(variables, point: Iterate):
    """Slopes in the scaled variables, whose atoms are `V / ||V||`: `(I - d d^T) dphi/dD / ||V||`; zero for dead atoms."""
    V, atoms = variables[0], point.dictionary.atoms
    tangent = point.atoms_slope - jnp.sum(point.atoms_slope * atoms, axis=1, keepdims=True) * atoms
    return tangent / safe_norm(V)[:, None], point.offset_slope


def dot(a, b) -> Float[Array, ""]:
    """The inner product of two changes of (atoms, offset)."""
    return jnp.asarray(sum(jnp.vdot(x, y, precision=jax.lax.Precision.HIGHEST) for x, y in zip(a, b, strict=True)))
