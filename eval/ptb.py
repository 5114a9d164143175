"""Words of a caption as the COCO evaluation counts them: lower-case Penn Treebank tokens without punctuation.

The evaluation server of COCO (Chen et al. 2015, arXiv:1504.00325) tokenizes with a Java program; this does the same to
ordinary English captions, in plain Python: contractions are split ("don't" -> do n't, "dog's" -> dog 's), words with
hyphens and numbers with commas, points or colons stay whole, punctuation goes (but brackets stay, as -lrb- and -rrb-).

It has none of the program's lists and special cases, and so differs from it in abbreviations with a point ("st."),
slashed words ("and/or"), e-mail addresses and URLs, "gonna" (gon na) and its like, currency signs, fractions, "&amp;".
"""

import re

_CLITIC = r"n't|'(?:s|m|d|re|ve|ll)\b"
_NUMBER = r"\d+(?:[.,:/]\d+)*"
_WORD = r"[^\W_]+?(?=n't\b)|[^\W_]+(?:-[^\W_]+)*"
_INITIALS = r"(?:[^\W\d_]\.){2,}"
_TOKEN = re.compile(rf"{_CLITIC}|{_INITIALS}|{_NUMBER}(?!\w|-\w)|{_WORD}|[]()[{{}}&%$#@/*+=<>^~|\\_]")
_BRACKETS = dict(zip("()[]{}", ("-lrb-", "-rrb-", "-lsb-", "-rsb-", "-lcb-", "-rcb-"), strict=True))
_STRAIGHT = str.maketrans({"’": "'", "‘": "'"})


def ptb_tokenize(caption: str) -> list[str]:
    """Lower-case Penn Treebank tokens of one caption, punctuation dropped: "The dog's ball." -> the dog 's ball."""
    text = re.sub(r"\bcannot\b", "can not", caption.lower().translate(_STRAIGHT))
    return [_BRACKETS.get(token, token) for token in _TOKEN.findall(text)]
