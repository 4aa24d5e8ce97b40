"""Define operators of torch: the namespace ``torch.ops.dsconvert``.

``torch.library.custom_op`` would do the same, but its first call imports ``torch._dynamo``, which
takes seconds, and each call copies nothing but checks for aliases, which ours never return.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from dsconvert.kernels import use

Function = TypeVar("Function", bound=Callable[..., Any])
_LIBRARY = torch.library.Library("dsconvert", "DEF")
_functions: dict[str, Callable[..., Any]] = {}


def operator(schema: str) -> Callable[[Function], Function]:
    """Return a decorator that makes a function the operator ``schema``, on every device.

    Args:
        schema: ``NAME(ARGUMENTS) -> RESULTS``; arguments are not changed, and results are new.
    """

    def defined(function: Function) -> Function:
        _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        name = schema.partition("(")[0]
        _functions[name] = function
        _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        return function

    return defined


def fake(name: str) -> Callable[[Function], Function]:
    """Return a decorator: the function gives the results' shapes, types and layouts.

    While :func:`dsconvert.kernels.use.collecting` is in force the operator itself gives them: it
    launches nothing then.
    """

    def known(function: Function) -> Function:
        @functools.wraps(function)
        def shapes(*args: Any) -> Any:
            return _functions[name](*args) if use.is_collecting() else function(*args)

        torch.library.register_fake(f"dsconvert::{name}", shapes, lib=_LIBRARY)
        return function

    return known


def gradients(
    name: str, backward: Callable[..., Any], setup: Callable[..., None] | None = None
) -> None:
    """Register the gradients of an operator; see ``torch.library.register_autograd``."""
    torch.library.register_autograd(
        f"dsconvert::{name}", backward, setup_context=setup, lib=_LIBRARY
    )


def differentiable_once(name: str) -> None:
    """Refuse the gradients of an operator that computes gradients."""

    def refused(*_: Any) -> None:
        raise RuntimeError(f"dsconvert::{name} computes gradients, and has none itself")

    gradients(name, refused)
