"""`fit` and `fit_batch`: run a solver, then certify the point that it returns, from the point alone."""

from collections.abc import Callable
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxdict.batches import axis_tree, run_axes, stack_problems
from jaxdict.certificates.certificate import Certificate, certify
from jaxdict.encoding.exact import by_kernels, encode, where_best
from jaxdict.numerics import unit_rows
from jaxdict.problem import Codes, Dictionary, Problem
from jaxdict.sensitivity import implicit_optimum, strictness_tolerance
from jaxdict.solvers.combined import Combined, stages_of, with_slots
from jaxdict.solvers.loop import History, new_trace, run
from jaxdict.solvers.reduced import first_point
from jaxdict.solvers.rescue import escape, revive, worthwhile_gain
from jaxdict.solvers.starts import initial_offset, start_dictionary
from jaxdict.validation import check_data, check_dictionary, check_n_atoms, check_problem

# Times that dead atoms are given a new life, or a saddle is left, before the point is returned as it is.
MAX_ROUNDS = 12

CONVERGED, STEP_LIMIT, ROUNDING, NOT_FINITE, DEAD_ATOMS, ALL_ZERO, SADDLE, NOT_STRICT = range(8)
MESSAGES = (
    "converged: no first-order descent direction beyond tol exists at this point",
    "step limit: the point is not stationary within tol; raise max_steps or loosen tol",
    "stalled: the solver can make no more progress in this precision; loosen tol or use float64",
    "non-finite values met: look for NaN or inf in the data, the start or lam",
    "converged with dead atoms that a re-birth would still help; raise max_steps, or lower n_atoms",
    "all codes are zero: lam is at or above lam_max, where that is the global optimum; choose lam below",
    "stationary, but a saddle: the curvature has a negative eigenvalue that no step along it could use",
    "stationary, but not a strict minimum: the smallest curvature is zero within rounding, so the optimum has no derivative",
)


class Solution(eqx.Module):
    """A fitted dictionary with its codes, the certificate of the point and how the run ended."""

    dictionary: Dictionary
    codes: Codes
    objective: Float[Array, ""]
    certificate: Certificate
    status: Int[Array, ""]
    steps: Int[Array, ""]
    history: History

    def message(self) -> str:
        """The status as a sentence, with the certificate's worst stationarity."""
        worst = float(self.certificate.stationarity.worst)
        return f"{MESSAGES[int(self.status)]} (worst stationarity {worst:.1e} after {int(self.steps)} steps)"


