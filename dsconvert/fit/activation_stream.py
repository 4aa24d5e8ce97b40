"""Run a teacher and a student side by side through one graph, once, node by node.

Rerunning the first part of a network for every layer would cost the square of its depth. Here
every operation runs once for every latent. The activations of all latents are held for the current
nodes of the graph, on both sides (one copy while they agree), and freed after their last use. Where
maps grow, latents are dropped, so that memory stays bounded: small maps need many latents, large
ones have enough pixels in a few.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from dsconvert.errors import ConversionError
from dsconvert.fit.copy_on_write import Values, copy_on_write, memory_of
from dsconvert.fit.threads import all_threads, one_thread
from dsconvert.model.graph import ConvTypes, TracedGraph
from dsconvert.model.inputs import tensors_of
from dsconvert.model.node_runner import NodeRunner
from dsconvert.model.one_dimensional import is_1d
from dsconvert.util.devices import full_float32


@dataclass
class LayerCall:
    """One call of a module on both sides: per batch, the arguments and the wanted output."""

    name: str
    student: nn.Module
    student_args: list[tuple[Any, ...]]
    teacher_args: list[tuple[Any, ...]]
    wanted: list[Tensor]
    """The teacher's output, batch by batch; without the channels that the student lacks."""
    call: int
    """The number of earlier calls of this module in this pass."""
    teacher_inputs: list[tuple[Any, ...]]
    """The teacher's arguments with all of their channels; ``teacher_args`` lack the student's."""


Visitor = Callable[[LayerCall], None]


def _called(node: fx.Node) -> str:
    """Return the name of the module or function that a node calls, for people."""
    return str(getattr(node.target, "__name__", node.target))


def _bytes(value: Any) -> int:
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0


def _pixels(value: Any, dims: tuple[int, ...]) -> int:
    """Return the positions of a map (N, C, ...), batch included; 0 for values of other ``dims``."""
    is_map = isinstance(value, Tensor) and value.dim() in dims
    return value.numel() // max(1, value.shape[1]) if is_map else 0


def _weights(model: nn.Module, name: str) -> int:
    """Return the weights that the module ``name`` applies at each position of a map."""
    parts = model.get_submodule(name).modules() if name else ()
    return sum(m.weight.numel() for m in parts if isinstance(m, ConvTypes))


FEWEST = 32
"""Batches that are kept however many positions each of them has: images differ as a whole, too."""
Selection = Mapping[fx.Node, tuple[int, Tensor]]
"""Per node of the teacher's graph whose value has more channels than the student's: the channel
dimension, and the positions that the student keeps."""


