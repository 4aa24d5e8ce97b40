"""Run teacher and student side by side through one graph, once, node by node.

Rerunning the prefix of a network for every layer costs the square of its depth. Here every
operation runs once for every latent: the activations of all latents are held at the current front
of the graph, both sides' (one copy while they agree), and freed after their last use. Where maps
grow, latents are dropped, so that memory stays bounded: small maps need many latents, large ones
have enough pixels in a few.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from dsconvert.model.graph import TracedGraph, evaluate
from dsconvert.model.inputs import tensors_of


@dataclass
class Front:
    """What a visitor sees at a call of a module: per batch, the arguments and outputs."""

    name: str
    student: nn.Module
    student_args: list[tuple[Any, ...]]
    teacher_args: list[tuple[Any, ...]]
    wanted: list[Tensor]
    """The teacher's output, batch by batch."""
    call: int
    """How often this module has been called before in this pass."""


Visitor = Callable[[Front], None]


def _called(node: fx.Node) -> str:
    """What a node calls, as a person names it."""
    return str(getattr(node.target, "__name__", node.target))


def _bytes(value: Any) -> int:
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0


class Stream:
    """One pass of a teacher and a student through ``graph``.

    Args:
        recorded: the teacher's torch.fx graph; module names are looked up on both sides.
        teacher: the original model, in eval mode.
        student: the rewritten model, in eval mode.
        batches: positional arguments of forward calls, batch by batch. The first is held out
            by the visitors and is never dropped.
        visit: called with a :class:`Front` before the student's module runs, where it is in
            ``changed``, or in ``watch`` with inputs that differ between the sides.
        watch: modules that are the same on both sides, but may be refitted.
        changed: modules that differ between the sides.
        budget: bytes that the outputs of one node may take on one side; batches (the last first)
            are dropped beyond it, but never below two.
        seed: seeds the random draws inside the model (noise injection), per node and batch, the
            same on both sides.
        progress: called with (nodes done, nodes in all, name).
    """

    def __init__(
        self,
        recorded: TracedGraph,
        teacher: nn.Module,
        student: nn.Module,
        batches: Sequence[tuple[Any, ...]],
        *,
        visit: Visitor,
        watch: frozenset[str] = frozenset(),
        changed: frozenset[str] = frozenset(),
        budget: int = 1 << 30,
        seed: int = 0,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> None:
        self._graph, self._constants = recorded.graph, recorded.constants
        self._teacher, self._student = teacher, student
        self._visit, self._watch, self._changed = visit, watch, changed
        self._budget, self._seed, self._progress = budget, seed, progress
        self._envs: list[tuple[dict[fx.Node, Any], dict[fx.Node, Any]]] = [
            ({}, {}) for _ in batches
        ]
        self._batches = [tensors_of(batch) for batch in batches]
        self._calls: dict[str, int] = {}
        self._diverged: set[fx.Node] = set()
        self.held_out: tuple[Any, Any] | None = None
        """What student and teacher return for the first batch, once the pass is over."""

    def run(self) -> None:
        """Run the whole graph."""
        nodes = list(self._graph.nodes)
        last_use: dict[fx.Node, fx.Node] = {}
        for node in nodes:
            for used in node.all_input_nodes:
                last_use[used] = node
        placeholder = 0
        for done, node in enumerate(nodes):
            if node.op == "output":
                teacher, student = self._envs[0]
                self.held_out = (
                    map_arg(node.args[0], student.__getitem__),
                    map_arg(node.args[0], teacher.__getitem__),
                )
                break
            if self._progress is not None:
                self._progress(done, len(nodes), _called(node))
            if node.op == "placeholder":
                self._place(node, placeholder)
                placeholder += 1
            else:
                self._step(node, done)
            for used in node.all_input_nodes:
                if last_use[used] is node:
                    for envs in self._envs:
                        for env in envs:
                            env.pop(used, None)
            if node not in last_use:
                for envs in self._envs:
                    for env in envs:
                        env.pop(node, None)

    def _place(self, node: fx.Node, index: int) -> None:
        for batch, (teacher, student) in zip(self._batches, self._envs, strict=True):
            teacher[node] = student[node] = batch[index]

    def _args(
        self, node: fx.Node, env: dict[fx.Node, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        look = env.__getitem__
        return map_arg(node.args, look), map_arg(node.kwargs, look)

    def _evaluate(self, model: nn.Module, node: fx.Node, env: dict[fx.Node, Any]) -> Any:
        if node.op == "get_attr" and str(node.target) in self._constants:
            return self._constants[str(node.target)]
        args, kwargs = self._args(node, env)
        return evaluate(model, node, args, kwargs)

    def _draw(self, position: int, batch: int) -> None:
        torch.manual_seed((self._seed * 1_000_003 + position) * 8191 + batch)

    def _step(self, node: fx.Node, position: int) -> None:
        name = str(node.target) if node.op == "call_module" else ""
        diverged = any(n in self._diverged for n in node.all_input_nodes)
        touched = name in self._changed or (diverged and name in self._watch)
        diverged = diverged or touched
        used = 0
        for index, (teacher, student) in enumerate(self._envs):
            self._draw(position, index)
            teacher[node] = self._evaluate(self._teacher, node, teacher)
            if not diverged:
                student[node] = teacher[node]
            used += _bytes(teacher[node])
            if used > self._budget and index + 1 >= 2 and index + 1 < len(self._envs):
                del self._envs[index + 1 :]
                del self._batches[index + 1 :]
                break
        if not diverged:
            return
        self._diverged.add(node)
        if touched:
            call = self._calls.get(name, 0)
            self._calls[name] = call + 1
            self._visit(
                Front(
                    name=name,
                    student=self._student.get_submodule(name),
                    student_args=[self._args(node, s)[0] for _, s in self._envs],
                    teacher_args=[self._args(node, t)[0] for t, _ in self._envs],
                    wanted=[t[node] for t, _ in self._envs],
                    call=call,
                )
            )
        for index, (_, student) in enumerate(self._envs):
            self._draw(position, index)
            student[node] = self._evaluate(self._student, node, student)
