"""jaxdict's `encode` in float64: numba kernels, plain JAX by working sets, plain JAX by accelerated gradient."""
# benchopt reads lists and dicts off the class, and sets its parameters as attributes.
# ruff: noqa: RUF012
# pyright: reportAttributeAccessIssue=false, reportAssignmentType=false

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
from benchopt import BaseSolver

import jaxdict as jd


class Solver(BaseSolver):
    name = "jaxdict"
    requirements = ["pip::jaxdict[fast]"]
    sampling_strategy = "tolerance"
    parameters = {"method": ["numba", "working_set", "gradient"]}
    references = ("theory.md, T2: the duality gap at which each sample stops",)

    def skip(self, X, D, lam):
        if self.method == "numba" and importlib.util.find_spec("numba") is None:
            return True, "numba is not installed: pip install 'jaxdict[fast]'"
        return False, None

    def set_objective(self, X, D, lam):
        jax.config.update("jax_enable_x64", True)
        self.problem, self.dictionary, self.X = jd.Problem(lam=lam), jd.Dictionary(jnp.asarray(D)), jnp.asarray(X)
        self.codes = None

    def pre_run_hook(self, _):
        if self.codes is None:
            self.run(1e-12)  # compiles, for every number of slots that these data need; not timed

    def get_next(self, tol):
        return min(1.0, tol / 100)

    def run(self, tol):
        tol = max(float(tol), 1e-14)
        done = jd.encode(self.problem, self.dictionary, self.X, tol=tol, method=self.method, max_steps=20_000)
        self.codes = jax.block_until_ready(done.codes)

    def get_result(self):
        return {"codes": np.asarray(self.codes)}
