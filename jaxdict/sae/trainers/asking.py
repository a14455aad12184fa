"""What is asked of training, checked before any compute."""

import math
from typing import Any

from jax.core import Tracer

from jaxdict.arrays import is_concrete, look
from jaxdict.files import check_writable
from jaxdict.sae.trainers.architectures import Architecture, refuse
from jaxdict.sae.trainers.counted import BatchTopK, MatchingPursuit, Matryoshka, TopK
from jaxdict.sae.trainers.penalised import Gated, JumpReLU, PAnneal, Standard

KINDS = {kind.name: kind for kind in (Standard, TopK, BatchTopK, JumpReLU, Gated, Matryoshka, PAnneal, MatchingPursuit)}
ARCHITECTURES = tuple(KINDS)
STEPS = 5000


def asked(architecture: str | Architecture, d_sae, lam: Any, k: Any) -> Architecture:
    """The architecture by name or as it is given, for so many latents; raises ValueError where `lam` or `k` do not suit it.

    >>> asked("topk", 8, None, 2)
    TopK(auxiliary=1.0)
    >>> asked("topk", 8, None, 9)
    Traceback (most recent call last):
    ValueError: k is 9; a topk SAE needs a whole number with 1 <= k <= d_sae = 8
    """
    if isinstance(architecture, str) and architecture in KINDS:
        architecture = KINDS[architecture]()
    if not isinstance(architecture, Architecture):
        raise ValueError(
            f"architecture={architecture!r} is unknown; use one of {ARCHITECTURES}, or an instance of its class"
        )
    name = architecture.name
    _positive_whole("d_sae", d_sae)
    if not architecture.counts:
        refuse(
            lam is None or _known_not_positive(lam),
            f"lam is {lam}; a {name} SAE needs lam > 0, half the packages' coefficient",
        )
        refuse(k is not None, f"k is {k}; a {name} SAE is made sparse by lam: leave k out")
        return architecture.sized(d_sae, None)
    refuse(lam is not None, f"lam is {lam}; a {name} SAE has no penalty: leave lam out")
    wanted = "a whole number with 1 <= k" if architecture.whole else "a number with 0 < k"
    fits = k is not None and not isinstance(k, Tracer) and 0 < k <= d_sae and (not architecture.whole or k == int(k))
    refuse(not fits, f"k is {k}; a {name} SAE needs {wanted} <= d_sae = {d_sae}")
    known: Any = k
    return architecture.sized(d_sae, known)


def check_training(values, batch_size, learning_rate, lam_warm_up, dead_steps, checkpoint, callback) -> None:
    """Raise ValueError for numbers that make no sense, OSError for a checkpoint's folder that cannot be written."""
    _positive_whole("batch_size", batch_size)
    _positive_whole("dead_steps", dead_steps)
    refuse(
        lam_warm_up != int(lam_warm_up) or lam_warm_up < 0,
        f"lam_warm_up is {lam_warm_up}; give the steps over which lam rises, 0 for none",
    )
    if not callable(learning_rate):
        refuse(
            _known_not_positive(learning_rate),
            f"learning_rate is {learning_rate}; give a positive number, or an optax schedule",
        )
    traced = any(isinstance(value, Tracer) for value in (*values, learning_rate))
    refuse(
        traced and (checkpoint is not None or callback is not None),
        "a callback or a checkpoint needs known values, these are traced; train outside of jit, or leave it out",
    )
    if checkpoint is not None:
        check_writable(checkpoint)


def steps_wanted(steps: int | None, epochs: float | None, rows) -> int:
    """The number of steps; 0 as long as the rows are not known of which there are to be so many epochs.

    >>> steps_wanted(None, None, None), steps_wanted(7, None, None), steps_wanted(None, 2, None)
    (5000, 7, 0)
    """
    if epochs is None:
        total = STEPS if steps is None else steps
        _positive_whole("steps", total)
        return int(total)
    refuse(steps is not None, f"steps is {steps} and epochs is {epochs}; give one of them")
    refuse(not 0 < epochs < math.inf, f"epochs is {epochs}; give a positive number")
    return 0 if rows is None else max(1, math.ceil(epochs * rows.n / rows.size))


def _positive_whole(name: str, value) -> None:
    refuse(value != int(value) or value < 1, f"{name} is {value}; give a positive integer")


def _known_not_positive(number) -> bool:
    return is_concrete(number) and not look(lambda xp, value: bool(xp.all(value > 0)), number)
