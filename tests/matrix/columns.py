"""The columns of the matrix: each takes a case and raises where the public function does not compose so.

Cases that are dear to compile are only traced in most columns, unless `full` is asked for: what goes wrong there shows in the trace.
"""

import functools
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
from compiling import compilations
from public_cases import ATOMS, CASES, inputs

import jaxdict as jd

# Programs of one operation each, which jax makes of numbers and numpy's arrays on their way to the package's own programs.
CONTROL_FLOW = {"scan", "while_loop", "fori_loop", "cond", "switch", "map"}
# Differences: large against rounding over the step, small against the third derivative.
STEP = 1e-5


def arguments(name: str, dtype=np.float64, factor: float = 1.0) -> dict:
    """The inputs that a case asks for, floats times a factor."""
    values, wanted = inputs(dtype), inspect.signature(CASES[name].call).parameters
    return {key: scaled(values[key], factor) for key in wanted}


def scaled(tree, factor):
    return jax.tree.map(
        lambda leaf: leaf * jnp.asarray(factor, leaf.dtype) if is_float(leaf) and factor != 1 else leaf, tree
    )


def is_float(leaf) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


@functools.lru_cache(maxsize=4)
def reference(name: str):
    """What the case gives, called as a user calls it."""
    return jax.block_until_ready(CASES[name].call(**arguments(name)))


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


def densified(tree):
    """Sparse codes as dense ones, so that the order of their slots does not matter."""

    def one(leaf):
        return jd.dense_codes(leaf, ATOMS) if isinstance(leaf, jd.SparseCodes) else leaf

    return jax.tree.map(one, tree, is_leaf=lambda leaf: isinstance(leaf, jd.SparseCodes))


def numpy_in(name, full=True):
    compare(name, CASES[name].call(**in_numpy(arguments(name))), reference(name))


def in_numpy(tree):
    return jax.tree.map(lambda leaf: leaf if is_key(leaf) else np.asarray(leaf), tree)


def in_python(tree):
    """Numbers as Python's own; arrays stay."""
    return jax.tree.map(lambda leaf: leaf if is_key(leaf) or leaf.ndim else leaf.item(), tree)


def python_scalars(name, full=True):
    compare(name, CASES[name].call(**in_python(arguments(name))), reference(name))


def is_key(leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def jit(name, full=True):
    program = functools.partial(with_first, name, {})
    if full:
        compare(name, jax.jit(program)(arguments(name)), reference(name))
    else:
        jax.eval_shape(program, arguments(name))


def closed(name, full=True):
    """Only the first input is traced; the rest are constants of the program, jax's or numpy's."""
    first, rest = split(arguments(name))
    program = functools.partial(with_first, name, rest)
    if full:
        compare(name, jax.jit(program)(first), reference(name))
    else:
        jax.eval_shape(program, first)
    jax.eval_shape(functools.partial(with_first, name, in_numpy(rest)), first)
    jax.eval_shape(functools.partial(CASES[name].call, **first, **rest))  # nothing traced


def split(given):
    names = list(given)
    return {key: given[key] for key in names[:1]}, {key: given[key] for key in names[1:]}


def with_first(name, rest, first):
    return CASES[name].call(**first, **rest)


def scan(name, full=True):
    """Inside a loop whose carry is the first input, with the rest closed over."""
    first, rest = split(arguments(name))

    def step(carry, _):
        return carry, with_first(name, rest, carry)

    def loop(first):
        return jax.lax.scan(step, first, None, length=2)[1]

    if full:
        compare(name, jax.tree.map(lambda leaf: leaf[0], jax.jit(loop)(first)), reference(name))
    else:
        jax.eval_shape(loop, first)


def vmap(name, full=True):
    given = arguments(name)
    if not given:
        return
    pair = jax.tree.map(lambda *both: jnp.stack(both), given, scaled(given, 0.99))
    program = jax.vmap(functools.partial(with_first, name, {}))
    if full:
        compare(name, jax.tree.map(lambda leaf: leaf[0], jax.jit(program)(pair)), reference(name))
    else:
        jax.eval_shape(program, pair)


def float32(name, full=True):
    """Float32 in, float32 out, and the same numbers to its precision."""
    given = arguments(name, np.float32)
    program = functools.partial(with_first, name, {})
    traceable = "jit" not in CASES[name].holes
    found = jax.eval_shape(program, given) if traceable and not full else program(given)
    if any(is_float(leaf) for leaf in jax.tree.leaves(given)):
        wide = [path for path, leaf in leaves(found).items() if getattr(leaf, "dtype", None) == np.float64]
        assert not wide, f"float64: {wide}"
    if full:
        compare(name, found, reference(name), rtol=2e-3, atol=2e-3, floats_only=True)


def strict(name, full=True):
    """No dtype is promoted without a word, in either precision."""
    with jax.numpy_dtype_promotion("strict"):
        for dtype in (np.float64, np.float32):
            jax.eval_shape(functools.partial(with_first, name, {}), arguments(name, dtype))


def rank(name, full=True):
    """No rank is promoted without a word."""
    with jax.numpy_rank_promotion("raise"):
        jax.eval_shape(functools.partial(with_first, name, {}), arguments(name))


def debug_nans(name, full=True):
    with jax.debug_nans(True):
        jax.block_until_ready(CASES[name].call(**arguments(name)))


def second(name, full=True):
    """Other values of the same types compile nothing; numbers from Python or numpy compile none of the package's programs."""
    reference(name)
    for form, allowed in ((lambda tree: tree, False), (in_python, True), (in_numpy, True)):
        given = form(arguments(name, factor=0.99))
        with compilations() as programs:
            jax.block_until_ready(CASES[name].call(**given))
        assert not [program for program in programs if not (allowed and is_one_operation(program))], programs


def is_one_operation(program: str) -> bool:
    """Whether a program's name, `jit(multiply)` or `jit(_power)`, is that of a function of jax's own."""
    name = program.removeprefix("jit(").removesuffix(")").lstrip("_")
    return name == "stage" or (name not in CONTROL_FLOW and (hasattr(jnp, name) or hasattr(jax.lax, name)))


def derivative(name, full=True):
    """Along one direction through all inputs: forward mode, reverse mode and differences agree, output by output.

    Outputs that the table calls constant must have derivative zero.
    """
    if not full:
        return
    case, given = CASES[name], arguments(name)
    draw = np.random.default_rng(1)
    moving = {key: value for key, value in given.items() if key != "tol"}
    floats, build = only_floats(moving)
    if not floats:
        return
    # Zeros stay: at a code of zero there is a kink.
    direction = [jnp.asarray(draw.normal(size=leaf.shape) * (np.asarray(leaf) != 0), leaf.dtype) for leaf in floats]
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
    weights = {path: jnp.asarray(draw.normal(size=leaf.shape), leaf.dtype) for path, leaf in values.items()}
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
    "rank": rank,
    "debug_nans": debug_nans,
}
