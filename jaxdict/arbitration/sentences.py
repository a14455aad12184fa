"""What an arbitration's numbers mean, in sentences, and what they do not say."""

from collections.abc import Sequence
from typing import Any

from jaxdict.arbitration.matching import Match, Place, nodes_of
from jaxdict.arbitration.rows import Parts
from jaxdict.arbitration.splits import FURTHER
from jaxdict.arbitration.truths import HELD, MOST_EDGES, Truth
from jaxdict.auditing.sentences import share
from jaxdict.auditing.split_sentences import NEGLIGIBLE, WHAT
from jaxdict.population.comparisons import SHOWN

# The parts of the error, as what an SAE loses it to.
LOST_TO = {name: what for name, (what, _) in WHAT.items()} | {"rest": "what none of these accounts for"}
ITS = {
    "values": "its values", "supports": "its choice of features", "decoder": "its decoder", "dictionary": "its dictionary",
    "atoms": "its number of features",
}  # fmt: skip
SHORT = {
    "values": "the values", "supports": "the choice of features", "decoder": "the decoder", "dictionary": "the dictionary",
    "atoms": "the number of features", "rest": "the rest",
}  # fmt: skip


def joined(words: Sequence[str]) -> str:
    """Words as a list in a sentence.

    >>> joined(["a", "b", "c"]), joined(["a"])
    ('a, b and c', 'a')
    """
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def rows_sentence(parts: Parts) -> str:
    """Which rows everything is measured on."""
    names = "" if parts.groups is None else f" of {len(set(parts.groups.tolist())):,} documents"
    fitted = len(parts.aim) + len(parts.reach)
    return (
        f"All SAEs are compared on the same {len(parts.fresh):,} fresh rows{names} ({parts.said}), and their decoders' steps fitted to "
        f"the same {fitted:,} others."
    )


def match_sentence(match: Match, told: Sequence[tuple[str, Sequence[float], Place]]) -> str:
    """Which L0, where it comes from, and how each name reaches it."""
    at = {name: f"{name} at {place.l0:.4g}" for name, _, place in told if place.l0 is not None}
    if match.l0 is None:
        return (
            f"No L0 is common to all: each stands at its own ({', '.join(at.values())}), and nothing is interpolated. Give several "
            "sparsities of each, so that their ranges overlap."
        )
    how = {
        "given": "as asked for",
        "middle": "the middle of where all ranges overlap",
        "alike": "their own are within 5% of it",
    }[match.how]
    between = [_between(name, l0s, place) for name, l0s, place in told if place.interpolated]
    out = [name for name, _, place in told if place.weights is None]
    sentences = [f"Matched at L0 = {match.l0:.4g} features a row ({how})."]
    if between:
        sentences.append(
            f"Interpolated, row by row and linearly in L0, between the two nearest sparsities: {'; '.join(between)}. Means and paired "
            "standard errors are those of the interpolated rows, other figures have the same weights; no SAE of that L0 was run."
        )
    own = [name for name, _, place in told if place.weights is not None and not place.interpolated]
    if own:
        sentences.append(f"As they are, not interpolated: {', '.join(at[name] for name in own)}.")
    if out:
        sentences.append(f"Out of range there, so without figures: {', '.join(out)}.")
    return " ".join(sentences)


def _between(name: str, l0s: Sequence[float], place: Place) -> str:
    """The two sparsities with their weights, those of seeds added up."""
    told = []
    for node in nodes_of(l0s):
        weight = sum((place.weights or ())[k] for k in node.members)
        seeds = f"{len(node.members)} seeds, " if len(node.members) > 1 else ""
        told += [f"{node.l0:.4g} ({seeds}weight {weight:.2g})"] if weight > 0 else []
    return f"{name} from {' and '.join(told)}"


def truth_sentence(truth: Truth) -> str:
    """What is known of the truth."""
    codes = "with" if truth.codes is not None else "without"
    edges = (
        f" and {len(truth.edges):,} {'edge' if len(truth.edges) == 1 else 'edges'} from a parent to a child"
        if truth.edges
        else ""
    )
    cut = f" (the first {MOST_EDGES})" if len(truth.edges) == MOST_EDGES else ""
    return (
        f"The truth has {len(truth.atoms):,} features, {codes} their codes{edges}{cut}. A latent holds a feature that is matched to it, "
        f"one to one, with a cosine of {HELD} or more."
    )


