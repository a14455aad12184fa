"""A hierarchy as nested nodes, which is how files hold it, and as flat arrays."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from jaxdict.containers.tensors import BadFileError, Config
from jaxdict.storage import listing


class Flat(NamedTuple):
    """Parents, levels and groups of features, -1 for none, and whether each is scaled by its parent. A group is named by its first."""

    parents: Int[np.ndarray, " features"]
    levels: Int[np.ndarray, " features"]
    groups: Int[np.ndarray, " features"]
    scaled: Bool[np.ndarray, " features"]


def flattened(file: Config, n_features: int) -> Flat:
    """The hierarchy in a file. A node without a feature hands its own parent down to its children.

    Raises ValueError, naming the file, for a node that is none, a feature outside or one that stands twice.
    """
    flat = Flat(*(np.full(n_features, -1) for _ in range(3)), np.zeros(n_features, bool))
    roots, groups = file.values.get("roots"), 0
    pending = [(node, -1, -1, False) for node in _nodes(file, roots, "roots")]
    while pending:
        node, parent, group, scaled = pending.pop()
        if not isinstance(node, dict):
            raise BadFileError(f"{file.path}: a node is {listing([node])}, expected an object")
        feature = node.get("feature_index")
        if feature is not None:
            _take(file, flat, feature, n_features)
            flat.parents[feature], flat.groups[feature] = parent, group
            flat.scaled[feature] = scaled and parent >= 0
            flat.levels[feature] = 0 if parent < 0 else flat.levels[parent] + 1
        children = _nodes(file, node.get("children", []), "children")
        mine, group = parent if feature is None else feature, -1
        named = sum(map(_has_feature, children))
        if node.get("mutually_exclusive_children", False) is True and named >= 2:
            group, groups = groups, groups + 1
        scaling = node.get("scale_children_by_parent", False) is True
        pending += [(child, mine, group if _has_feature(child) else -1, scaling) for child in children]
    first, grouped = np.full(groups, n_features), flat.groups >= 0
    np.minimum.at(first, flat.groups[grouped], np.flatnonzero(grouped))
    flat.groups[grouped] = first[flat.groups[grouped]]
    return flat


def _has_feature(node) -> bool:
    return isinstance(node, dict) and node.get("feature_index") is not None


def _nodes(file: Config, nodes, name: str) -> list:
    if not isinstance(nodes, list):
        raise BadFileError(f"{file.path}: {name!r} is {listing([nodes])}, expected a list of nodes")
    return nodes


def _take(file: Config, flat: Flat, feature, n_features: int) -> None:
    if type(feature) is not int or not 0 <= feature < n_features:
        raise BadFileError(
            f"{file.path}: 'feature_index' is {listing([feature])}, but the model has features 0 to {n_features - 1}"
        )
    if flat.levels[feature] >= 0:
        raise BadFileError(f"{file.path}: feature {feature} stands twice; a feature has one parent at most")


def nested(flat: Flat) -> dict[str, Any]:
    """The nodes of a hierarchy, as `flattened` reads them.

    Children of one parent that differ in group, or in whether they are scaled, hang from nodes without a feature.
    """
    families: dict[int, dict[tuple[int, bool], list[int]]] = {}
    for feature in np.flatnonzero(flat.levels >= 0).tolist():
        kind = int(flat.groups[feature]), bool(flat.scaled[feature])
        families.setdefault(int(flat.parents[feature]), {}).setdefault(kind, []).append(feature)
    nodes = {feature: _node(feature) for feature in np.flatnonzero(flat.levels >= 0).tolist()}
    roots: list[dict[str, Any]] = []
    for parent, kinds in families.items():
        for (group, scaled), features in kinds.items():
            children = [nodes[feature] for feature in features]
            if parent < 0 and group < 0:
                roots += children
                continue
            node = nodes[parent] if parent >= 0 and len(kinds) == 1 else _node(None)
            node |= {
                "mutually_exclusive_children": group >= 0,
                "scale_children_by_parent": scaled,
                "children": children,
            }
            if node["feature_index"] is None:
                (roots if parent < 0 else nodes[parent]["children"]).append(node)
    return {"roots": roots}


def _node(feature: int | None) -> dict[str, Any]:
    return {"feature_index": feature, "mutually_exclusive_children": False, "feature_id": None, "children": []}
