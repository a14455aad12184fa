"""Programs that are compiled in a hurry: which they are, that they give the same numbers, and that nothing is compiled twice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.compiling import compilations, own

from jaxdict import compiling
from jaxdict.compiling import GREAT_HURRY, HURRY, LITTLE, NO_HURRY, compiled_in_a_hurry, known

LITTLE_DATA, MUCH_DATA = jnp.ones(3), np.zeros(LITTLE + 1, bool)


@pytest.fixture
def told(monkeypatch):
    """What the compiler is told of a call, light or not."""
    monkeypatch.delenv(compiling.WITHOUT_HURRY, raising=False)
    return lambda *args, light=True: compiling._hurry_for(jax.tree.leaves(args), lambda: light)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a CPU's compiler is told, no other")
def test_what_is_light_and_little_hurries_most(told):
    assert told(LITTLE_DATA) == known(GREAT_HURRY)
    assert told(MUCH_DATA) == told(LITTLE_DATA, light=False) == known(HURRY)
    assert told(MUCH_DATA, light=False) == NO_HURRY


def test_a_part_of_the_callers_program_and_a_forbidden_one_do_not_hurry(told, monkeypatch):
    seen = []
    jax.jit(lambda x: seen.append(told(x)) or seen.append(told(LITTLE_DATA)) or x)(1.0)
    jax.vmap(lambda x: seen.append(told(x)) or x)(LITTLE_DATA)
    monkeypatch.setenv(compiling.WITHOUT_HURRY, "1")
    assert {*seen, told(LITTLE_DATA)} == {NO_HURRY}


def test_options_that_a_compiler_does_not_know_are_left_out():
    assert known((("xla_no_such_option_as_this", True), *HURRY)) == known(HURRY)


def test_numbers_are_the_same_and_compiled_once(monkeypatch):
    call = compiled_in_a_hurry(
        lambda x, power: jnp.sort(jnp.sin(x) ** power), light=lambda: True, static_argnames="power"
    )
    X = jnp.linspace(0, 9, 101)
    outcomes = []
    for forbidden in ("", "1"):
        monkeypatch.setenv(compiling.WITHOUT_HURRY, forbidden)
        with compilations() as names:
            outcomes += [call(X, power=3), call(2 * X, power=3) * 0 + call(X, power=3)]
        assert len([name for name in own(names) if "lambda" in name]) <= 1 + 2 * (
            not forbidden
        )  # and the options' first question
    np.testing.assert_allclose(outcomes, [np.sort(np.sin(X) ** 3)] * 4, atol=1e-12)
    assert call._cache_size() >= 1
    nested = jax.jit(lambda x: call(x, power=2) + call(LITTLE_DATA, power=2)[0])(X)
    np.testing.assert_allclose(nested, np.sort(np.sin(X) ** 2) + np.sin(1.0) ** 2, atol=1e-12)
    call.clear_cache()
    assert call._cache_size() == 0
