"""What is arbitrated between: SAEs by name, one or several of each, all of which read the same rows; refused before any compute."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdict.arbitration.splits import FURTHER
from jaxdict.auditing.split_rows import worth_a_descent
from jaxdict.sae.models import SAE
from jaxdict.sae.transcoders import Transcoder

ARRAYS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold", "ranking")


class Entry(NamedTuple):
    """A name with its SAEs: several sparsities, several seeds of one sparsity, or both; and others of other seeds."""

    name: str
    saes: tuple[SAE, ...]
    others: tuple[SAE, ...] = ()  # looked at for stability alone


def entries_of(saes: Mapping[str, Any], seeds: Mapping[str, Any] | None = None) -> list[Entry]:
    """The SAEs by name, or a ValueError: fewer than two names, SAEs of different widths, transcoders, numbers that are not finite.

    >>> entries_of({"alone": []})
    Traceback (most recent call last):
    ValueError: saes holds 1 name; arbitration is between two or more: {"topk": sae, "jumprelu": other}
    """
    if not isinstance(saes, Mapping):
        raise ValueError(f'saes is a {type(saes).__name__}; give SAEs by name: {{"topk": sae, "jumprelu": other}}')
    if len(saes) < 2:
        what = f"{len(saes)} name" + ("" if len(saes) == 1 else "s")
        raise ValueError(f'saes holds {what}; arbitration is between two or more: {{"topk": sae, "jumprelu": other}}')
    unknown = sorted(set(seeds or {}) - set(saes))
    if unknown:
        raise ValueError(f"seeds names {unknown[0]!r}, which saes does not; give further seeds of names that there are")
    entries = [
        Entry(str(name), _listed(name, given), _listed(name, (seeds or {}).get(name, ()), least=0))
        for name, given in saes.items()
    ]
    every = [(entry.name, sae) for entry in entries for sae in (*entry.saes, *entry.others)]
    for name, sae in every:
        _refuse(name, sae)
    first, width = every[0][0], every[0][1].d_in
    for name, sae in every:
        if sae.d_in != width:
            raise ValueError(
                f"{first!r} reads {width} numbers a row and {name!r} {sae.d_in}; SAEs are compared on the same rows, of one "
                "layer of one model"
            )
    return entries


def check_further(parts: Sequence[str], entries: Sequence[Entry]) -> None:
    """A ValueError for parts of the error that there are not, or that no short descent measures at an SAE's width.

    >>> check_further(("width",), [])
    Traceback (most recent call last):
    ValueError: parts names 'width'; the further parts of an error are 'dictionary' and 'atoms'
    """
    for part in [parts] if isinstance(parts, str) else parts:
        if isinstance(parts, str) or part not in FURTHER:
            raise ValueError(f"parts names {part!r}; the further parts of an error are 'dictionary' and 'atoms'")
    for entry in entries if parts else ():
        for sae in entry.saes:
            if not worth_a_descent(sae.d_sae, None):
                raise ValueError(
                    f"{entry.name!r} has {sae.d_sae:,} features, too many for a short descent to say anything of "
                    f"parts={tuple(parts)}; leave them out, or give that SAE to jd.audit with minutes"
                )


def _listed(name, given, least: int = 1) -> tuple[SAE, ...]:
    found = (given,) if isinstance(given, SAE) else tuple(given) if isinstance(given, list | tuple) else None
    if found is None or len(found) < least or not all(isinstance(sae, SAE) for sae in found):
        held = type(given).__name__ if found is None or not found else type(found[0]).__name__
        what = "an empty list" if found is not None and not found else f"a {held}"
        raise ValueError(
            f"{name!r} is {what}; give an SAE, or a list of SAEs (sparsities or seeds of one architecture)"
        )
    return found


def _refuse(name: str, sae: SAE) -> None:
    if isinstance(sae, Transcoder):
        raise ValueError(
            f"{name!r} is a transcoder: it predicts other activations, so its error and that of an SAE of these rows are not of one "
            "thing; audit it alone (jd.audit with its target)"
        )
    for field in ARRAYS:
        array = getattr(sae, field)
        if array is not None and not np.isfinite(np.asarray(array)).all():
            raise ValueError(f"{field} of {name!r} holds NaN or infinity; give an SAE whose training ended well")
    zero = np.flatnonzero(~np.asarray(sae.W_dec).any(axis=1))
    if zero.size:
        raise ValueError(
            f"decoder row {zero[0]} of {name!r} is zero ({zero.size} such), so that it has no direction; leave such features out"
        )
