"""``python -m dsconvert.train``, for ``accelerate launch -m dsconvert.train ...``.

The same as ``dsconvert train ...``; the command line is imported here for the launcher's sake only.
"""

import sys

from dsconvert.cli import main

sys.exit(main(["train", *sys.argv[1:]]))
