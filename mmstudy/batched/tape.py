"""What a function does, written down as a list of operations on tensors, and the memory that these can share."""

import operator
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

Function = Callable[..., tuple[Tensor, ...]]  # of tensors

MOST_BYTES = 2**28  # of all the tensors on the way, which are kept meanwhile; what takes more gains nothing


class Tape(TorchDispatchMode):
    """Writes every operation down; views of a tensor become one step from the tensor whose memory they share."""

    def start(self, inputs: list[Tensor], whole: list[bool]) -> None:
        """Begin; whether each input is the whole of its memory, or may lie somewhere else in it next time."""
        self.graph = fx.Graph()
        self.found: dict[Any, Any] = {}
        self.alive: list[Any] = []  # all that was seen, so that no two have the same id, or the same memory
        self.nodes: dict[int, fx.Node] = {}
        self.places: dict[tuple, fx.Node] = {}
        self.roots: dict[int, Tensor] = {}  # memory → the tensor that was there first
        self.bytes = 0
        self.parts = {_memory(t) for t, all_of_it in zip(inputs, whole, strict=True) if not all_of_it}
        for i, tensor in enumerate(inputs):
            self._name(tensor, self.graph.placeholder(f"given_{i}"))

    def stop(self, outputs: tuple[Tensor, ...]) -> Function:
        """What was written down, as a function with these outputs."""
        self.graph.output(tuple(map(self._node, outputs)))
        self.graph.eliminate_dead_code()
        _reuse_memory(self.graph, {self.nodes[id(tensor)]: tensor for tensor in self.alive})
        _call_directly(self.graph, self.found)
        module = fx.GraphModule(self.found, self.graph)
        vars(module).update(self.found)  # found at once, instead of by a search among the module's tensors
        return module.forward

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        refuse_what_no_list_can_say(function, args, kwargs or {})
        out = function(*args, **(kwargs or {}))
        node = self.graph.call_function(function, *tree_map_only(Tensor, self._node, (args, kwargs or {})))
        if isinstance(out, Tensor):
            self._made(out, node)
        else:
            for i, tensor in enumerate(out or ()):
                if isinstance(tensor, Tensor):
                    self._made(tensor, self.graph.call_function(operator.getitem, (node, i)))
        return out

    def _made(self, tensor: Tensor, node: fx.Node) -> None:
        if view := self._view(tensor):
            return self._name(tensor, view)
        self.bytes += tensor.nbytes
        if self.bytes > MOST_BYTES:
            raise MemoryError(f"{self.bytes} bytes are more than {MOST_BYTES}")
        return self._name(tensor, node)

    def _name(self, tensor: Tensor, node: fx.Node) -> None:
        self.nodes[id(tensor)] = node
        self.alive.append(tensor)
        if (memory := _memory(tensor)) not in self.parts:
            self.places.setdefault(_place(tensor), node)
            self.roots.setdefault(memory, tensor)

    def _node(self, tensor: Tensor) -> fx.Node:
        if id(tensor) not in self.nodes:  # it was there before
            self._name(tensor, self._found(tensor))
        return self.nodes[id(tensor)]

    def _found(self, tensor: Tensor) -> fx.Node:
        name = f"found_{len(self.found)}"
        self.found[name] = tensor.detach()
        return self.graph.get_attr(name)

    def _view(self, tensor: Tensor) -> fx.Node | None:
        """The step to a tensor in memory that is known; None where it has memory of its own."""
        if not tensor.numel():
            return None
        if (place := _place(tensor)) in self.places:
            return self.places[place]
        root = self.roots.get(_memory(tensor))
        if root is None or _kind(root) != _kind(tensor):
            return None
        if self.nodes[id(root)].op == "get_attr":  # it stays where it is, and so does what is seen of it
            return self._found(tensor)
        layout = list(tensor.shape), list(tensor.stride()), tensor.storage_offset()
        return self.graph.call_function(torch.as_strided, (self._node(root), *layout))  # half as long as that of aten