def fit(
    problem: Problem,
    X,
    n_atoms: int | None = None,
    *,
    key=None,
    start: str | Dictionary = "data",
    solver=None,
    tol: float = 1e-6,
    max_steps: int = 3000,
    second_order: bool = False,
    callback: Callable | None = None,
    allow_wide: bool = False,
    implicit: bool = False,
) -> Solution:
    """A dictionary at a local optimum of problem P, with the certificate that it is one.

    Minimises `F(D, Z, b)` (theory.md section 0) over unit atoms, non-negative codes and, where free, the offset; stops when the
    worst of T1's scale-free measures is at most `tol`; gives dead atoms a new life at T10's best atom; then certifies the point
    that it returns with `jaxdict.certify`, from the point alone.

    **Arguments:**

    - `X`: (samples, d) data, float32 or float64 (x64 enabled). Scale matters only against lam.
    - `n_atoms`: width; not needed where `start` is a Dictionary.
    - `key`: a `jax.random` key; same key, same result. Needed for "data" and "random" starts.
    - `start`: "data" (directions of samples), "random", or a Dictionary (its atoms are scaled to norm one).
    - `solver`: `jd.solvers.Combined()` by default; `ProjectedGradient`, `Alternating`, `QuasiNewton`, `Newton` or another `Combined`.
    - `second_order`: also leave saddles (T4): where the curvature at the stationary point has a negative eigenvalue, step along
      its eigenvector and go on. The certificate then holds the curvature.
    - `allow_wide`: accept fewer samples than features, which is refused otherwise, being transposed data as a rule.
    - `callback`: called from the host with a `Progress(step, max_steps, objective, stationarity, stage)` each step.
    - `implicit`: give dictionary, codes and objective derivatives with respect to lam, metric, weights and X, by the implicit
      function theorem at the point returned (`jaxdict.sensitivity`); the start, the certificate and the rest have none. Use a
      tight `tol`: an error in the point is one in the derivatives. The certificate then holds the curvature.

    **Returns** `Solution(dictionary, codes, objective, certificate, status, steps, history)`; `.message()` says how it ended.

    **Raises** ValueError before any compute for data, problem or sizes that make no sense (see `jaxdict.validation`), among them
    `lam >= lam_max`. Under jit and vmap the checks are skipped and everything ends in the status. With `implicit` also where the
    run did not end at a strict minimum, which has no derivative; under jit and vmap the status says so and derivatives are NaN.

    >>> import jax, jax.numpy as jnp, jaxdict as jd
    >>> X = jax.random.normal(jax.random.key(0), (40, 3))
    >>> solution = jd.fit(jd.Problem(lam=0.5), X, 4, key=jax.random.key(1), tol=1e-4)
    >>> bool(solution.certificate.is_stationary(1e-4))
    True
    """
    X = check_data(X, wide="allow" if allow_wide or isinstance(start, Dictionary) else "error")
    check_problem(problem, X)
    given = problem, X
    if implicit:  # the solver is not differentiated, only the point that it ends at
        problem, X = jax.lax.stop_gradient(given)
        start = jax.lax.stop_gradient(start) if isinstance(start, Dictionary) else start
    if isinstance(start, Dictionary):
        start = check_dictionary(start, X)
        if n_atoms is not None and n_atoms != start.atoms.shape[0]:
            raise ValueError(f"n_atoms={n_atoms} but start has {start.atoms.shape[0]} atoms; leave n_atoms out")
    else:
        if n_atoms is None:
            raise ValueError("n_atoms is not given; give the number of atoms, or a Dictionary as start")
        if key is None:
            raise ValueError("key is not given; give jax.random.key(seed), so that the same key gives the same result")
        n_atoms = check_n_atoms(n_atoms, X)
    dictionary = _start(problem, X, n_atoms, key, start)
    solver = _slotted(solver, problem, X, dictionary)
    dictionary, codes, trace, unfinished = _solve(
        problem, X, dictionary, tol, solver, max_steps=max_steps, second_order=second_order, callback=callback
    )
    certificate = certify(problem, dictionary, codes, X, curvature=second_order or implicit)
    solution = _conclude(certificate, dictionary, codes, trace, unfinished, tol)
    return _with_derivatives(*given, solution) if implicit else solution


def _with_derivatives(problem: Problem, X, solution: Solution) -> Solution:
    """The same solution as a differentiable function of (problem, X); refused where it is not a strict minimum."""
    assert solution.certificate.curvature is not None
    steep = solution.certificate.curvature.eigenvalue > strictness_tolerance(X.dtype)
    status = jnp.where((solution.status == CONVERGED) & ~steep, NOT_STRICT, solution.status)
    solution = eqx.tree_at(lambda s: s.status, solution, status)
    if not isinstance(status, Tracer) and int(status) != CONVERGED:
        raise ValueError(f"implicit=True needs a strict minimum, but the run ended so: {solution.message()}")
    moving = implicit_optimum(problem, X, solution.dictionary, solution.codes, status == CONVERGED)
    return eqx.tree_at(lambda s: (s.dictionary, s.codes, s.objective), solution, moving)


