"""A static web page that runs a generator in the browser, by onnxruntime-web."""

from __future__ import annotations

from dsconvert.web.page import Page, check_page, write_page

__all__ = ["Page", "check_page", "write_page"]
