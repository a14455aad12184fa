"""Run by test_matrix.py in a process with eight simulated devices: every case with its samples spread over a mesh.

Arguments: "Auto" or "Explicit", the file of references, and the names of the cases (all by default). Prints a dictionary of errors.
"""

import json
import pickle
import sys

import jax
from columns import arguments, compare
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from public_cases import CASES, SAMPLES

jax.config.update("jax_enable_x64", True)


def spread(mesh, leaf):
    """Samples over the devices, all else as it is."""
    if leaf.ndim and leaf.shape[0] == SAMPLES:
        return jax.device_put(leaf, NamedSharding(mesh, P("s", *[None] * (leaf.ndim - 1))))
    return leaf


def told(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:500]}"


def main(kind, path, *names):
    assert jax.device_count() == 8
    mesh = jax.make_mesh((8,), ("s",), axis_types=(AxisType[kind],))
    with open(path, "rb") as file:
        references = pickle.load(file)
    errors = {}
    for name in names or CASES:
        try:
            given = jax.tree.map(lambda leaf: spread(mesh, leaf), arguments(name))
            compare(name, CASES[name].call(**given), references[name])
        except Exception as error:  # each is one cell of the matrix
            errors[name] = told(error)
    print(json.dumps(errors))


if __name__ == "__main__":
    main(*sys.argv[1:])
