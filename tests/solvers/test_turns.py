"""A traced fit's rounds: in turns, with one place where codes are solved, they are what they are one by one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdict as jd
from jaxdict.numerics import unit_rows
from jaxdict.solvers.alternating import Alternating
from jaxdict.solvers.combined import stages_of, with_slots
from jaxdict.solvers.rounds import MAX_ROUNDS, one_by_one
from jaxdict.solvers.turns import in_turns, is_proposing, once

N, D, K = 60, 4, 6
X = jnp.asarray(np.random.default_rng(0).normal(size=(N, D)))
ATOMS = unit_rows(jnp.asarray(np.random.default_rng(1).normal(size=(K, D))))
PROBLEM = jd.Problem(lam=0.5).astype(X.dtype)
# No sample uses a zero atom: two are dead.
DEAD = ATOMS.at[1:3].set(0)
CASES = {
    "both stages": (jd.solvers.Combined(), ATOMS, {}),
    "dead atoms": (jd.solvers.Combined(), DEAD, {}),
    "sparse": (jd.solvers.Combined(), DEAD, {"sparse": True}),
    "saddles": (jd.solvers.Combined(), ATOMS.at[1].set(ATOMS[0]), {"second_order": True}),
    "no steps": (jd.solvers.Combined(), DEAD, {"max_steps": 0}),
    "few steps": (jd.solvers.Combined(first_steps=3), ATOMS, {"max_steps": 5}),
    "one stage": (jd.solvers.QuasiNewton(), ATOMS, {"max_steps": 20}),
    "codes that the next stage takes": (
        jd.solvers.Combined(jd.solvers.Newton(), jd.solvers.Alternating(), 4),
        ATOMS,
        {"max_steps": 12},
    ),
}


def rounds(which, solver, lam, atoms, *, max_steps=200, second_order=False, sparse=False):
    stages = stages_of(with_slots(solver, K))
    options = {"max_steps": max_steps, "second_order": second_order, "sparse": sparse, "most": MAX_ROUNDS}
    start = jd.Dictionary(atoms, jnp.full_like(atoms[0], 0.1))
    return which(jd.Problem(lam=lam), X, start, 1e-8, stages, (None,) * len(stages), **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if k < 2 else pytest.param(name, marks=pytest.mark.slow) for k, name in enumerate(CASES)]
)
def test_in_turns_as_one_by_one(name):
    solver, atoms, options = CASES[name]
    found, wanted = (
        jax.jit(functools.partial(rounds, which, solver, **options))(PROBLEM.lam, atoms)
        for which in (in_turns, one_by_one)
    )
    (point, codes, trace, left, count), (other, other_codes, other_trace, *rest) = found, wanted
    assert (bool(left), int(count), int(trace.step)) == (bool(rest[0]), int(rest[1]), int(other_trace.step))
    np.testing.assert_allclose(point.objective, other.objective, rtol=1e-10)
    np.testing.assert_allclose(point.dictionary.atoms, other.dictionary.atoms, atol=1e-6)
    np.testing.assert_allclose(jd.dense_codes(codes, K), jd.dense_codes(other_codes, K), atol=1e-5)
    steps = int(trace.step)
    np.testing.assert_allclose(trace.history.objective[:steps], other_trace.history.objective[:steps], rtol=1e-8)
    assert bool(jnp.all(trace.history.objective[steps:] == 0))


@pytest.mark.slow
def test_runs_side_by_side_are_those_alone():
    run = functools.partial(rounds, in_turns, jd.solvers.Combined())
    lams, starts = jnp.array([0.4, 0.5, 0.7]), jnp.stack([ATOMS, DEAD, ATOMS])
    together, alone = jax.jit(jax.vmap(run))(lams, starts), jax.jit(run)
    for k in range(3):
        one = alone(lams[k], starts[k])
        assert int(one[2].step) == int(together[2].step[k])
        np.testing.assert_allclose(together[0].objective[k], one[0].objective, rtol=1e-10)


def test_once_is_not_begun_where_nobody_wants_it():
    begun = []

    def heavy(x):
        jax.debug.callback(lambda: begun.append(1))
        return 2 * x

    run = jax.jit(jax.vmap(lambda flag, x: once(flag, lambda: heavy(x), x)))
    assert run(jnp.array([False, False]), jnp.ones(2)).tolist() == [1, 1]
    jax.effects_barrier()
    assert not begun
    assert run(jnp.array([False, True]), jnp.ones(2)).tolist() == [1, 2]
    jax.effects_barrier()
    assert begun


def test_a_solver_with_a_step_of_its_own_is_not_taken_for_what_it_proposes():
    class Counting(Alternating):
        def step(self, problem, X, state):
            return super().step(problem, X, state)

    assert is_proposing(Alternating())
    assert not is_proposing(Counting())
    assert not is_proposing(jd.solvers.ProjectedGradient())
