"""`python -m eval WHAT ...`, and `accelerate launch -m eval WHAT ...`: what `mmlm eval WHAT ...` does."""

import sys

from mmlm.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
