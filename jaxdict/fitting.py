"""`fit` and `fit_batch`: run a solver, then certify the point that it returns, from the point alone."""

import inspect
from collections.abc import Callable
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxdict.batches import axis_tree, run_axes, stack_problems
from jaxdict.certificates.certificate import certify
from jaxdict.certificates.curvature import strictness_tolerance
from jaxdict.compiling import compiled_in_a_hurry
from jaxdict.encoding.engines import NUMBA_ENGINE, on_engine
from jaxdict.problem import Dictionary, Problem
from jaxdict.sensitivity import implicit_optimum
from jaxdict.solvers.combined import stages_of
from jaxdict.solvers.driven import DrivenRounds
from jaxdict.solvers.growing import Growing, grown
from jaxdict.solvers.reduced import whole_codes
from jaxdict.solvers.rounds import Ended, traced_rounds
from jaxdict.solvers.solution import CONVERGED, NOT_STRICT, Solution, conclude
from jaxdict.solvers.solution import MESSAGES as MESSAGES
from jaxdict.solvers.spread import auto_axes_of, explicit_mesh, moved_to
from jaxdict.solvers.stopping import hand_over
from jaxdict.solvers.task import Task, task_of
from jaxdict.validation import check_data, check_dictionary, check_n_atoms, check_problem


def fit(
    problem: Problem,
    X: Float[Array, "samples d"],
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
    sparse: bool = False,
) -> Solution:
    """A dictionary at a local optimum of problem P, with the certificate that it is one.

    Minimises `F(D, Z, b)` (theory.md section 0) over unit atoms, non-negative codes and, where free, the offset; stops when the
    worst of T1's scale-free measures is at most `tol`; gives dead atoms a new life at T10's best atom; then certifies the point
    that it returns with `jaxdict.certify`, from the point alone.

    **Arguments:**

    - `X`: (samples, d) data, float32 or float64 (x64 enabled). Scale matters only against lam: the problem is solved in units of
      its own size, so data of 1e-30 or 1e30 are as good as any (where the dtype cannot show F itself, `objective` is inf or 0).
    - `n_atoms`: width; not needed where `start` is a Dictionary.
    - `key`: a `jax.random` key; same key, same result. Needed for "data" and "random" starts.
    - `start`: "data" (directions of samples), "random", or a Dictionary (its atoms are scaled to norm one).
    - `solver`: `jd.solvers.Combined()` by default; `ProjectedGradient`, `Alternating`, `QuasiNewton`, `Newton` or another `Combined`;
      `Growing(max_atoms)` begins with few atoms and adds more where rows want them.
    - `second_order`: also leave saddles (T4): where the curvature at the stationary point has a negative eigenvalue, step along
      its eigenvector and go on. The certificate then holds the curvature.
    - `allow_wide`: accept fewer samples than features, which is refused otherwise, being transposed data as a rule.
    - `callback`: called with a `Progress(step, max_steps, objective, stationarity, stage)` after each step. An exception that it
      raises, or Ctrl-C, stops the run at the next step: it goes on to the caller as it is, with the certified point reached so far
      as its attribute `solution` (status "interrupted"). Under jit and vmap it is called by `jax.debug.callback`, cannot stop
      the run, and is part of the program.
    - `implicit`: give dictionary, codes and objective derivatives with respect to lam, metric, weights and X, by the implicit
      function theorem at the point returned (`jaxdict.sensitivity`); the start, the certificate and the rest have none. Use a
      tight `tol`: an error in the point is one in the derivatives. The certificate then holds the curvature.
    - `sparse`: `Solution.codes` as `SparseCodes`. No (samples, atoms) array is then formed on the way, only blocks of it; the solver
      must do without one, as all but `ProjectedGradient` do. Under jit and vmap codes beyond the solver's `slots` are cut off.

    **Returns** `Solution(dictionary, codes, objective, certificate, status, steps, history, usage, explained_variance)`;
    `.message()` says how it ended, `.l0` how many atoms a sample uses. The rounds are driven from Python, which compiles
    only the pieces that it meets; under jit and vmap they are one program (and histories `max_steps` long). NaN is met only where
    the certificate says so, as in `stationarity.by_atom` of a dead atom, which has no defect (`JAX_DEBUG_NANS` stops there).

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
    problem, limit = _in_dtype(problem, X.dtype), _scalar(tol, X.dtype)
    check_problem(problem, X)
    if isinstance(solver, Growing):
        start = grown(fit, solver, problem, X, n_atoms, key, start, tol)
        n_atoms, solver = None, solver.solver
    # Known arrays are taken on the same mesh with Auto axes, for which the pieces are compiled, unless the caller has set a mesh.
    mesh = explicit_mesh(X) if jax.sharding.get_abstract_mesh().empty else None
    if mesh is not None:
        problem, X, start = moved_to(auto_axes_of(mesh), (problem, X, start))
    given = problem, X
    if implicit:  # the solver is not differentiated, only the point that it ends at
        problem, X = jax.lax.stop_gradient(given)
        start = jax.lax.stop_gradient(start) if isinstance(start, Dictionary) else start
    n_atoms, start = _checked_start(X, n_atoms, key, start)
    task = task_of(problem, X, n_atoms, key, start, limit, solver, sparse=sparse)
    _check_sparse(task.solver, sparse, implicit)
    options = {"max_steps": max_steps, "second_order": second_order, "sparse": sparse}
    stopped = None
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(task)) or explicit_mesh(task.X) is not None:
        ended = traced_rounds(*task, **options, callback=callback)
    else:
        ended, stopped = driven(task, options, callback)
    if sparse:
        ended = ended._replace(codes=whole_codes(task.problem, task.X, ended.iterate))
    solution = _certified(*given, task, ended, max_steps, curvature=second_order or implicit)
    if stopped is not None:
        hand_over(stopped, solution=solution)
        raise stopped
    solution = _with_derivatives(*given, solution) if implicit else solution
    return solution if mesh is None else moved_to(mesh, solution)


def driven(task: Task, options, callback) -> tuple[Ended, BaseException | None]:
    """The rounds from Python, and what stopped them: Ctrl-C, or the callback's own exception."""
    run, stopped = DrivenRounds(*task, **options), None
    try:
        for progress in run.chunks(one_by_one=callback is not None):
            if callback is not None:
                try:
                    callback(progress)
                except BaseException as error:
                    stopped = error
                    break
    except KeyboardInterrupt as error:
        stopped = error
    return run.ended(interrupted=stopped is not None), stopped


