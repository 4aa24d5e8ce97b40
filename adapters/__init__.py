"""Built-in adapters, one folder a codebase.

Installed under the import name ``dsconvert_adapters`` (PyPI already has a package called
``adapters``) and found through the entry-point group ``dsconvert.adapters``, the same door a
stranger's adapter uses.
"""
