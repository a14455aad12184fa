"""One door: each public function takes real arrays of the stated shapes, or says what is wrong, the value met and the remedy.

The functions are those of public_cases.py, whichever have such an input; what they must refuse is listed here.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from columns import arguments, compare
from public_cases import ATOMS, CASES, SAMPLES

import jaxdict as jd

# input -> what is wrong -> (the wrong input from the right one, what the message must hold)
WRONG = {
    "X": {
        "complex": (lambda X: X.astype(complex), "complex128"),
        "integers": (lambda X: X.astype(int), "int64"),
        "one axis": (lambda X: X[0], r"\(3,\)"),
        "three axes": (lambda X: X[None], r"\(1, 16, 3\)"),
    },
    "Z": {
        "complex": (lambda Z: Z.astype(complex), "complex128"),
        "(atoms,)": (lambda Z: Z[0], r"\(4,\)"),
        "(1, atoms)": (lambda Z: Z[:1], r"\(1, 4\)|\(16,\)"),  # or the weights are the odd ones out
        "(samples, 1)": (lambda Z: Z[:, :1], r"\(16, 1\)"),
    },
    "S": {
        "index too large": (lambda S: S._replace(indices=S.indices.at[2, 0].set(99)), "99"),
        "index below zero": (lambda S: S._replace(indices=S.indices.at[2, 0].set(-7)), "-7"),
        "indices of floats": (lambda S: S._replace(indices=S.indices * 1.0), "float64"),
    },
    "D": {
        "integer atoms": (lambda D: D._replace(atoms=jnp.ones(D.atoms.shape, int)), "int64"),
        "complex atoms": (lambda D: D._replace(atoms=D.atoms.astype(complex)), "complex128"),
        "one atom's axis": (lambda D: D._replace(atoms=D.atoms[0]), r"\(3,\)"),
        "offset (1,)": (lambda D: D._replace(offset=D.offset[:1]), r"\(1,\)"),
    },
    "w": {
        "(samples, 1)": (lambda w: w[:, None], r"\(16, 1\)"),
        "(1,)": (lambda w: w[:1], r"\(1,\)"),
        "complex": (lambda w: w.astype(complex), "complex128"),
    },
    "m": {"(1,)": (lambda m: m[:1], r"\(1,\)"), "complex": (lambda m: m.astype(complex), "complex128")},
    "i": {
        "beyond the last": (lambda i: 99, "99"),
        "below zero": (lambda i: -7, "-7"),
        "a float": (lambda i: 1.5, "float|1.5"),
    },
    "u": {"(1,)": (lambda u: u[:1], r"\(1,\)")},
}

ANY_SAMPLES = "any number of samples will do"
ANY_ATOMS = "any number of atoms will do"
ANY_LEADING = "inputs may have any leading dimensions, says its docstring"
# (case, input, what is wrong) -> why it is taken
TAKEN = {
    **dict.fromkeys(
        (
            (name, "Z", "(1, atoms)")
            for name in (
                "canonical",
                "sparse_codes",
                "conditions.hull_direction",
                "conditions.row_direction",
                "conditions.absorption_direction",
                "conditions.merge_pair_statistics",
                "conditions.pairs_from_statistics",
            )
        ),
        ANY_SAMPLES,
    ),
    ("sparse_codes", "Z", "(samples, 1)"): ANY_ATOMS,
    ("conditions.pair_statistics", "Z", "(samples, 1)"): ANY_ATOMS,
    ("conditions.merge_pair_statistics", "Z", "(samples, 1)"): ANY_ATOMS,
    ("conditions.predicted_cosine", "Z", "(samples, 1)"): ANY_ATOMS,
    ("conditions.exclusive", "Z", "(samples, 1)"): ANY_ATOMS,
    **dict.fromkeys(
        (
            (name, "X", what)
            for name in ("sae.check_activations", "sae.SAE: encode and decode")
            for what in ("one axis", "three axes")
        ),
        ANY_LEADING,
    ),
}
# What else the message holds where a function does not see the input itself.
SAYS = {
    ("conditions.pairs_from_statistics", "Z", "(samples, 1)"): "of 1 features but the dictionary has 4",
    ("conditions.absorption", "Z", "(samples, 1)"): "names no feature: there are 1",
}
# Inputs of such a name that mean something else there.
OTHER = {
    *((name, key) for name in ("recovery.learned_metric", "recovery.reweight") for key in ("m",)),
    *((name, "Z") for name in ("wide.polar_height",)),
    *(
        (name, "D")
        for name in (
            "conditions.turning_gains",
            "recovery.alignment",
            "recovery.row_distance",
            "synthetic.orthogonalise",
            "synthetic.spread_atoms",
        )
    ),
    ("fit_batch", "X"),
}


def asked():
    for name, case in CASES.items():
        for key in inspect.signature(case.call).parameters:
            for what in WRONG.get(key, ()):
                if (name, key) not in OTHER:
                    yield name, key, what


@pytest.mark.parametrize(("name", "key", "what"), asked())
def test_refused_with_what_value_and_remedy(name, key, what):
    given = arguments(name)
    make, says = WRONG[key][what]
    given[key] = make(given[key])
    if (name, key, what) in TAKEN:
        CASES[name].call(**given)
        return
    refused(name, given, SAYS.get((name, key, what), says))


def refused(name, given, says):
    with pytest.raises(ValueError, match=says) as caught:
        CASES[name].call(**given)
    message = str(caught.value)
    assert "\n" not in message, message
    assert any(sign in message for sign in (";", ",", ":")), f"no remedy: {message}"
    assert not any(word in message for word in ("broadcast", "dot_general", "lax", "Tracer")), f"jax's own: {message}"


HALVES = {"float16": np.float16, "bfloat16": jnp.bfloat16}


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize(
    "name", [n for n, c in CASES.items() if "X" in inspect.signature(c.call).parameters and not c.heavy]
)
def test_half_precision_is_computed_in_float32(name, half):
    given = arguments(name, np.float32)
    given["X"] = given["X"].astype(HALVES[half])
    found = CASES[name].call(**given)
    assert not [leaf for leaf in jax.tree.leaves(found) if getattr(leaf, "dtype", None) == HALVES[half]]


@pytest.mark.parametrize("strange", [pytest.param(">f8", marks=pytest.mark.slow), np.longdouble])
def test_big_endian_and_long_double_arrays_are_as_good_as_any(strange):
    X = np.asarray(arguments("encode")["X"])
    for name in ("objective", "encode", "certify", "lam_max", "wide.bound", "conditions.barycentre"):
        given = arguments(name)
        given["X"] = X.astype(strange)
        compare(name, CASES[name].call(**given), CASES[name].call(**arguments(name)))


def test_shapes_of_the_table_are_those_that_this_file_speaks_of():
    assert (SAMPLES, ATOMS) == (16, 4)
    assert isinstance(arguments("encode")["D"], jd.Dictionary)
