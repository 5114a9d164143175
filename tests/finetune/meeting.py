"""`python -m finetune`, whose processes meet within 15 seconds, or are started anew."""

import sys
from datetime import timedelta

from mmlm import ranks
from mmlm.cli import main

ranks.MEETING = timedelta(seconds=15)

if __name__ == "__main__":
    sys.exit(main(["finetune", *sys.argv[1:]]))
