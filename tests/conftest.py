"""x64 for truth, and a compiler in a hurry: most of a test's time is compiling, so its costly passes are left out here.

`JAXDICT_FULL_COMPILER=1` runs the suite with the compiler that users get.
"""

import os

if not os.environ.get("JAXDICT_FULL_COMPILER"):
    quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {quick}".strip()

import jax

jax.config.update("jax_enable_x64", True)
