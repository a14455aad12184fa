"""Every public function of the table on an accelerator, where one is at hand: the numbers of the CPU, in both precisions.

On such a machine, with the compiler that users get:

    JAX_PLATFORMS=cuda,cpu JAXDICT_FULL_COMPILER=1 python -m pytest tests/matrix/test_accelerator.py -n 8 --dist worksteal
"""

import jax
import numpy as np
import pytest
from columns import arguments, compare, densified
from public_cases import CASES

if jax.default_backend() == "cpu":
    pytest.skip("no accelerator is at hand", allow_module_level=True)


def on_cpu(name: str):
    with jax.default_device(jax.devices("cpu")[0]):
        return jax.device_get(CASES[name].call(**arguments(name)))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", CASES)
def test_the_accelerator_gives_what_the_cpu_gives(name, dtype):
    if dtype == np.float32 and "float32" in CASES[name].holes:
        pytest.skip(CASES[name].holes["float32"])
    found = CASES[name].call(**arguments(name, dtype))
    # Float32: as the matrix's own column asks of the CPU. TF32 products would be off by 1e-3 and spoil every certificate.
    exact = dtype == np.float64
    rtol, atol = (1e-6, 1e-8) if exact else (2e-3, 2e-3)
    compare(name, densified(jax.device_get(found)), densified(on_cpu(name)), rtol, atol, floats_only=not exact)
