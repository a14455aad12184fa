"""The columns of the matrix: each takes a case and raises where the public function does not compose so."""

import contextlib
import functools
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
from public_cases import CASES, inputs

COMPILED = "/jax/core/compile/backend_compile_duration"
# Differences: large against rounding over the step, small against the third derivative.
STEP = 1e-5


def arguments(name: str, dtype=np.float64, factor: float = 1.0) -> dict:
    """The inputs that a case asks for, floats times a factor."""
    values, wanted = inputs(dtype), inspect.signature(CASES[name].call).parameters
    return {key: scaled(values[key], factor) for key in wanted}


def scaled(tree, factor):
    return jax.tree.map(lambda leaf: leaf * jnp.asarray(factor, leaf.dtype) if is_float(leaf) and factor != 1 else leaf, tree)


def is_float(leaf) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


@functools.lru_cache(maxsize=4)
def reference(name: str):
    """What the case gives, called as a user calls it."""
    return jax.block_until_ready(CASES[name].call(**arguments(name)))


@functools.lru_cache(maxsize=4)
def jitted(name: str):
    """The case as one program, of a dictionary of inputs."""
    return jax.jit(lambda given: CASES[name].call(**given))


def leaves(tree) -> dict:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def compare(name: str, found, wanted, rtol=1e-6, atol=1e-8, floats_only=False):
    """Equal but for the order of sums."""
    found, wanted = leaves(found), leaves(wanted)
    assert found.keys() == wanted.keys()
    for path, value in found.items():
        if re.search(CASES[name].loose, path) or jnp.issubdtype(jnp.result_type(value), jax.dtypes.prng_key):
            continue
        if floats_only and not is_float(value):
            continue
        np.testing.assert_allclose(
            np.asarray(value, np.float64), np.asarray(wanted[path], np.float64), rtol=rtol, atol=atol, err_msg=path
        )


def numpy_in(name):
    given = jax.tree.map(lambda leaf: leaf if is_key(leaf) else np.asarray(leaf), arguments(name))
    compare(name, CASES[name].call(**given), reference(name))


def python_scalars(name):
    given = jax.tree.map(lambda leaf: leaf if is_key(leaf) or leaf.ndim else leaf.item(), arguments(name))
    compare(name, CASES[name].call(**given), reference(name))


