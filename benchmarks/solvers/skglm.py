"""skglm's coordinate descent on working sets (numba), a sample after the other."""
# benchopt reads lists and dicts off the class, and sets its parameters as attributes.
# ruff: noqa: RUF012
# pyright: reportAttributeAccessIssue=false, reportAssignmentType=false

import warnings

import numpy as np
from benchopt import BaseSolver
from skglm import Lasso
from sklearn.exceptions import ConvergenceWarning


class Solver(BaseSolver):
    name = "skglm"
    requirements = ["pip::skglm"]
    sampling_strategy = "tolerance"
    references = ("Bertrand, Klopfenstein, Bannier, Gidel, Massias 2022, Beyond L1: faster and better sparse models",)

    def set_objective(self, X, D, lam):
        self.X, self.design, self.lam = X, np.asfortranarray(D.T), lam
        self.codes = None

    def warm_up(self):
        Lasso(fit_intercept=False, positive=True).fit(self.design, self.X[0])  # compiles

    def get_next(self, tol):
        return min(1.0, tol / 100)

    def run(self, tol):
        d = self.design.shape[0]  # its data term is a mean over dimensions, and so is its tolerance
        model = Lasso(alpha=self.lam / d, fit_intercept=False, positive=True, tol=max(tol, 1e-14) / d, max_iter=200)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            self.codes = np.stack([model.fit(self.design, row).coef_ for row in self.X])

    def get_result(self):
        return {"codes": self.codes}
