"""SPAMS's `lasso`: LARS with a Cholesky factor, exact, so there is one point and no curve."""
# benchopt reads lists and dicts off the class, and sets its parameters as attributes.
# ruff: noqa: RUF012
# pyright: reportAttributeAccessIssue=false, reportAssignmentType=false

import os
from typing import Any

import numpy as np
import spams
from benchopt import BaseSolver


class Solver(BaseSolver):
    name = "SPAMS"
    requirements = ["pip::spams-bin"]
    sampling_strategy = "run_once"
    references = ("Mairal, Bach, Ponce, Sapiro 2010, Online learning for matrix factorization and sparse coding",)

    def set_objective(self, X, D, lam):
        self.samples, self.atoms, self.lam = np.asfortranarray(X.T), np.asfortranarray(D.T), lam

    def run(self, _):
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.codes: Any = spams.lasso(
            self.samples, D=self.atoms, lambda1=self.lam, mode=2, pos=True, numThreads=threads
        )

    def get_result(self):
        return {"codes": self.codes.toarray().T}