def is_key(leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def jit(name):
    compare(name, jitted(name)(arguments(name)), reference(name))


def closed(name):
    """Only the first input is traced; the rest are constants of the program, jax's or numpy's."""
    for constants in (lambda leaf: leaf, lambda leaf: leaf if is_key(leaf) else np.asarray(leaf)):
        first, rest = split(arguments(name))
        program = functools.partial(with_first, name, jax.tree.map(constants, rest))
        if CASES[name].heavy or constants(1.0) != 1.0:
            jax.eval_shape(program, first)
        else:
            compare(name, jax.jit(program)(first), reference(name))
    # everything a constant
    jax.eval_shape(lambda: CASES[name].call(**arguments(name)))


def split(given):
    names = list(given)
    return {key: given[key] for key in names[:1]}, {key: given[key] for key in names[1:]}


def with_first(name, rest, first):
    return CASES[name].call(**first, **rest)


def scan(name):
    """Inside a loop whose carry is the first input, with the rest closed over."""
    first, rest = split(arguments(name))

    def step(carry, _):
        return carry, with_first(name, rest, carry)

    def loop(first):
        return jax.lax.scan(step, first, None, length=2)[1]

    if CASES[name].heavy:
        jax.eval_shape(loop, first)
    else:
        compare(name, jax.tree.map(lambda leaf: leaf[0], jax.jit(loop)(first)), reference(name))


def vmap(name):
    given = arguments(name)
    if given:
        other = scaled(given, 0.99)
        pair = jax.tree.map(lambda *both: jnp.stack(both), given, other)
        found = jax.jit(jax.vmap(lambda given: CASES[name].call(**given)))(pair)
        compare(name, jax.tree.map(lambda leaf: leaf[0], found), reference(name))


def float32(name):
    """Float32 in, float32 out, and the same numbers to its precision."""
    given = arguments(name, np.float32)
    found = CASES[name].call(**given)
    if any(is_float(leaf) for leaf in jax.tree.leaves(given)):
        wide = [path for path, leaf in leaves(found).items() if getattr(leaf, "dtype", None) == np.float64]
        assert not wide, f"float64: {wide}"
    compare(name, found, reference(name), rtol=2e-3, atol=2e-3, floats_only=True)


def strict(name):
    """No dtype and no rank is promoted without a word, in the data's precision or in float32."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for dtype in (np.float64, np.float32):
            jax.eval_shape(lambda given: CASES[name].call(**given), arguments(name, dtype))


def debug_nans(name):
    with jax.debug_nans(True):
        jax.block_until_ready(CASES[name].call(**arguments(name)))


def second(name):
    """Other values of the same types, from other sources, compile nothing."""
    reference(name)
    as_numpy = lambda leaf: leaf if is_key(leaf) else np.asarray(leaf)  # noqa: E731
    as_python = lambda leaf: leaf if is_key(leaf) or leaf.ndim else leaf.item()  # noqa: E731
    for form in (lambda leaf: leaf, as_python, as_numpy):
        given = jax.tree.map(form, arguments(name, factor=0.99))
        with counted_compilations() as compilations:
            jax.block_until_ready(CASES[name].call(**given))
        assert not compilations, f"{len(compilations)} compilations"


@contextlib.contextmanager
def counted_compilations():
    """A list that grows with each program that jax compiles."""
    found = []

    def listen(event, duration, **_):
        if event == COMPILED:
            found.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def derivative(name):
    """Along one direction through all inputs: forward mode, reverse mode and differences agree, output by output.

    Outputs that the table calls constant must have derivative zero.
    """
    case, given = CASES[name], arguments(name)
    draw = np.random.default_rng(1)
    moving = {key: value for key, value in given.items() if key != "tol"}
    floats, build = only_floats(moving)
    if not floats:
        return
    direction = [jnp.asarray(draw.normal(size=leaf.shape), leaf.dtype) for leaf in floats]
    fixed = {key: value for key, value in given.items() if key == "tol"}

    def outputs(floats):
        found = leaves(case.call(**build(floats), **fixed))
        return {path: leaf for path, leaf in found.items() if is_float(leaf)}

    @jax.jit
    def slopes(floats, direction, weights):
        _, forward = jax.jvp(outputs, (floats,), (direction,))
        values, back = jax.vjp(outputs, floats)
        (pulled,) = back({path: weights[path] for path in values})
        return forward, sum(jnp.vdot(a, b) for a, b in zip(pulled, direction, strict=True))

    at = jax.jit(outputs)
    values = at(floats)
    weights = {path: jnp.asarray(draw.normal(size=leaf.shape)) for path, leaf in values.items()}
    forward, backward = slopes(floats, direction, weights)
    ahead, behind = (at([x + sign * STEP * v for x, v in zip(floats, direction, strict=True)]) for sign in (1, -1))
    for path, slope in forward.items():
        constant = any(re.search(pattern, path) for pattern in case.constant)
        difference = (ahead[path] - behind[path]) / (2 * STEP)
        sure = np.isfinite(np.asarray(values[path]))
        want = np.where(sure, 0 if constant else np.asarray(difference), 0)
        np.testing.assert_allclose(np.where(sure, slope, 0), want, rtol=1e-4, atol=1e-5, err_msg=path)
    if all(np.isfinite(np.asarray(value)).all() for value in values.values()):
        total = sum(float(jnp.vdot(weights[path], slope)) for path, slope in forward.items())
        np.testing.assert_allclose(float(backward), total, rtol=1e-6, atol=1e-8, err_msg="reverse mode")


def only_floats(given):
    """The float arrays of some inputs, and how to put others in their place."""
    flat, tree = jax.tree.flatten(given)
    at = [k for k, leaf in enumerate(flat) if is_float(leaf)]

    def build(floats):
        filled = list(flat)
        for k, leaf in zip(at, floats, strict=True):
            filled[k] = leaf
        return jax.tree.unflatten(tree, filled)

    return [flat[k] for k in at], build


COLUMNS = {
    "second": second,
    "numpy": numpy_in,
    "python": python_scalars,
    "jit": jit,
    "closed": closed,
    "scan": scan,
    "vmap": vmap,
    "derivative": derivative,
    "float32": float32,
    "strict": strict,
    "debug_nans": debug_nans,
}
