"""``python -m dsconvert.train``, for ``accelerate launch -m dsconvert.train ...``.

It runs ``python -m dsconvert train ...`` as a program and imports nothing of the command line.
"""

import runpy
import sys

sys.argv.insert(1, "train")
runpy.run_module("dsconvert", run_name="__main__", alter_sys=True)
