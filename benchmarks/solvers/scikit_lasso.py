"""scikit-learn's coordinate descent, a sample after the other, with the Gram matrix formed once."""
# benchopt reads lists and dicts off the class, and sets its parameters as attributes.
# ruff: noqa: RUF012
# pyright: reportAttributeAccessIssue=false, reportAssignmentType=false

import warnings

from benchopt import BaseSolver
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso


class Solver(BaseSolver):
    name = "scikit-learn Lasso"
    requirements = ["scikit-learn"]
    sampling_strategy = "tolerance"

    def set_objective(self, X, D, lam):
        self.X, self.D, self.lam = X, D, lam
        self.codes = None

    def get_next(self, tol):
        return min(1.0, tol / 100)

    def run(self, tol):
        model = Lasso(
            alpha=self.lam / self.D.shape[1],  # its data term is a mean over dimensions
            fit_intercept=False,
            positive=True,
            precompute=self.D @ self.D.T,
            tol=max(tol, 1e-12),
            max_iter=100_000,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            self.codes = model.fit(self.D.T, self.X.T).coef_.reshape(self.X.shape[0], self.D.shape[0])

    def get_result(self):
        return {"codes": self.codes}
