"""``python -m dsconvert.train``, for ``accelerate launch -m dsconvert.train ...``.

The same as ``python -m dsconvert train ...``, run as a program; nothing is imported from there.
"""

import runpy
import sys

sys.argv.insert(1, "train")
runpy.run_module("dsconvert", run_name="__main__", alter_sys=True)