def fit_batch(
    problems: Problem,
    X,
    n_atoms: int | None = None,
    *,
    keys,
    start: str | Dictionary = "data",
    solver=None,
    tol: float = 1e-6,
    max_steps: int = 3000,
    second_order: bool = False,
    allow_wide: bool = False,
) -> Solution:
    """Many fits as one program, vmapped (one after another where the CPU's kernels run): problems, keys, data and starts.

    Each of these may have a leading run axis; what has none is shared. `problems` is a Problem with a (runs,) `lam` (and
    metric (runs, d), weights (runs, samples)), or a list of Problems that agree in what is static; `keys` is an array of
    `jax.random` keys; `X` is (samples, d) or (runs, samples, d); `start` may be a Dictionary with a leading axis.
    A grid is written out: `lam=jnp.repeat(lams, n_keys)`, `keys=jnp.tile(keys, n_lams)`.

    **Returns** a Solution with a leading run axis, `status` one entry a run. A run with NaN data or lam, or with lam at or above
    its lam_max, says so in its status and leaves the others untouched.

    **Raises** ValueError where shapes do not fit, or shared data are bad. Works under jit.

    >>> import jax, jax.numpy as jnp, jaxdict as jd
    >>> X, lam = jax.random.normal(jax.random.key(0), (40, 3)), jnp.array([0.5, 0.8])
    >>> runs = jd.fit_batch(jd.Problem(lam=lam), X, 4, keys=jax.random.split(jax.random.key(1), 2), tol=1e-4)
    >>> runs.objective.shape, runs.status.tolist()
    ((2,), [0, 0])
    """
    problems = stack_problems(problems) if isinstance(problems, (list, tuple)) else problems
    wide = "allow" if allow_wide or isinstance(start, Dictionary) else "error"
    X = check_data(X, wide=wide) if jnp.ndim(X) != 3 else jnp.asarray(X)
    axes = run_axes(problems, X, keys, start)
    if isinstance(start, Dictionary):
        n_atoms, start = start.atoms.shape[-2], Dictionary(jnp.asarray(start.atoms, X.dtype), _start_offsets(start, X))
    elif n_atoms is None:
        raise ValueError("n_atoms is not given; give the number of atoms, or a Dictionary as start")
    else:
        n_atoms = check_n_atoms(n_atoms, X) if X.ndim == 2 else int(n_atoms)
    by_name = start if isinstance(start, str) else "data"
    arrays = (problems, X, keys, start if isinstance(start, Dictionary) else None)
    one_problem, one_X, one_key, one_start = jax.tree.map(
        lambda leaf, axis: leaf if axis < 0 else leaf[0], arrays, axis_tree(arrays, axes)
    )
    first = _start(one_problem, one_X, n_atoms, one_key, by_name if one_start is None else one_start)
    solver = _slotted(solver, one_problem, one_X, first)
    sizes = (n_atoms, max_steps, second_order)
    return _solve_batch(arrays, tol, solver, axes=axes, by_name=by_name, sizes=sizes)


@partial(jax.jit, static_argnames=("axes", "by_name", "sizes"))
def _solve_batch(arrays, tol, solver, *, axes, by_name, sizes):
    n_atoms, max_steps, second_order = sizes

    def one(arrays):
        problem, X, key, start = arrays
        dictionary = _start(problem, X, n_atoms, key, by_name if start is None else start)
        dictionary, codes, trace, unfinished = _solve(
            problem, X, dictionary, tol, solver, max_steps=max_steps, second_order=second_order, callback=None
        )
        certificate = certify(problem, dictionary, codes, X, curvature=second_order)
        return _conclude(certificate, dictionary, codes, trace, unfinished, tol)

    batched = axis_tree(arrays, axes)

    def together(arrays):
        return jax.vmap(one, in_axes=(jax.tree.map(lambda axis: None if axis < 0 else axis, batched),))(arrays)

    def in_turn(arrays):  # kernels on the host take runs one by one: so none waits for the slowest
        runs = next(
            leaf.shape[0] for leaf, axis in zip(*map(jax.tree.leaves, (arrays, batched)), strict=True) if axis == 0
        )
        pick = lambda k: jax.tree.map(lambda leaf, axis: leaf if axis < 0 else leaf[k], arrays, batched)  # noqa: E731
        return jax.lax.map(lambda k: one(pick(k)), jnp.arange(runs))

    return where_best("auto", in_turn, together, arrays)


def _start(problem: Problem, X, n_atoms, key, start) -> Dictionary:
    if isinstance(start, Dictionary):
        offset = initial_offset(problem, X) if start.offset is None else start.offset
        return Dictionary(unit_rows(start.atoms), offset if problem.offset else jnp.zeros_like(X[0]))
    return start_dictionary(problem, X, n_atoms, key, start)


def _start_offsets(start: Dictionary, X):
    atoms = jnp.asarray(start.atoms, X.dtype)
    return jnp.zeros_like(atoms[..., 0, :]) if start.offset is None else jnp.asarray(start.offset, X.dtype)