def entry_sentence(entry: dict[str, Any]) -> str:
    """Where one name loses its error."""
    name = entry["name"]
    if not entry["reached"]:
        low, high = entry["range"]
        return f"{name} has L0s from {low:.4g} to {high:.4g}: the matched one lies outside, so it has no figures there."
    shown = lost(entry)
    rest = f"{share(entry['rest']['mean'], entry['own'])} is left that none of these accounts for"
    if not shown:
        nothing = joined([ITS[part["name"]] for part in entry["parts"]]).replace(" and ", " or ")
        return f"{name} is not shown to lose anything to {nothing}: {rest}."
    told = [f"{share(part['mean'], entry['own'])} to {LOST_TO[part['name']]}" for part in shown]
    return f"{name} loses {joined(told)}; {rest}."


def lost(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts that are shown and more than half a percent, the largest first."""
    shown = [part for part in entry["parts"] if part["shown"] and part["mean"] > NEGLIGIBLE * entry["own"]]
    return sorted(shown, key=lambda part: -part["mean"])


def pair_sentence(pair: dict[str, Any], facts: dict[str, Any]) -> str:
    """Who is ahead of whom, by how much, and in which part."""
    first, second = pair["first"], pair["second"]
    size = f"{pair['mean']:.3g} +- {pair['standard_error']:.1g}"
    if not pair["shown"]:
        return f"Nothing shown between {first} and {second}: their squared errors differ by {size}."
    times = "" if pair["z"] is None else f" ({pair['z']:.0f} standard errors)"
    if facts["match"]["l0"] is None:
        return _unmatched(pair, f"{size}{times}")
    sentence = f"{first} is ahead of {second}: its squared error is lower by {size}{times}{_where(pair)}"
    if pair["rests_on_interpolation"]:
        beyond = f"{second} at its next sparsity, L0 = {pair['next_l0']:.4g}, is not shown to be worse"
        sentence += f". This rests on the interpolation: {beyond}"
    if pair["seed_error"] is not None and pair["mean"] <= SHOWN * pair["seed_error"]:
        spread = f"Between seeds the difference varies by +- {pair['seed_error']:.1g}"
        sentence += f". {spread}: it is shown of these SAEs, not of what trained them"
    return f"{sentence}."


def _unmatched(pair: dict[str, Any], size: str) -> str:
    first, second, (one, other) = pair["first"], pair["second"], pair["l0"]
    if pair["ahead"]:
        return (
            f"{first} is ahead of {second} all the same: its squared error is lower by {size}, with {one:.4g} features on a row "
            f"against {other:.4g}."
        )
    return (
        f"Nothing can be said between {first} and {second}: {first}'s squared error is lower by {size}, but with {one:.4g} features on "
        f"a row against {other:.4g}."
    )


def _where(pair: dict[str, Any]) -> str:
    """The part that most of a difference lies in, where it is shown, and the one that goes the other way."""
    shown = sorted((part for part in pair["parts"] if part["shown"]), key=lambda part: part["mean"])
    if not shown or shown[-1]["mean"] <= 0:
        return ""
    told = [
        f"{SHORT[part['name']]} ({abs(part['mean']):.3g} +- {part['standard_error']:.1g})"
        for part in (shown[-1], shown[0])
    ]
    return f": lower in {told[0]}, higher in {told[1]}" if shown[0]["mean"] < 0 else f", most of it in {told[0]}"


def verdict(facts: dict[str, Any]) -> list[str]:
    """Who is ahead; where each loses its error; every two names; each name; how L0s were matched."""
    entries = [entry for entry in facts["entries"] if entry["reached"]]
    return [
        headline(facts),
        where(entries),
        *(pair["sentence"] for pair in sorted(facts["pairs"], key=lambda pair: not pair["ahead"])),
        *(entry["sentence"] for entry in facts["entries"]),
        facts["match"]["sentence"],
    ]


def headline(facts: dict[str, Any]) -> str:
    """Who is ahead on fresh rows, in a sentence."""
    entries = sorted((entry for entry in facts["entries"] if entry["reached"]), key=lambda entry: entry["own"])
    names = [entry["name"] for entry in entries]
    ahead = {(pair["ahead"], pair["second"]): pair for pair in facts["pairs"] if pair["ahead"]}
    leaders = [name for name in names if not any((other, name) in ahead for other in names)]
    others = [name for name in names if name not in leaders]
    l0 = facts["match"]["l0"]
    at = "on fresh rows, each at its own L0" if l0 is None else f"on fresh rows, at L0 = {l0:.4g}"
    nothing = "nothing can be said" if l0 is None and any(pair["shown"] for pair in facts["pairs"]) else "nothing shown"
    if not ahead:
        return f"{nothing.capitalize()} between {joined(names)} {at}."
    tells = ", as far as interpolation tells"
    if len(leaders) == 1:
        beaten = [name for name in others if (leaders[0], name) in ahead]
        left = [name for name in others if name not in beaten]
        rests = any(ahead[leaders[0], name]["rests_on_interpolation"] for name in beaten)
        tail = (tells if rests else "") + (f"; {nothing} between it and {joined(left)}" if left else "")
        return f"{leaders[0]} is ahead of {joined(beaten)} {at}{tail}."
    if all((leader, name) in ahead for leader in leaders for name in others):
        rests = any(ahead[leader, name]["rests_on_interpolation"] for leader in leaders for name in others)
        tail = tells if rests else ""
        return (
            f"{joined(leaders)} are ahead of {joined(others)} {at}{tail}; {nothing} between the first {len(leaders)}."
        )
    return f"No one is ahead of all {at}: {nothing} between {joined(leaders)}."


def where(entries: Sequence[dict[str, Any]]) -> str:
    """The largest part that each loses its error to, in a sentence for all."""
    told = []
    for entry in entries:
        shown = lost(entry)
        if shown:
            told.append(f"{entry['name']} to {ITS[shown[0]['name']]} ({share(shown[0]['mean'], entry['own'])})")
        else:
            told.append(f"{entry['name']} to nothing that could be mended here")
    return f"Where each loses most of what could be mended: {'; '.join(told)}."


def limits(facts: dict[str, Any]) -> list[str]:
    """What the verdict does not say."""
    data, entries = facts["data"], [entry for entry in facts["entries"] if entry["reached"]]
    independent = (
        "" if data["documents"] else " They are treated as independent of one another; rows of one document are not."
    )
    found = [
        f"{data['sentence']}{independent} Of other layers, models and data nothing is said.",
        _l0_limit(facts),
        "Squared error is what is compared. A lower one is no word on how well features can be understood"
        + ("." if facts["truth"] else ", and there was no truth to hold them against."),
        "What is lost to the choice of features is at least what is said: the best features that a search finds, not the best there are.",
    ]
    if any(part["name"] in FURTHER for entry in entries for part in entry["parts"]):
        found.append(
            "So is what is lost to the dictionary, or to the number of features: a short descent over rows of X finds that much."
        )
    few = [entry["name"] for entry in entries if entry["seed_error"] is None]
    if few:
        found.append(
            f"Of {joined(few)} there is one seed of each sparsity: standard errors are over rows, and another seed may fall elsewhere."
        )
    widths = {sae["features"] for entry in entries for sae in entry["saes"] if sae["weight"] > 0}
    if len(widths) > 1:
        found.append(
            f"The SAEs have different numbers of features ({', '.join(f'{width:,}' for width in sorted(widths))}): a wider one may be "
            "ahead for its width, not for its kind."
        )
    found.append(
        "How long, on what and how well each was trained is not known here: these SAEs are compared, not all of their kind."
    )
    if any(sae["normalisation"] != "none" for entry in entries for sae in entry["saes"]):
        found.append("SAEs that normalise their input are compared in the units of the activations, row by row.")
    return found


def _l0_limit(facts: dict[str, Any]) -> str:
    if facts["match"]["l0"] is None:
        return "L0s are not matched: more features on lower any SAE's error, so only one that is better with fewer is called ahead."
    told = f"The order holds at L0 = {facts['match']['l0']:.4g} of these rows, taken as known; at another it may be another."
    beside = [
        entry for entry in facts["entries"] if entry["reached"] and abs(entry["l0"] / facts["match"]["l0"] - 1) > 1e-6
    ]
    if beside:
        at = ", ".join(f"{entry['name']} at {entry['l0']:.4g}" for entry in beside)
        told += f" L0s within 5% of it count as matched ({at}), though more features on lower an error."
    if not facts["match"]["interpolated"]:
        return told
    return (
        f"{told} Between sparsities the error is taken as a straight line. An error that falls ever more slowly lies below it, so an "
        "interpolated name looks worse than it is, the more so the further apart its sparsities are."
    )