def _certified(
    problem: Problem, X: Float[Array, "samples d"], task: Task, ended: Ended, max_steps: int, *, curvature: bool
) -> Solution:
    """The point in the data's units, certified there from the point alone."""
    dictionary, codes = task.units.unscaled(ended.iterate.dictionary, ended.codes)
    certificate = certify(problem, dictionary, codes, X, curvature=curvature)
    limit = np.asarray(max_steps, ended.steps.dtype)
    return conclude(certificate, dictionary, codes, (task.problem, task.X), ended, task.tol, limit)


def _in_dtype(problem: Problem, dtype) -> Problem:
    """The problem in the data's dtype; a lam of whatever kind as the same kind of array, so that no other value is another program."""
    lam = _scalar(problem.lam, dtype) if jnp.ndim(problem.lam) == 0 else problem.lam
    return eqx.tree_at(lambda p: p.lam, problem, lam).astype(dtype)


def _scalar(value, dtype):
    """A number as an array of that dtype: known ones by NumPy, which compiles nothing."""
    return jnp.asarray(value, dtype) if isinstance(value, Tracer) else jax.device_put(np.asarray(value, dtype))


def _checked_start(X: Float[Array, "samples d"], n_atoms, key, start):
    if isinstance(start, Dictionary):
        start = check_dictionary(start, X)
        if n_atoms is not None and n_atoms != start.atoms.shape[0]:
            raise ValueError(f"n_atoms={n_atoms} but start has {start.atoms.shape[0]} atoms; leave n_atoms out")
        return start.atoms.shape[0], start
    if n_atoms is None:
        raise ValueError("n_atoms is not given; give the number of atoms, or a Dictionary as start")
    if key is None:
        raise ValueError("key is not given; give jax.random.key(seed), so that the same key gives the same result")
    return check_n_atoms(n_atoms, X), start


