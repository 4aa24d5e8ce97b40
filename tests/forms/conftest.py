from tests.forms.generators import conditional, fast, plain

__all__ = ["conditional", "fast", "plain"]
