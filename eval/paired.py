"""What was said beside what is right, as every metric takes it."""

from collections.abc import Sequence

References = Sequence[Sequence[str] | str]
"""Of each sample one text, or several."""


def paired(said: Sequence[str], references: References) -> list[tuple[str, list[str]]]:
    """Each sample's text with its references. ValueError if there is none, and for a sample without references."""
    groups = [[group] if isinstance(group, str) else list(group) for group in references]
    if len(said) != len(groups):
        raise ValueError(f"{len(said)} texts but references for {len(groups)} samples; give one entry each")
    if not groups:
        raise ValueError("nothing to score; give at least one text with its references")
    if [] in groups:
        raise ValueError(f"sample {groups.index([])} has no references; give it one or leave the sample out")
    return list(zip(said, groups, strict=True))