class ActivationStream:
    """One pass of a teacher and a student through a graph.

    Args:
        graph: the teacher's torch.fx graph; module names are looked up on both sides.
        teacher: the original model, in eval mode.
        student: the rewritten model, in eval mode.
        batches: positional arguments of forward calls, batch by batch. Visitors hold out the
            first one; it is never dropped.
        visit: called with a :class:`LayerCall` before the student's module runs, where it is in
            ``changed``, or in ``watch`` with inputs that differ between the sides.
        watch: modules that are the same on both sides and may be refitted.
        changed: modules that differ between the sides.
        observe: modules that are visited although nothing differs (to measure the teacher alone).
        student_graph: the graph of the student, if its operations have other constants; node by
            node the same operations as ``graph``.
        selection: the channels that a narrower student keeps.
        budget: bytes that the outputs of one node may take on one side; beyond it batches are
            dropped (the last first), but never below two.
        positions: pixels over all latents that suffice for the fit of a layer; beyond them batches
            are dropped like those beyond ``budget``, but never below :data:`FEWEST`. None: no
            number does.
        seed: seeds the random draws inside the model (noise injection), per node and batch, the
            same on both sides.
        progress: called with (nodes done, nodes in all, name).
    """

    def __init__(
        self,
        graph: TracedGraph,
        teacher: nn.Module,
        student: nn.Module,
        batches: Sequence[tuple[Any, ...]],
        *,
        visit: Visitor,
        watch: frozenset[str] = frozenset(),
        changed: frozenset[str] = frozenset(),
        observe: frozenset[str] = frozenset(),
        student_graph: TracedGraph | None = None,
        selection: Selection | None = None,
        budget: int = 1 << 30,
        positions: int | None = None,
        seed: int = 0,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> None:
        self._graph = graph.graph
        self._teacher_model, self._student_model = teacher, student
        self._teacher = NodeRunner(teacher, graph.graph, graph.constants)
        own = graph if student_graph is None else student_graph
        self._student = NodeRunner(student, own.graph, own.constants)
        self._twins = _twins(graph.graph, own.graph)
        self._own_numbers = {
            n for n, twin in self._twins.items() if _literals(n, graph) != _literals(twin, own)
        }
        """Nodes whose arguments are other numbers (of channels) in the student's graph."""
        self._visit, self._watch, self._changed = visit, watch, changed
        self._observe, self._selection = observe, selection or {}
        self._budget, self._seed, self._progress = budget, seed, progress
        self._positions = positions
        self._maps = (3, 4) if is_1d(teacher) else (4,)
        """Dimensions of the values that are maps."""
        self._values: list[tuple[Values, Values]] = [({}, {}) for _ in batches]
        """Per batch, the values of the teacher and of the student that are still in use."""
        self._batches = [tensors_of(batch) for batch in batches]
        tensors = [t for batch in self._batches for t in batch]
        self._given = memory_of(tensors)
        """Memory of the inputs and of the models' own tensors, which no run changes."""
        for model in (teacher, student):
            tensors += [*model.parameters(), *model.buffers()]
        self._accelerated = any(t.device.type != "cpu" for t in tensors)
        self._calls: dict[str, int] = {}
        self._diverged: set[fx.Node] = set()
        self.held_out: tuple[Any, Any] | None = None
        """The outputs of student and teacher for the first batch, once the pass is over."""

    def run(self) -> None:
        """Run the whole graph in full precision, small operations on one thread."""
        with one_thread(), full_float32():
            self._run()

    def _run(self) -> None:
        nodes = list(self._graph.nodes)
        last_use: dict[fx.Node, fx.Node] = {}
        for node in nodes:
            for used in node.all_input_nodes:
                last_use[used] = node
        placeholder = 0
        for done, node in enumerate(nodes):
            if node.op == "output":
                teacher, student = self._values[0]
                theirs = map_arg(node.args[0], teacher.__getitem__)
                self.held_out = map_arg(self._twins[node].args[0], student.__getitem__), theirs
                break
            if self._progress is not None:
                self._progress(done, len(nodes), _called(node))
            if node.op == "placeholder":
                for batch, (teacher, student) in zip(self._batches, self._values, strict=True):
                    teacher[node] = student[self._twins[node]] = batch[placeholder]
                placeholder += 1
            else:
                self._step(node, done)
            self._free({used for used in node.all_input_nodes if last_use[used] is node})
            if node not in last_use:
                self._free({node})

    def _free(self, nodes: set[fx.Node]) -> None:
        for teacher, student in self._values:
            for node in nodes:
                teacher.pop(node, None)
                student.pop(self._twins[node], None)

    def _draw(self, position: int, batch: int) -> None:
        seed = (self._seed * 1_000_003 + position) * 8191 + batch
        if self._accelerated:
            torch.manual_seed(seed)
        else:
            # The same draws: torch.manual_seed also seeds accelerators, and takes milliseconds to
            # note the stack where there is none.
            torch.default_generator.manual_seed(seed)

    def _step(self, node: fx.Node, position: int) -> None:
        name = str(node.target) if node.op == "call_module" else ""
        diverged = any(n in self._diverged for n in node.all_input_nodes)
        touched = name in self._changed or (diverged and name in self._watch)
        # A parameter that forward reads may be narrower, too.
        diverged = diverged or touched or node in self._selection or node in self._own_numbers
        twin = self._twins[node]
        used = seen = 0
        moved: set[fx.Node] = set()
        weights = _weights(self._teacher_model, name)
        for index, (teacher, student) in enumerate(self._values):
            self._draw(position, index)
            reads = [teacher[n] for n in node.all_input_nodes]
            sides = (teacher,) if diverged else (teacher, student)
            shared = self._given | memory_of(student.values()) if diverged else self._given
            with (
                copy_on_write(sides, reads, shared) as apart,
                all_threads(weights * _pixels(self._values[0][0].get(node), self._maps)),
            ):
                teacher[node] = self._teacher.value(node, teacher)
                if not diverged:
                    student[twin] = teacher[node]
            moved |= apart
            if node.op == "get_attr":
                self._given |= memory_of([teacher[node]])
            used += _bytes(teacher[node])
            seen += _pixels(teacher[node], self._maps)
            enough = self._positions is not None and seen >= self._positions
            enough = (enough and index + 1 >= FEWEST) or (used > self._budget and index + 1 >= 2)
            if enough and index + 1 < len(self._values):
                del self._values[index + 1 :]
                del self._batches[index + 1 :]
                break
        if touched or name in self._observe:
            call = self._calls.get(name, 0)
            self._calls[name] = call + 1
            self._visit(
                LayerCall(
                    name=name,
                    student=self._student_model.get_submodule(name),
                    student_args=[self._student.arguments(twin, s)[0] for _, s in self._values],
                    teacher_args=[self._selected_arguments(node, t) for t, _ in self._values],
                    wanted=[self._selected(node, t[node]) for t, _ in self._values],
                    call=call,
                    teacher_inputs=[self._teacher.arguments(node, t)[0] for t, _ in self._values],
                )
            )
        if not diverged:
            return
        weights = _weights(self._student_model, name)
        for index, (teacher, student) in enumerate(self._values):
            self._draw(position, index)
            reads = [student[n] for n in twin.all_input_nodes]
            shared = self._given | memory_of(teacher.values())
            with (
                copy_on_write((student,), reads, shared) as apart,
                all_threads(weights * _pixels(teacher[node], self._maps)),
            ):
                student[twin] = self._student.value(twin, student)
            moved |= apart
            if node.op == "get_attr":
                self._given |= memory_of([student[twin]])
        self._diverged.add(node)
        if moved:  # values that were written on one side, and views of them
            self._diverged |= {n for n, twin in self._twins.items() if {n, twin} & moved}

    def _selected(self, node: fx.Node, value: Any) -> Any:
        """Return a value of the teacher without the channels that the student lacks."""
        chosen = self._selection.get(node)
        if chosen is None:
            return value
        return value.index_select(chosen[0], chosen[1].to(value.device))

    def _selected_arguments(self, node: fx.Node, values: Values) -> tuple[Any, ...]:
        if not self._selection:
            return self._teacher.arguments(node, values)[0]
        return tuple(map_arg(node.args, lambda n: self._selected(n, values[n])))


def _literals(node: fx.Node, traced: TracedGraph) -> str:
    """Return the arguments of a node that are no values of the graph, or a constant, as text."""
    constant = traced.constants.get(str(node.target)) if node.op == "get_attr" else None
    if isinstance(constant, Tensor):
        return str(constant.shape)
    return str(map_arg((node.args, node.kwargs), lambda _: None))


def _twins(teacher: fx.Graph, student: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Return the student's node for each of the teacher's.

    Raises:
        ConversionError: the graphs have different operations.
    """
    ours, theirs = list(student.nodes), list(teacher.nodes)
    same = len(ours) == len(theirs) and all(
        a.op == b.op and (a.op == "call_function" or str(a.target) == str(b.target))
        for a, b in zip(ours, theirs, strict=True)
    )
    if not same:
        raise ConversionError(
            "the narrower model's forward takes other steps than the original's, so its layers "
            "can't be compared one by one; convert it without --width."
        )
    return dict(zip(theirs, ours, strict=True))
