"""Pass: keep only the outputs asked for, and what they need. onnx only."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace

import onnx

from nrd_trt.graph.metadata import read_facts, write_facts
from nrd_trt.graph.tensors import copy_model


def select_outputs(model: onnx.ModelProto, output: str) -> onnx.ModelProto:
    """Return the graph with outputs ``"mask"``, ``"logits"`` or ``"both"``; unused nodes and functions go.

    Without a mask there is nothing to unpack, and the file's facts say so.
    """
    result = copy_model(model)
    wanted = {"mask", "logits"} if output == "both" else {output}
    graph = result.graph
    nodes = _needed(graph, wanted)
    outputs = [entry for entry in graph.output if entry.name in wanted]
    read = {name for node in nodes for name in node.input}
    weights = [tensor for tensor in graph.initializer if tensor.name in read]
    functions = [entry for entry in result.functions if any(node.op_type == entry.name for node in nodes)]
    for field, values in ((graph.node, nodes), (graph.output, outputs), (graph.initializer, weights)):
        kept = list(values)
        del field[:]
        field.extend(kept)
    del result.functions[:]
    result.functions.extend(functions)
    facts = read_facts(model)
    encoding = facts.mask_encoding if "mask" in wanted else "uint8"
    write_facts(result, replace(facts, output=output, mask_encoding=encoding))
    return result


def _needed(graph: onnx.GraphProto, wanted: Set[str]) -> list[onnx.NodeProto]:
    """Return the nodes that the wanted tensors depend on, in order."""
    needed, nodes = set(wanted), []
    for node in reversed(graph.node):
        if not needed.isdisjoint(node.output):
            needed.update(node.input)
            nodes.append(node)
    return nodes[::-1]