def _slotted(solver, problem: Problem, X, dictionary: Dictionary):
    """The solver, by default `Combined`, with slots: its own where it has them, else as many as the start asks for."""
    solver = Combined() if solver is None else solver
    if all(stage.solver.slots is not None for stage in stages_of(solver)):
        return solver
    return with_slots(solver, _slots_for(problem, X, dictionary))


def _slots_for(problem: Problem, X, dictionary: Dictionary) -> int:
    """Slots a sample for a fit: half as many again as its fullest code has at the start, which a rough estimate tells."""
    plain = dictionary.atoms.shape[0] * (2 if problem.signed else 1)
    if plain <= 24 or any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((problem, X, dictionary))):
        return min(plain, 64)
    method = "numba" if by_kernels() else "gradient"
    rough = encode(_constrained(problem), dictionary, X, tol=1e-2, method=method).codes
    fullest = int(jnp.max(jnp.sum(rough != 0, axis=1)))
    return min(plain, max(16, 8 * -(-(3 * fullest // 2) // 8)))


def _constrained(problem: Problem) -> Problem:
    """The same problem in the constrained gauge, in which solvers work: at unit atoms both gauges agree."""
    return Problem(problem.lam, problem.offset, problem.signed, "constrained", problem.metric, problem.weights)


@partial(jax.jit, static_argnames=("max_steps", "second_order", "callback"))
def _solve(problem: Problem, X, dictionary: Dictionary, tol, solver, *, max_steps, second_order, callback):
    """Rounds of all stages, each followed by the rescue of dead atoms and, if asked for, of saddles, until nothing is left to do."""
    problem = _constrained(problem.astype(X.dtype))

    def one_round(carry):
        point, codes, trace, _, rounds = carry
        point, codes = revive(problem, X, point, codes)
        for stage in stages_of(solver):
            state = stage.solver.init_at(problem, X, point, codes)
            stop = jnp.maximum(tol, stage.stop_at)
            state, trace = run(
                stage.solver, problem, X, state, trace, stop, steps=stage.steps, callback=callback, stage=stage.name
            )
            point, codes = stage.solver.point(problem, X, state)
        open_ = jnp.isfinite(point.objective) & (trace.step < max_steps)
        again = worthwhile_gain(problem, X, point, codes) > 0
        if second_order:
            stay = lambda p, Z: (p, Z, jnp.zeros_like(again))  # noqa: E731
            point, codes, left = jax.lax.cond(open_ & ~again, partial(escape, problem, X), stay, point, codes)
            again = again | left
        return point, codes, trace, again & open_, rounds + 1

    def more(carry):
        return carry[3] & (carry[4] < MAX_ROUNDS)

    point, codes = first_point(problem, X, dictionary, _solver_slots(solver))
    trace = new_trace(max_steps, point.objective)
    yes = ~jnp.isnan(point.objective) | True
    carry = (point, codes, trace, yes, jnp.zeros_like(trace.step))
    point, codes, trace, unfinished, _ = jax.lax.while_loop(more, one_round, carry)
    return point.dictionary, codes, trace, unfinished


def _solver_slots(solver) -> int:
    return stages_of(solver)[0].solver.slots or 64


@jax.jit
def _conclude(certificate: Certificate, dictionary, codes, trace, unfinished, tol) -> Solution:
    """The solution, its status told by the certificate."""
    worst, steps = certificate.stationarity.worst, trace.step
    status = jnp.where(steps >= trace.history.objective.shape[0], STEP_LIMIT, ROUNDING)
    saddle = jnp.zeros_like(unfinished)
    if certificate.curvature is not None:
        saddle = certificate.curvature.eigenvalue < -(float(jnp.finfo(codes.dtype).eps) ** 0.5)
    reached = jnp.where(unfinished, DEAD_ATOMS, jnp.where(saddle, SADDLE, CONVERGED))
    status = jnp.where(worst <= tol, reached, status)
    status = jnp.where(jnp.all(codes == 0), ALL_ZERO, status)
    finite = jnp.isfinite(certificate.objective) & jnp.isfinite(worst)
    return Solution(
        dictionary,
        codes,
        certificate.objective,
        certificate,
        jnp.where(finite, status, NOT_FINITE),
        steps,
        trace.history,
    )
