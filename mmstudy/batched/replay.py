"""Functions of tensors, taken down as a list of operations and repeated without the Python that led to them.

A step of training a small network spends most of its time between its operations: finding modules, their parameters,
the rules of `vmap` and those of autograd. All that is the same at every step, and what it comes to is the same list.
"""

import operator
import random
from collections import Counter
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

Function = Callable[..., tuple[Tensor, ...]]  # of tensors

AFTER = 20  # calls on tensors of the same shapes; to take down one takes as long as about so many save
MOST_BYTES = 2**28  # of all the tensors on the way, which are kept meanwhile; what takes more gains nothing


def recorded(function: Function) -> Function:
    """`function`, which is taken down once it has been called `AFTER` times on tensors of the same shapes.

    It may change the tensors it is given, and draw torch's random numbers. What else it depends on, such as a module's
    mode, must stay as it is: tensors that it finds for itself are those that it found when it was taken down. Python's
    or numpy's random numbers, choices and shapes that depend on the numbers, and whatever else makes the list come to
    something else than the function, are noticed, and the function is called as ever.

    Nothing that it returns has a gradient.

    Args:
        function: tensors in, a tuple of tensors out.
    """
    calls: Counter = Counter()
    known: dict[tuple, Function] = {}

    def plain(*inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return function(*inputs)

    def call(*inputs: Tensor) -> tuple[Tensor, ...]:
        key = tuple([(t.shape, t.stride(), t.storage_offset() == 0, t.dtype, t.device) for t in inputs])
        if key not in known:
            calls[key] += 1
            if calls[key] <= AFTER:
                return plain(*inputs)
            known[key] = take_down(function, inputs) or plain
        return known[key](*[t.detach() if t.requires_grad else t for t in inputs])

    return call


def take_down(function: Function, inputs: tuple[Tensor, ...]) -> Function | None:
    """The operations of `function` on tensors like these, as a function; None where they depend on the numbers.

    Only copies of the tensors are touched, and the state of the random numbers is left alone.
    """
    tape = _Tape()
    try:
        with torch.random.fork_rng(), torch.no_grad():
            given, one, other = (_copies(inputs, factor) for factor in (1.0, 1.01, 1.01))
            with tape:
                tape.start(given, [t.storage_offset() == 0 for t in inputs])
                before, outputs, after = _dice(), function(*given), _dice()
            operations = tape.stop(outputs)
            torch.manual_seed(0)
            expected = function(*one)
            torch.manual_seed(0)
            found = operations(*other)  # on other numbers
            alike = all(map(_alike, (*expected, *one), (*found, *other)))
    except (RuntimeError, MemoryError):  # what the function itself has to say, it will
        return None
    return operations if alike and before == after else None


class _Tape(TorchDispatchMode):
    """Writes every operation down; views of a tensor become one step from the tensor whose memory they share."""

    def start(self, inputs: list[Tensor], whole: list[bool]) -> None:
        """Begin; whether each input is the whole of its memory, or may lie somewhere else in it next time."""
        self.graph, self.found = fx.Graph(), {}
        self.alive = []  # all that was seen, so that no two have the same id, or the same memory
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
        module = fx.GraphModule(self.found, self.graph)
        vars(module).update(self.found)  # found at once, instead of by a search among the module's tensors
        return module.forward

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if _depends_on_numbers(function, args):
            raise NotImplementedError(f"{function} returns what depends on numbers")
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


@cache
def _writing(function: Callable) -> tuple[torch._ops.OpOverload, str] | None:
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


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-6, equal_nan=True)


def _copies(tensors: tuple[Tensor, ...], factor: float) -> list[Tensor]:
    """Copies in the same layout (there is none of a tensor that lies on itself), times a factor but for integers."""
    copies = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device).copy_(t) for t in tensors]
    return [t.mul_(factor) if t.is_floating_point() else t for t in copies]


def _dice() -> tuple:
    """The states of Python's and of numpy's random numbers."""
    kind, key, *more = np.random.get_state()  # noqa: NPY002 (it is read, for those who draw from it)
    return random.getstate(), kind, key.tobytes(), *more
