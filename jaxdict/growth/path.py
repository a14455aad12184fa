"""`grow`: from few atoms through given widths, judged on rows kept aside, every atom's parent recorded."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxdict.growth.fits import Fitted
from jaxdict.growth.naming import Names
from jaxdict.growth.records import GLOBAL, INTERRUPTED, LEVEL, NOT_FINITE, NOTHING, WIDTH, Growth, GrowthProgress, Step
from jaxdict.growth.rows import Ground, in_memory, look_weights, on_stream
from jaxdict.growth.settings import check_settings, checked_widths
from jaxdict.numerics import unit_rows
from jaxdict.population.comparisons import SHOWN, Comparison
from jaxdict.problem import Dictionary, Problem
from jaxdict.solvers.growing import NEAR_GLOBAL
from jaxdict.solvers.stopping import hand_over
from jaxdict.solvers.widening import Widened, widened
from jaxdict.streaming.held_out import held_values, mean_and_error
from jaxdict.streaming.sums import as_matrix
from jaxdict.validation import check_dictionary

# Steps beyond one a width, for atoms that took others' places.
SPARE_STEPS = 8
BIRTHS = 7
# A first width of at least so many atoms is itself grown into by doubling, from this part of it: F ends lower than from births alone.
GROWN_INTO, GROWN_FROM = 32, 4
# Luck of births on the way to the first width, apart from that of the steps.
INTO = 2**20


def grow(
    problem: Problem,
    X: Float[Any, "samples d"] | None = None,
    widths: Sequence[int] | int | None = None,
    *,
    key,
    source=None,
    start: Dictionary | None = None,
    held_out=None,
    groups=None,
    solver=None,
    tol: float = 1e-3,
    rough: float = 0.05,
    least_gain: float = 0.0,
    max_steps: int = 3000,
    passes: int = 10,
    callback: Callable | None = None,
) -> Growth:
    """Dictionaries of growing width, each started from the one before it, as long as rows that were kept aside gain.

    From no atoms, or from `start`, new ones are added up to each width in turn: T10's, several at once, each row's gain counted once
    (`certificates.joint_births`); to a first width of 32 or more by doubling from a quarter of it. Then all are fitted, warm-started;
    atoms that no row uses or that are twice there are taken away, and each new atom's parent is read off the codes: the atom whose mass
    it took (`growth.parents`). Growth ends at the last width; where the point is certified optimal over all widths (T13); where no atom
    found helps; or where a width's gain on the rows kept aside is not above three standard errors (T18): then the width before it is
    taken. T19: what fresh rows say, beside T11's bound of the rows at hand, which counts an atom a row as free.

    **Arguments:**

    - `X`: (samples, d) in memory, fitted by `jaxdict.fit`; or `source`, what `jaxdict.fit_stream` takes and fits, rows staying on disk.
    - `widths`: numbers of atoms to go through, ascending, or one. Fewer atoms are added where fewer help.
    - `key`: draws the rows kept aside and those that atoms start from. `start`: a Dictionary, which is fitted first.
    - `held_out`: a share of the rows (by default a tenth, on streams 0.05 and at most 32,768 rows), rows by number or by a mask, or
      fresh rows (rows, d); 0 for none. `groups`: the document of each row of X (of the fresh rows, where these are given), whose rows
      depend on one another and are kept aside together.
    - `solver`, `max_steps`: of each fit; on streams `solver` is an `Online`, and `passes` the most exact passes of a width.
    - `tol`: of the dictionary taken; widths on the way are fitted until the stationarity is `rough`, but where T13 is near.
    - `least_gain`: a share of the objective on the rows kept aside; growth goes on only where a width's gain there is more than it by three
      standard errors. Noise of rows alone lets any split gain a little, in the population too, so that 0 may go on for long.
    - `callback`: called with a `GrowthProgress` as fits go on and after each step. An exception that it raises, or Ctrl-C, goes on to
      the caller with what was reached as its attribute `solution`, a Growth of status "interrupted".

    New atoms are looked for, those worth nothing told, and parents read off on at most 32,768 training rows, drawn by the key.

    **Returns** `Growth(steps, tree, best, status, bound, fresh_bound, rows, fresh_rows, training)`: `.dictionary` is the one taken,
    `.message()` says how growth ended, `.tree.text()` and `growth.label_atoms` make the tree of splits readable.

    **Raises** ValueError before any compute for settings, sizes and a problem that make no sense. Not under jit: widths depend on values.

    >>> import jax, jaxdict as jd
    >>> X = jd.synthetic.rays(jax.random.key(0), 80, 3, 4).X
    >>> grown = jd.grow(jd.Problem(lam=0.1, offset=False), X, (1, 2, 4, 8), key=jax.random.key(1), held_out=0, rough=1e-3)
    >>> grown.widths, grown.message().partition(":")[0]
    ([1, 2, 3], '3 atoms; globally optimal')
    """
    wanted = checked_widths(widths, start)
    check_settings(X, source, key, solver, {"tol": tol, "rough": rough, "least_gain": least_gain})
    if source is None:
        ground = in_memory(problem, X, held_out, groups, key, solver=solver, max_steps=max_steps)
    else:
        ground = on_stream(problem, source, held_out, groups, key, solver=solver, passes=passes)
    begin = None if start is None else check_dictionary(start, ground.look)
    # On streams a fit ends where rows kept aside gain no more: there is no rougher one.
    fits = tol, max(tol, rough) if source is None else tol
    run = GrowthRun(ground, wanted, key, *fits, least_gain, callback)
    try:
        return run.growth(run.run(begin))
    except BaseException as stopped:
        reached = run.reached(stopped) if isinstance(stopped, KeyboardInterrupt) or run.told else None
        if reached is not None:
            hand_over(stopped, solution=reached)
        raise


class GrowthRun:
    """Growth under way: the steps done, and what is known of the last one."""

    def __init__(
        self,
        ground: Ground,
        widths: list[int],
        key,
        tol: float,
        rough: float,
        least_gain: float,
        callback: Callable | None,
    ):
        self.ground, self.widths, self.tol, self.rough = ground, widths, tol, rough
        self.luck = jax.random.fold_in(key, BIRTHS)  # other than what draws rows
        self.least_gain = least_gain
        self.callback, self.told, self.began = callback, False, time.monotonic()
        self.names = Names(look_weights(ground))
        self.steps: list[Step] = []
        self.codes: Any = None  # of the rows looked at, and F there
        self.looked = float("nan")
        self.values: np.ndarray | None = None  # F by row kept aside
        self.is_global = False
        self.under_way: Widened | None = None

    def run(self, start: Dictionary | None) -> int:
        """Step after step, to the status that ends them."""
        wider = self._first(start)
        while True:
            step = self._step(wider)
            if not np.isfinite(step.objective):
                return NOT_FINITE
            if self.is_global:
                return GLOBAL
            if step.comparison is not None and not self._gains(step.comparison):
                self._polish(len(self.steps) - 2)
                return LEVEL
            if step.width >= self.widths[-1]:
                return WIDTH
            wider = self._wider(step)
            if not wider.born or len(self.steps) >= len(self.widths) + SPARE_STEPS:
                self._polish(len(self.steps) - 1)
                return NOTHING

    def growth(self, status: int) -> Growth:
        """What has been reached."""
        ground, best = self.ground, len(self.steps) - (2 if status == LEVEL else 1)
        fresh = 0 if ground.held is None else ground.held.rows.shape[0]
        rows = ground.n, fresh, ground.numbers
        return Growth(tuple(self.steps), self.names.tree(), best, status, *ground.bounds(), *rows)

    def reached(self, stopped: BaseException) -> Growth | None:
        """What a run that was stopped had reached, the fit under way as a last step; nothing before the first."""
        found = getattr(stopped, "solution", None)
        if found is not None and self.under_way is not None:
            fitted = self.ground.read(found, self.tol)
            if fitted.dictionary.atoms.shape == self.under_way.dictionary.atoms.shape:
                self._noted(self.under_way, fitted, np.ones(self.under_way.width, bool))
        return self.growth(INTERRUPTED) if self.steps else None

    def _gains(self, seen: Comparison) -> bool:
        """Whether the last width gained enough on the rows kept aside, beyond doubt."""
        least = self.least_gain * self.steps[-2].fresh
        return float(seen.gain) - SHOWN * float(seen.standard_error) > least

    def _first(self, start: Dictionary | None) -> Widened:
        if start is not None:
            return Widened(Dictionary(unit_rows(start.atoms), start.offset), 0.0, 0)
        ground, first = self.ground, self.widths[0]
        # On streams a rough fit is no cheaper.
        width = -(-first // GROWN_FROM) if first >= GROWN_INTO and ground.X is not None else first
        new = widened(ground.looked, None, None, ground.look, width, self.luck)
        if not new.born:
            raise ValueError(
                f"lam={float(ground.plain.lam):g} leaves nothing to the first atom on the rows looked at; choose a smaller one"
            )
        while width < first and new.born:
            width = min(first, 2 * width)
            wider = self._grown_into(new, width)
            new = wider._replace(gain=new.gain + wider.gain, born=wider.width if wider.born else 0)
        return new

    def _grown_into(self, new: Widened, width: int) -> Widened:
        """A wider start of the first step, from a rough fit of a narrower one."""
        self.under_way, ground = new, self.ground
        fitted = self._fit(new.dictionary, self.rough)
        if fitted.worthwhile.any() and not fitted.worthwhile.all():
            fitted = self._without(fitted, fitted.worthwhile, self.rough)
        self.codes = fitted.codes
        point = ground.looked, fitted.dictionary, fitted.codes, ground.look
        draw = jax.random.fold_in(self.luck, INTO + new.width)
        wanted = width - fitted.dictionary.atoms.shape[0]
        return widened(*point, wanted, draw, objective=fitted.looked)

    def _wider(self, step: Step) -> Widened:
        target = next(width for width in self.widths if width > step.width)
        draw = jax.random.fold_in(self.luck, len(self.steps))
        point = self.ground.looked, step.dictionary, self.codes, self.ground.look
        return widened(*point, target - step.width, draw, objective=self.looked)

    def _step(self, wider: Widened) -> Step:
        """Fit a wider dictionary, take away what is worth nothing, and note all that is told of it."""
        self.under_way = wider
        tol = self.tol if wider.width >= self.widths[-1] else self.rough
        fitted = self._fit(wider.dictionary, tol)
        if fitted.residual_ratio <= NEAR_GLOBAL and tol > self.tol:
            fitted, tol = self._fit(fitted.dictionary, self.tol), self.tol
        kept = fitted.worthwhile
        if kept.any() and not kept.all():
            fitted = self._without(fitted, kept, tol)
        step = self._noted(wider, fitted, kept | (not kept.any()))
        self.under_way = None
        self._tell(step.width, None)
        return step

    def _without(self, fitted: Fitted, kept, tol: float) -> Fitted:
        """The fit with only the atoms that are kept. F hardly changes: others take up the codes."""
        used = as_matrix(fitted.codes, len(kept)).getnnz(axis=0) > 0
        fewer = Dictionary(fitted.dictionary.atoms[kept], fitted.dictionary.offset)
        lost = bool(np.any(used & ~kept))
        # What T13 certifies is certified again of those that stay.
        if fitted.is_global and (lost or self.ground.look.shape[0] < self.ground.n):
            return self._fit(fewer, tol)
        if lost:
            return fitted._replace(dictionary=fewer, codes=self.ground.codes(fewer))
        place = jnp.asarray(np.maximum(np.cumsum(kept) - 1, 0), fitted.codes.indices.dtype)
        return fitted._replace(dictionary=fewer, codes=fitted.codes._replace(indices=place[fitted.codes.indices]))

    def _noted(self, wider: Widened, fitted: Fitted, kept) -> Step:
        atoms, codes, weights = fitted.dictionary.atoms, fitted.codes, look_weights(self.ground)
        names = self.names.add(wider.dictionary.atoms, kept, atoms, codes)
        self.codes, self.looked, self.is_global = codes, fitted.looked, fitted.is_global
        used = as_matrix(codes, len(atoms))
        alone = used.getnnz(axis=0) == 1
        own = np.asarray((used[:, alone] != 0).sum(axis=1)).ravel() > 0
        shares = [float(np.sum(weights * part) / np.sum(weights)) for part in (np.diff(used.indptr), own)]
        values, fresh, error = self._judged(fitted.dictionary)
        facts = wider.gain, wider.born, *shares, fitted.stationarity, time.monotonic() - self.began
        step = Step(fitted.dictionary, names, fitted.objective, fresh, error, self._compared(values), *facts)
        self.values = values
        self.steps.append(step)
        return step

    def _judged(self, dictionary: Dictionary):
        """F by row kept aside, its mean and the standard error of that."""
        held = self.ground.held
        if held is None:
            return None, float("nan"), float("nan")
        values = held_values(self.ground.plain, dictionary, held)
        return values, *mean_and_error(values, held)

    def _compared(self, values) -> Comparison | None:
        """What these values by row gain over the last step's."""
        held = self.ground.held
        if held is None or self.values is None:
            return None
        gain, error = (jnp.asarray(part, self.ground.look.dtype) for part in mean_and_error(self.values - values, held))
        return Comparison(gain, error, jnp.asarray(len(values)), jnp.asarray(len(np.unique(held.groups))))

    def _polish(self, place: int) -> None:
        """Bring the dictionary that is taken to `tol` where it was fitted roughly."""
        step = self.steps[place]
        if self.rough <= self.tol or step.stationarity <= self.tol:
            return
        fitted = self._fit(step.dictionary, self.tol)
        _, fresh, error = self._judged(fitted.dictionary)
        now = {"dictionary": fitted.dictionary, "objective": fitted.objective, "stationarity": fitted.stationarity}
        self.steps[place] = step._replace(**now, fresh=fresh, standard_error=error)

    def _fit(self, dictionary: Dictionary, tol: float) -> Fitted:
        width = dictionary.atoms.shape[0]
        watch = None if self.callback is None else (lambda progress: self._tell(width, progress))
        return self.ground.read(self.ground.fit_from(dictionary, self.codes, tol, watch), tol)

    def _tell(self, width: int, progress) -> None:
        if self.callback is not None:
            self.told = True
            self.callback(GrowthProgress(tuple(self.steps), width, self.widths[-1], progress))
            self.told = False
