"""The tables of compare.py, from its rows alone: the whole report, and the short one for README.md."""

import numpy as np

BEGIN, END = "<!-- results: python benchmarks/compare.py --readme -->", "<!-- end of results -->"
BASE = "jaxdict, numba"
PARTS = {
    "codes": "Exact codes",
    "wide": "Exact codes at SAE width",
    "fits": "Whole fits",
}
ABOUT = {
    "codes": "Non-negative lasso codes of a fixed dictionary, float64. Ratios are of seconds a sample, to the median of jaxdict's "
    "numba kernels: above 1 is slower than jaxdict. Median (least to most) of the runs after the first call, which compiles. Slow "
    "solvers were given the first samples only. The gap is the worst sample's, recomputed from the codes.",
    "wide": "Exact codes in float32; the unit is one dense pass `X @ W` over the same samples. Median (least to most).",
    "fits": "`mean 1/2 ||x - z D||^2 + 0.1 sum z`, z >= 0, no offset, float64. The atoms' defect (T1, zero is stationary) and the "
    "objective are those of the solver's dictionary with exact codes. The last columns have the seconds after which jaxdict's fit, "
    "compiled before, first had every measure at or below that row's defect, and the row's seconds over these: above 1 is slower "
    "than jaxdict.",
}


def spread(values) -> str:
    """Median (least to most)."""
    text = [f"{v:.3g}" if v < 1000 else f"{v:.0f}" for v in (np.median(values), min(values), max(values))]
    return text[0] if text[1] == text[2] else f"{text[0]} ({text[1]} to {text[2]})"


def absent(row) -> str | None:
    """Why a row has no numbers; None where it has."""
    if "missing" in row:
        return f"not installed ({row['missing']})"
    return f"left out: about {row['skipped']:.0f} s, the limit is {row['limit']:g} s" if "skipped" in row else None


def table(head, rows) -> list[str]:
    names = head.split("|")
    lines = [names, ["---"] * len(names), *map(list, rows)]
    return ["", *("| " + " | ".join(line + [""] * (len(names) - len(line))) + " |" for line in lines)]


def by_data(rows) -> dict[str, list]:
    return {data: [row for row in rows if row["data"] == data] for data in dict.fromkeys(row["data"] for row in rows)}


def code_ratios(rows, clock="cpu") -> dict[tuple[str, str], list[float]]:
    """(data, solver) -> seconds a sample of each run, over the median of jaxdict's numba kernels."""
    rows = [row for row in rows if row["part"] == "codes" and clock in row]
    base = {row["data"]: np.median(row[clock]) / row["samples"] for row in rows if row["solver"] == BASE}
    return {
        (row["data"], row["solver"]): [float(v / row["samples"] / base[row["data"]]) for v in row[clock]]
        for row in rows
        if row["data"] in base
    }


DECADES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


def reached(rows, row) -> tuple[float, float] | None:
    """jaxdict's median (CPU, wall) seconds to the row's defect, from the first of its fits whose runs all got there."""
    for ours in rows:
        if ours["data"] == row["data"] and "lows" in ours:
            times = [next((low[:2] for low in run if low[2] <= row["defect"]), None) for run in ours["lows"]]
            if None not in times:
                cpu, wall = np.median(times, axis=0)
                return float(cpu), float(wall)
    return None


def against(row, times) -> tuple[float, float]:
    """A rival's median seconds over jaxdict's to the same defect: CPU, wall."""
    return float(np.median(row["cpu"]) / times[0]), float(np.median(row["wall"]) / times[1])


def codes_lines(rows) -> list[str]:
    ratios, walls, lines = code_ratios(rows), code_ratios(rows, "wall"), []
    head = (
        "solver|CPU, jaxdict = 1|wall, jaxdict = 1|CPU s, 10,000 samples|first call, wall s|worst relative gap|samples"
    )

    def cells(row):
        at = row["data"], row["solver"]
        yield row["solver"]
        if told := absent(row):
            yield told
            return
        yield from (spread(part[at]) if at in part else "-" for part in (ratios, walls))
        yield spread([1e4 * v / row["samples"] for v in row["cpu"]])
        yield from (f"{row['first_wall']:.2f}", f"{row['gap']:.1e}", str(row["samples"]))

    for data, some in by_data(rows).items():
        lines += ["", f"### {data}", *table(head, map(cells, some))]
    return lines


def wide_lines(rows) -> list[str]:
    dense = rows[0]

    def cells(row):
        yield row["solver"]
        if told := absent(row):
            yield told
            return
        yield from (spread([v / np.median(dense[clock]) for v in row[clock]]) for clock in ("cpu", "wall"))
        yield from (spread(row["cpu"]), f"{row['first_wall']:.2f}", f"{row['gap']:.1e}" if "gap" in row else "")

    sizes = f"{dense['samples']} samples, d = {dense['d']}, K = {dense['k']:,}, lam = {dense['lam']}"
    return [
        "",
        sizes,
        *table("|CPU, passes|wall, passes|CPU s|first call, wall s|worst relative gap", map(cells, rows)),
    ]