def _check_sparse(solver, sparse: bool, implicit: bool) -> None:
    for stage in stages_of(solver) if sparse else ():
        if "sparse" not in inspect.signature(stage.solver.point).parameters:
            raise ValueError(
                f"sparse=True but {stage.name} moves dense codes; use Combined, Newton, QuasiNewton or Alternating as solver"
            )
    if sparse and implicit:
        raise ValueError("sparse=True but implicit=True differentiates dense codes; leave one of them out")


def _with_derivatives(problem: Problem, X: Float[Array, "samples d"], solution: Solution) -> Solution:
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
    X: Float[Array, "samples d"],
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
    if isinstance(solver, Growing):
        raise ValueError(
            "solver=Growing(...) gives runs of different widths; call fit for each, or give another solver"
        )
    wide = "allow" if allow_wide or isinstance(start, Dictionary) else "error"
    X = check_data(X, wide=wide) if jnp.ndim(X) != 3 else jnp.asarray(X)
    several = isinstance(problems, (list, tuple))
    problems = stack_problems(problems, X.dtype) if several else problems.astype(X.dtype)
    limit = _scalar(tol, X.dtype)
    axes = run_axes(problems, X, keys, start)
    if isinstance(start, Dictionary):
        n_atoms, start = start.atoms.shape[-2], jax.tree.map(lambda leaf: jnp.asarray(leaf, X.dtype), start)
    elif n_atoms is None:
        raise ValueError("n_atoms is not given; give the number of atoms, or a Dictionary as start")
    else:
        n_atoms = check_n_atoms(n_atoms, X) if X.ndim == 2 else int(n_atoms)
    by_name = start if isinstance(start, str) else "data"
    arrays = (problems, X, keys, start if isinstance(start, Dictionary) else None)
    one_problem, one_X, one_key, one_start = jax.tree.map(
        lambda leaf, axis: leaf if axis < 0 else leaf[0], arrays, axis_tree(arrays, axes)
    )
    start = by_name if one_start is None else one_start
    solver = task_of(one_problem, one_X, n_atoms, one_key, start, limit, solver).solver
    sizes = (n_atoms, max_steps, second_order)
    return _solve_batch(arrays, limit, solver, axes=axes, by_name=by_name, sizes=sizes)


@partial(compiled_in_a_hurry, static_argnames=("axes", "by_name", "sizes"))
def _solve_batch(arrays, tol, solver, *, axes, by_name, sizes):
    n_atoms, max_steps, second_order = sizes

    def one(arrays):
        problem, X, key, start = arrays
        task = task_of(problem, X, n_atoms, key, by_name if start is None else start, tol, solver)
        ended = traced_rounds(*task, max_steps=max_steps, second_order=second_order, callback=None)
        return _certified(problem, X, task, ended, max_steps, curvature=second_order)

    batched = axis_tree(arrays, axes)

    def together(arrays):
        return jax.vmap(one, in_axes=(jax.tree.map(lambda axis: None if axis < 0 else axis, batched),))(arrays)

    def in_turn(arrays):  # kernels on the host take runs one by one: so none waits for the slowest
        runs = next(
            leaf.shape[0] for leaf, axis in zip(*map(jax.tree.leaves, (arrays, batched)), strict=True) if axis == 0
        )
        pick = lambda k: jax.tree.map(lambda leaf, axis: leaf if axis < 0 else leaf[k], arrays, batched)  # noqa: E731
        return jax.lax.map(lambda k: one(pick(k)), jnp.arange(runs))

    return on_engine("auto", lambda engine, arrays: (in_turn if engine is NUMBA_ENGINE else together)(arrays), arrays)
