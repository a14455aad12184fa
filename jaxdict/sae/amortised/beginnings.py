"""Where an encoder's steps begin: at zero, or at an SAE's codes in the gauge of the dictionary that is coded for."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdict.arrays import as_jax
from jaxdict.encoding.lasso import plain_codes, zero_codes
from jaxdict.numerics import safe_divide, safe_norm
from jaxdict.problem import Dictionary, Problem
from jaxdict.sae.models import SAE
from jaxdict.sae.transcoders import Transcoder


def unweighted(problem: Problem) -> Problem:
    """The problem without sample weights, which have no part in a row's own codes."""
    return eqx.tree_at(lambda p: p.weights, problem, None, is_leaf=lambda leaf: leaf is None)


def check_encoded(problem: Problem, dictionary: Dictionary, start: SAE | None):
    """Problem, dictionary and start in one dtype, the atoms'; raises ValueError where they do not go together.

    >>> from jaxdict.sae.activations import Activation
    >>> signed = SAE(jnp.eye(2), jnp.zeros(2), jnp.eye(2), jnp.zeros(2), activation=Activation("abstopk", k=1))
    >>> check_encoded(Problem(lam=0.1), Dictionary(jnp.eye(2)), signed)
    Traceback (most recent call last):
    ValueError: start has activation 'abstopk', whose codes may be negative; start from zero, or from an SAE of another kind
    """
    if problem.signed:
        raise ValueError("signed=True: these encoders are rectified, their codes are not negative; use jaxdict.encode")
    dictionary = dictionary.alone()
    problem = unweighted(problem).like(dictionary.atoms)
    if start is None:
        return problem, dictionary, None
    check_rectified(start, "start")
    n_atoms, d = dictionary.atoms.shape
    if (start.d_sae, start.d_in) != (n_atoms, d):
        raise ValueError(
            f"start has {start.d_sae} features of width {start.d_in} but the dictionary {n_atoms} atoms of width {d}; "
            "give the SAE that the dictionary is of"
        )
    return problem, dictionary, cast(start, dictionary.atoms.dtype)


def check_rectified(sae: SAE, name: str) -> None:
    """Raise ValueError for an SAE whose codes are not non-negative codes of its input."""
    if isinstance(sae, Transcoder) or not isinstance(sae, SAE):
        raise ValueError(
            f"{name} is a {type(sae).__name__}; its codes are of another problem; give an SAE of the rows themselves"
        )
    if sae.activation.kind == "abstopk":
        raise ValueError(
            f"{name} has activation 'abstopk', whose codes may be negative; start from zero, or from an SAE of another kind"
        )
    if sae.normalisation != "none":
        raise ValueError(
            f"{name} normalises its input ({sae.normalisation}), so its dictionary is one for sae.normalise(X); "
            "code these, and start from dataclasses.replace(sae, normalisation='none')"
        )


def regauged(start: SAE, dictionary: Dictionary) -> SAE:
    """The SAE whose codes are for the dictionary's atoms as they are: `f_k ||w_k|| / ||d_k||`."""
    norms = safe_norm(jnp.asarray(start.W_dec))
    return start.regauged(safe_divide(jnp.where(norms > 0, norms, 1), safe_norm(dictionary.atoms), 1))


def first_codes(
    problem: Problem, dictionary: Dictionary, start: SAE | None, X: Float[Array, "samples d"]
) -> Float[Array, "samples plain"]:
    """What steps begin at, in the plain form of the problem."""
    if start is None:
        return zero_codes(X, dictionary.atoms.shape[0])
    return plain_codes(problem, dictionary, start.encode(X))


def cast(tree, dtype):
    """Arrays in a dtype; known ones stay known."""
    return jax.tree.map(lambda leaf: as_jax(leaf, dtype), tree)


def check_count(name: str, number, least: int) -> int:
    """A whole number, at least so large, or a ValueError.

    >>> check_count("depth", -1, 0)
    Traceback (most recent call last):
    ValueError: depth is -1; give a whole number of at least 0
    """
    if isinstance(number, bool) or not hasattr(number, "__index__") or int(number) < least:
        raise ValueError(f"{name} is {number}; give a whole number of at least {least}")
    return int(number)
