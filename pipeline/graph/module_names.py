"""Module names: which module of the user's network a node of an exported graph comes from.

torch's exporter notes it under SCOPES. TorchScript puts it into the names of the nodes, and `note_scopes` makes notes of them.
"""

import ast
import re
from collections.abc import Container, Mapping

import onnx

from pipeline.graph.metadata import SCOPES

__all__ = ["innermost", "note_scopes", "places_of", "with_places"]


def places_of(model: onnx.ModelProto) -> dict[str, str]:
    """Return node -> where it is in the user's network, in words; by the names of the nodes.

    A node that an optimiser made has no note, and is described by the module whose result it reads. A node of a graph without
    any notes is described by its own name.

        "Conv in 'features.3'"      "Sort in the network's own forward()"      "Split after 'body.1'"      "'/head/Add' (Add)"
    """
    places: dict[str, str] = {}
    made_in: dict[str, str] = {}
    for node in model.graph.node:
        scopes = scopes_of(node)
        if scopes is not None:
            module = innermost(scopes)
            places[node.name] = f"{node.op_type} in '{module}'" if module else f"{node.op_type} in the network's own forward()"
        else:
            module = next((made_in[name] for name in node.input if made_in.get(name)), "")
            after = f"{node.op_type} after '{module}'"
            places[node.name] = after if module else f"'{node.name}' ({node.op_type})" if node.name else node.op_type
        made_in.update(dict.fromkeys(node.output, module))
    return places


def with_places(text: str, places: Mapping[str, str]) -> str:
    """Return `text` with places in the user's network instead of nodes of its graph, where `places` has them.

    >>> with_places("node 'node_DFT_8' (DFT): unknown", {"node_DFT_8": "DFT in 'filter'"})
    "DFT in 'filter': unknown"
    """
    return re.sub(r"node '([^']*)' \([\w.]+\)", lambda found: places.get(found[1], found[0]), text)


def scopes_of(node: onnx.NodeProto) -> str | None:
    """Return the value under SCOPES, or None if the exporter noted none."""
    return next((entry.value for entry in node.metadata_props if entry.key == SCOPES and entry.value != "[]"), None)


def innermost(scopes: str) -> str:
    """Return the innermost module of `scopes`, the value under SCOPES; for example 'layer1.0' of "['', 'layer1.0', 'conv2d']".

    It is '' for the network itself.
    """
    names = ast.literal_eval(scopes)
    return names[-2] if len(names) >= 2 else ""


def note_scopes(model: onnx.ModelProto, modules: Container[str]) -> None:
    """Note the scopes of a graph that TorchScript exported, in place. `modules` are the names of the network's modules.

    A name that leads to no module is not noted.
    """
    for node in model.graph.node:
        names = scopes_in_name(node.name)
        if names and names[-1] in modules and scopes_of(node) is None:
            node.metadata_props.add(key=SCOPES, value=str([*names, node.op_type]))


def scopes_in_name(name: str) -> list[str]:
    """Return the modules in a name that TorchScript gave to a node, the outermost first; [] if it is no such name.

    Each part of the name is an attribute; that of a part of a container begins with the container's attribute.

    >>> scopes_in_name("/body/body.1/left/left.0/Conv")
    ['', 'body', 'body.1', 'body.1.left', 'body.1.left.0']
    """
    first, *parts = name.split("/")
    if first or not parts:
        return []
    path: list[str] = []
    scopes = [""]
    for part in parts[:-1]:
        if path and part.startswith(f"{path[-1]}."):
            path[-1] = part
        else:
            path.append(part)
        scopes.append(".".join(path))
    return scopes