def _reuse_memory(graph: fx.Graph, tensors: dict[fx.Node, Tensor]) -> None:
    """Elementwise operations write over what nobody reads after them, instead of into memory that must be fetched."""
    first: dict[int, fx.Node] = {}
    last: dict[int, fx.Node] = {}
    for node in graph.nodes:
        for seen in {node, *node.all_input_nodes} & tensors.keys():
            first.setdefault(_memory(tensors[seen]), seen)
            last[_memory(tensors[seen])] = node
    for node in graph.nodes:
        if node.op != "call_function" or node not in tensors or (writing := _writing(node.target)) is None:
            continue
        operation, into = writing
        read = Counter(_memory(tensors[given]) for given in node.all_input_nodes)
        for given in node.all_input_nodes if into else node.args[:1]:
            memory = _memory(tensors[given])
            free = first[memory].op == "call_function" and last[memory] is node and read[memory] == 1
            if free and _layout(tensors[given]) == _layout(tensors[node]):
                node.target = operation
                node.kwargs = {**node.kwargs, into: given} if into else node.kwargs
                break


def _call_directly(graph: fx.Graph, found: dict[str, Any]) -> None:
    """Operations go without `OpOverload.__call__`, whose Python takes a fifth of a small one's time."""
    for node in list(graph.nodes):
        if isinstance(node.target, torch._ops.OpOverload):
            found[name := str(node.target).replace(".", "_")] = node.target
            with graph.inserting_before(node):
                direct = graph.call_method("_op", (graph.get_attr(name), *node.args), node.kwargs)
            node.replace_all_uses_with(direct)
            graph.erase_node(node)


@cache
def _writing(function: Any) -> tuple[torch._ops.OpOverload, str] | None:
    """The same elementwise operation, writing into a tensor, and what it calls that; "" where it is the first argument.

    What torch generates for operations that cannot write into a tensor copies the result, and gains nothing.
    """
    tags = getattr(function, "tags", ())
    if torch.Tag.pointwise not in tags or torch.Tag.nondeterministic_seeded in tags or function._schema.is_mutable:
        return None
    packet = function.overloadpacket
    for other in (getattr(packet, name) for name in packet.overloads()):
        into = [a.name for a in other._schema.arguments if a.is_out]
        if len(into) == 1 and torch.Tag.generated not in other.tags and _arguments(other) == _arguments(function):
            return other, into[0]
    in_place = getattr(getattr(torch.ops.aten, f"{packet.__name__}_", None), function._overloadname, None)
    return (in_place, "") if in_place and _arguments(in_place) == _arguments(function) else None


def _arguments(function: torch._ops.OpOverload) -> list[tuple[str, str]]:
    return [(a.name, str(a.type)) for a in function._schema.arguments if not a.is_out]


def refuse_what_no_list_can_say(function: torch._ops.OpOverload, args: tuple, kwargs: dict) -> None:
    """Raise a NotImplementedError for an operation that returns what depends on numbers, or draws from a generator."""
    if _depends_on_numbers(function, args):
        raise NotImplementedError(f"{function} returns what depends on numbers")
    if any(isinstance(leaf, torch.Generator) for leaf in tree_leaves((args, kwargs))):
        raise NotImplementedError(f"{function} draws from a generator of its own")


def _depends_on_numbers(function: torch._ops.OpOverload, args: tuple) -> bool:
    if function is torch.ops.aten.index.Tensor:
        return any(t.dtype in (torch.bool, torch.uint8) for t in args[1] if t is not None)
    return not {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}.isdisjoint(function.tags)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _kind(tensor: Tensor) -> tuple:
    """How the numbers are read."""
    return tensor.dtype, tensor.is_conj(), tensor.is_neg()


def _layout(tensor: Tensor) -> tuple:
    """How the numbers lie in their memory, and how they are read."""
    return tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), _kind(tensor)


def _place(tensor: Tensor) -> tuple:
    """Where the numbers lie, and how they are read."""
    return _memory(tensor), _layout(tensor)
