"""`python -m mmlm`: the command line where its script is not on the path."""

import sys

from mmlm.cli import main

sys.exit(main())
