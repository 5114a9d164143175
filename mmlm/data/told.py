"""What is told of a data set's samples before anything is done with them."""

import sys
from collections.abc import Sequence

FEW = 5  # samples that are left out, told one by one


def tell(name: str, count: int, broken: Sequence[str], where: str) -> None:
    """Tells how many samples there are, and of those left out how many, the first few, and `where` others are named."""
    print(f"{name}: {count:,} samples" + f", {len(broken):,} left out:" * bool(broken), file=sys.stderr)
    for one in broken[:FEW]:
        print(f"  {one}", file=sys.stderr)
    if len(broken) > FEW:
        print(f"  and {len(broken) - FEW:,} more, which {where} names", file=sys.stderr)
