"""HTML documents from the templates of this package; every value is escaped."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

_SUFFIX = ".html.j2"


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("dsconvert.runs"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, **values: Any) -> str:
    """Return ``templates/TEMPLATE.html.j2`` with ``values``; strings in them are escaped."""
    return _templates().get_template(f"{template}{_SUFFIX}").render(**values)


def render_macro(template: str, macro: str, *values: Any) -> str:
    """Return one macro of a template, for use within a page."""
    module: Any = _templates().get_template(f"{template}{_SUFFIX}").module
    return str(getattr(module, macro)(*values))


def page(title: str, body: str) -> str:
    """Return a whole document in the style of the reports.

    Args:
        title: text; it is escaped.
        body: HTML; it is not.
    """
    return render("page", title=title, body=Markup(body))
