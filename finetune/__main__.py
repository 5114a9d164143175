"""`python -m finetune CONFIG`, and `accelerate launch -m finetune CONFIG`: what `mmlm finetune CONFIG` does."""

import sys

from mmlm.cli import main

if __name__ == "__main__":
    sys.exit(main(["finetune", *sys.argv[1:]]))
