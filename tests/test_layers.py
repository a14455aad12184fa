"""Files import only from layers above their own, never inside a function but for optional extras, and never in a circle."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "jaxdict"
# From the ground up: a file may import from its own line or from lines above.
LAYERS = [
    ["numerics", "arrays", "meshes", "compiling"],
    ["layouts"],
    ["problem", "geometry"],
    ["points", "batches", "units"],
    ["validation"],
    ["objectives"],
    ["encoding"],
    ["certificates"],
    ["conditions"],
    ["solvers"],
    ["sensitivity", "population"],
    ["fitting", "wide"],
    ["synthetic_atoms"],
    ["synthetic_parts"],
    ["storage", "containers"],
    ["synthetic_benchmark"],
    ["synthetic", "datasets"],
    ["recovery"],
    ["files", "results"],
    ["streaming"],
    ["growth"],
    ["sae"],
    ["reporting", "plots"],
    ["auditing", "sweeps"],
    ["arbitration"],
    ["commands"],
    ["cli"],
    ["__init__", "__main__"],
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
MOST_LINES, MOST_LINES_OF_CODE = 300, 60
# Files and functions that are longer: to shrink, never to grow.
LONGER_FILES: set[str] = set()
LONGER_FUNCTIONS: set[str] = set()
OPTIONAL = {
    *("typer", "rich", "safetensors", "matplotlib", "jinja2", "scipy", "sklearn"),
    *("pyarrow", "huggingface_hub", "yaml", "tokenizers"),
}


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield path, parts[0], ast.parse(path.read_text())


def imported(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def test_every_module_has_a_layer():
    assert not {top for _, top, _ in modules()} - set(RANK)


def test_imports_point_one_way():
    for path, top, tree in modules():
        for node in ast.walk(tree):
            for name in imported(node):
                parts = name.split(".")
                if parts[0] == "jaxdict" and len(parts) > 1 and parts[1] in RANK:
                    assert RANK[parts[1]] <= RANK[top], f"{path} imports {name}"


def test_certificates_and_conditions_never_import_solvers():
    for path, top, tree in modules():
        if top in ("certificates", "conditions"):
            names = [name for node in ast.walk(tree) for name in imported(node)]
            assert not [name for name in names if ".solvers" in name or ".fitting" in name], path


def test_imports_inside_functions_are_of_optional_extras_only():
    for path, top, tree in modules():
        if top in ("cli",):  # guards its own imports, to say which extra is missing
            continue
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                for node in ast.walk(function):
                    for name in imported(node):
                        assert name.split(".")[0] in OPTIONAL, f"{path}: {function.name} imports {name}"


def test_no_circles_between_files():
    graph = {}
    for path, _, tree in modules():
        name = ".".join(("jaxdict", *path.relative_to(PACKAGE).with_suffix("").parts))
        edges = set()
        for node in tree.body:
            for target in imported(node):
                if target.startswith("jaxdict"):
                    edges |= {target, target.rsplit(".", 1)[0]}
        graph[name] = edges
    graph = {name: {edge for edge in edges if edge in graph and edge != name} for name, edges in graph.items()}
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            path.append(name)
            for edge in sorted(graph[name]):
                visit(edge)
            path.pop()
            done.add(name)

    for name in graph:
        visit(name)


def test_no_module_shares_a_name_with_a_public_function():
    exported, functions, stems = set(), set(), set()
    for path, _, tree in modules():
        stems.add(path.stem)
        functions |= {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        if path.name == "__init__.py":
            for node in tree.body:
                if isinstance(node, ast.ImportFrom):
                    exported |= {alias.asname or alias.name for alias in node.names}
    assert not exported & functions & stems


def functions():
    """Each function with its file and its name there, `file.py:name`."""
    for path, _, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path.relative_to(PACKAGE).as_posix()}:{node.name}", node


def lines_of_code(function) -> int:
    """Lines from `def` to the end, without the docstring."""
    first = function.body[0]
    said = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    docstring = first.end_lineno - first.lineno + 1 if said else 0
    return function.end_lineno - function.lineno + 1 - docstring


def test_files_and_functions_are_short():
    long = {
        path.relative_to(PACKAGE).as_posix()
        for path, _, _ in modules()
        if len(path.read_text().splitlines()) > MOST_LINES
    }
    assert long == LONGER_FILES
    assert {name for name, node in functions() if lines_of_code(node) > MOST_LINES_OF_CODE} == LONGER_FUNCTIONS


def test_functions_say_the_shape_of_X():
    unsaid = {
        name
        for name, node in functions()
        for argument in [*node.args.args, *node.args.kwonlyargs]
        if argument.arg == "X" and argument.annotation is None and not node.name.startswith("_")
    }
    assert not unsaid, sorted(unsaid)
