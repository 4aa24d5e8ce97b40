"""``python -m dsconvert``."""

import sys

from dsconvert.cli import main

sys.exit(main())
