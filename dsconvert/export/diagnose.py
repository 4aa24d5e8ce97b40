"""Find the operator and the module that an exporter's long message is about."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, fx, nn

from dsconvert.errors import ExportError
from dsconvert.forms.flat_graph import Core

_OPERATOR = re.compile(r"\b(?:torch\.ops\.)?((?:aten|prims|prim)(?:\.|::)\w+(?:\.\w+)?)")
_CALL = re.compile(r'File "([^"]+)", line (\d+), in \w+\s*\n\s*(.+)')


def blame(
    fmt: str, model: nn.Module, core: Core, args: tuple[Tensor, ...], error: Exception
) -> ExportError:
    """Return an error that names the operator and the module that ``error`` is about.

    ``model`` and ``core`` are only looked at; ``args`` are the arguments of the core's trace.
    """
    name = type(model).__name__
    program, inside = _program(core, args)
    text = _chain(error)
    if program is None:
        line = _CALL.search(text)
        where = f", line {line[2]} of {line[1]} ({line[3].strip()})" if line else ""
        what = " depends on its data" if "data-dependent" in text else " can't be followed"
        return ExportError(
            f"{name} can't be exported to {fmt}: the control flow of its module {inside}{where}"
            f"{what} ({_brief(error)}). Rewrite that part without Python branches on tensors."
        )
    found = next((m for m in _OPERATOR.findall(text)), None)
    if found is None:
        return ExportError(f"{name} can't be exported to {fmt}: {_brief(error)}.")
    operator = found.replace("::", ".").removesuffix(".default")
    where = _module_of(core, program, operator.split(".")[1])
    return ExportError(
        f"{name} can't be exported to {fmt}: the operator {operator} "
        f"{f'in its module {where} ' if where else ''}has no counterpart there. Export to torch, "
        "or write that module with other operators."
    )


def _chain(error: BaseException | None) -> str:
    """Return the messages of an error and of its causes."""
    parts: list[str] = []
    while error is not None and len(parts) < 8:
        parts.append(str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(parts)


def _brief(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (
        f"{type(error).__name__}: {lines[0][:200].rstrip('.')}" if lines else type(error).__name__
    )


def _program(core: Core, args: tuple[Tensor, ...]) -> tuple[Any, str]:
    """Return the exported program, or None and the module in which the export stopped."""
    entered: list[str] = []

    def enter(name: str) -> Any:
        return lambda *_: entered.append(name)

    def leave(*_: object) -> None:
        entered.pop()

    handles: list[Any] = []
    for name, module in core.module.named_modules():
        if name:
            handles.append(module.register_forward_pre_hook(enter(name)))
            handles.append(module.register_forward_hook(leave))
    try:
        with torch.no_grad():
            return torch.export.export(core.module, args, strict=False), ""
    except Exception:  # the question is where, not what: that is known
        if not entered:
            return None, "forward"
        return None, f"{entered[-1]} ({type(core.module.get_submodule(entered[-1])).__name__})"
    finally:
        for handle in handles:
            handle.remove()


def _module_of(core: Core, program: Any, operator: str) -> str:
    """Return the module that calls ``operator``: by the flat graph where it was inlined."""
    for node in program.graph.nodes:
        if node.op != "call_function" or operator not in str(node.target):
            continue
        stack = list(node.meta.get("nn_module_stack", {}).values())
        if stack and stack[-1][0]:
            return str(stack[-1][0])
        origin = node.meta.get("from_node") or ()
        names = {str(getattr(o, "name", "")) for o in origin}
        for source in core.module.graph.nodes:
            if source.name in names or source.name == node.name:
                return _path(source)
    return ""


def _path(node: fx.Node) -> str:
    """Return the module of the original that a node of the flat graph comes from."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]) if stack and isinstance(stack[-1], tuple) else ""
