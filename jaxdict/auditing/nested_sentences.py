"""What T21 to T23 say of nested pairs, in sentences."""

from jaxdict.population.comparisons import SHOWN

MISSING_PREFIXES = (
    "This SAE is a Matryoshka, but its files do not say how large its groups are, so what its loss wants of nested pairs (T22) was "
    "not measured; give them as prefixes in its metadata."
)


def undetermined_sentence(row: dict) -> str:
    """What T21 says of one pair."""
    return (
        f"Feature {row['child']} is on only where feature {row['parent']} is ({row['both']:,} rows), so the objective does not "
        f"determine this pair: their decoder rows have cosine {row['cosine']:.2f}, and anything from -1 to {row['absorbed']:.2f} "
        "leaves every reconstruction and every support as it is."
    )


def determined_sentence(row: dict, n_prefixes: int) -> str:
    """What T22 says of one pair."""
    nested = f"Feature {row['child']} is on only where feature {row['parent']} is ({row['both']:,} rows)"
    if not row["parting"]:
        return (
            f"{nested}, in the same group: no prefix parts them, so the loss does not determine this pair (T21). Their decoder rows "
            f"have cosine {row['cosine']:.2f}, and anything from -1 to {row['absorbed']:.2f} leaves every reconstruction as it is."
        )
    hold = f"{row['parting']} of {n_prefixes} prefixes {'holds' if row['parting'] == 1 else 'hold'}"
    away = abs(row["slope"]) > SHOWN * row["slope_error"]
    told = f"a gain of {100 * row['gain_share']:.2g}% of the loss, " + ("shown" if away else "nothing shown")
    return (
        f"{nested}, and {hold} the parent without it, so the loss says what their cosine should be: {row['wanted']:.2f} "
        f"(it is {row['cosine']:.2f}; slope {row['slope']:.2g} +- {row['slope_error']:.1g}; {told}). Absorbing the parent into the "
        f"child as far as supports allow (cosine {row['absorbed']:.2f}) would cost {100 * row['absorption_share']:.2g}% of the loss."
    )


def prefixes_sentence(prefixes: tuple[int, ...], rows: list[dict]) -> str:
    """What a Matryoshka's loss is, and how many nested pairs it determines."""
    parted = sum(row["parting"] > 0 for row in rows)
    sizes = ", ".join(f"{size:,}" for size in prefixes)
    found = (
        f"Of {len(rows):,} nested pairs {parted:,} lie across groups, and there it does; {len(rows) - parted:,} lie within one."
        if rows
        else "No feature is on only where another of its own or an earlier group is, beyond chance."
    )
    return (
        f"This SAE is a Matryoshka: its loss sums the errors of its first {sizes} features, so it determines what one reconstruction "
        f"leaves open of a child inside a parent of an earlier group (T22). {found}"
    )


def _named(kind: str, power: float) -> str:
    return f"the sum of f^{power:g}" if kind == "power" else f"the norm ||f||_{power:g}"


def penalty_sentence(kind: str, power: float, found: int) -> str:
    """What the penalty is, and how many nested pairs there are."""
    pairs = f"{found:,} such pairs were found." if found else "No such pair was found, beyond chance."
    return (
        f"This SAE's penalty ended at {_named(kind, power)}, whatever its weight: a child that is on only with its parent can stay at "
        f"one cosine alone (T23, noiseless to first order; L1: 1). {pairs}"
    )


def penalised_sentence(row: dict, kind: str, power: float) -> str:
    """What T23 says of one pair."""
    return (
        f"Feature {row['child']} is on only where feature {row['parent']} is ({row['both']:,} rows): under {_named(kind, power)} "
        f"such a pair stays at cosine {row['forced']:.2f} (T23); its decoder rows have {row['cosine']:.2f}."
    )


def missing_power(kind: str | None, power: float | None) -> str | None:
    """What is not known of a penalty that T23 speaks of; None where all is."""
    if kind not in ("power", "norm"):
        what = "whether its penalty is a sum of powers of the codes or a norm"
    elif power is None:
        what = "the power p that its penalty ended at"
    elif power < 0 or (kind == "norm" and power == 0):
        return (
            f"This SAE's files say that its penalty ended at p = {power:g}, where {'no norm' if kind == 'norm' else 'no power'} is a "
            "penalty, so what it forces on nested pairs (T23) was not measured; give the last p that was reached as power in its metadata."
        )
    else:
        return None
    return (
        f"This SAE was trained with an annealed penalty, but its files do not say {what}, so what it forces on nested pairs (T23) was "
        "not measured; give it as penalty and power in its metadata."
    )