def fits_lines(rows) -> list[str]:
    lines = []
    head = "solver|iterations|CPU s|wall s|atoms' defect|objective|jaxdict to that defect, CPU s|wall s|CPU ratio|wall ratio"

    def cells(row):
        yield from (row["solver"], str(row.get("iterations", "")))
        if told := absent(row):
            yield told
            return
        yield from (spread(row["cpu"]), spread(row["wall"]), f"{row['defect']:.1e}", f"{row['objective']:.6f}")
        if "lows" in row:
            yield f"(first call: {row['first_cpu']:.1f} CPU, {row['first_wall']:.1f} wall)"
        elif times := reached(rows, row):
            yield from (f"{v:.3g}" for v in (*times, *against(row, times)))
        else:
            yield "not reached"

    for data, some in by_data(rows).items():
        lines += ["", f"### {data}", *table(head, map(cells, some)), *decades(data, some)]
    return lines


def decades(data, rows) -> list[str]:
    """jaxdict's median wall seconds to each decade of stationarity."""
    told = {f"{decade:g}": reached(rows, {"data": data, "defect": decade}) for decade in DECADES}
    passed = ", ".join(f"{name} in {times[1]:.2f}" for name, times in told.items() if times is not None)
    return ["", f"jaxdict's wall seconds to each decade, every measure: {passed}."] if passed else []


def about(row) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in row["versions"].items())
    small = " Tiny sizes, for the tests: these numbers mean nothing." if row["small"] else ""
    return f"{row['date']}, {row['machine']}, {row['cores']} cores, load {row['load']} at the start; {versions}.{small}"


def report(rows) -> str:
    lines = ["# jaxdict and its rivals", "", f"`python benchmarks/compare.py`, {about(rows[0])}"]
    for part, make in {"codes": codes_lines, "wide": wide_lines, "fits": fits_lines}.items():
        if some := [row for row in rows if row["part"] == part]:
            lines += ["", f"## {PARTS[part]}", "", ABOUT[part], *make(some)]
    return "\n".join(lines) + "\n"


def crossed(rows, tell) -> list[str]:
    """A table with a line a solver (and the iterations that it was given) and a column a data set."""
    data, lines = by_data(rows), {}
    for row in rows:
        given = f", {row['iterations']}" if "iterations" in row and "lows" not in row else ""
        lines.setdefault(row["solver"] + given, {})[row["data"]] = absent(row) or tell(row)
    return table("|".join(["", *data]), ([name, *(cells.get(at, "") for at in data)] for name, cells in lines.items()))


def readme_lines(rows) -> list[str]:
    """The medians of CPU time alone. ValueError where a part is missing or the sizes are tiny."""
    part = {name: [row for row in rows if row["part"] == name] for name in PARTS}
    if not all(part.values()) or rows[0]["small"]:
        raise ValueError("README.md wants all parts at full size; run without --only and --small")
    ratios = code_ratios(part["codes"])

    def code(row):
        ratio = ratios.get((row["data"], row["solver"]))
        return f"{np.median(ratio):.2g} ({row['gap']:.0e})" if ratio else "-"

    def fit(row):
        done = f"{row['defect']:.0e} in {np.median(row['cpu']):.1f}"
        if "lows" in row:
            return done
        times = reached(part["fits"], row)
        return f"{done} ({times[0]:.1f}, {against(row, times)[0]:.2g})" if times else f"{done} (not reached)"

    dense, exact = part["wide"]
    passes = (
        absent(exact) or f"{np.median(exact['cpu']) / np.median(dense['cpu']):.2g} dense passes `X @ W` of CPU time"
    )
    return [
        f"From [benchmarks/compare.md](benchmarks/compare.md): {about(rows[0])}",
        "",
        "Exact codes, CPU time with jaxdict's numba kernels as 1, above 1 slower (worst relative gap in brackets):",
        *crossed(part["codes"], code),
        "",
        f"Exact codes at SAE width, {dense['k']:,} atoms of {dense['d']} dimensions: {passes}. Whole fits, the atoms' defect and CPU",
        "seconds; in brackets jaxdict's CPU seconds to the same defect, and the ratio, above 1 where jaxdict was faster:",
        *crossed(part["fits"], fit),
        "",
        *summary(part["fits"]),
    ]


def summary(rows) -> list[str]:
    """What compiling takes, and where a rival was faster to its own defect: sentences that follow from the rows."""
    first = [row["first_wall"] for row in rows if "lows" in row]
    ahead = {}
    for row in rows:
        times = reached(rows, row) if "lows" not in row and absent(row) is None else None
        if times and (ratio := against(row, times)[0]) < 1:
            ahead[f"{row['solver']}, {row['iterations']}, on {row['data'].split(',')[0]}"] = f"{ratio:.2g}"
    faster = "; ".join(f"{name} ({ratio})" for name, ratio in ahead.items())
    return [
        f"These are times after a first call, which compiles: {min(first):.1f} to {max(first):.1f} wall seconds a shape.",
        f"Rivals that were faster to their own defect: {faster or 'none'}.",
    ]


def between_markers(text, lines) -> str:
    """The text with what stands between the markers replaced; ValueError unless each is there once, in order."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"README.md has to hold these two lines, once each and in this order: {BEGIN} and {END}")
    return text[: text.index(BEGIN) + len(BEGIN)] + "\n" + "\n".join(lines) + "\n" + text[text.index(END) :]
