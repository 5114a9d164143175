"""Words of a caption as the COCO evaluation counts them: lower-case Penn Treebank tokens without punctuation.

The evaluation of COCO (Chen et al. 2015, arXiv:1504.00325) tokenizes with a Java program, the PTBTokenizer of Stanford
CoreNLP 3.4.1, told to keep lines and to lower the case, and drops a list of punctuation marks. This gives the same
tokens in plain Python, habits included: contractions are split ("don't" -> do n't), "cannot" and "gonna" too, words
with hyphens, slashes or points inside stay whole, "st." keeps its point, "£" is "#", brackets stay (as -lrb-, -rrb-),
emoji and other characters beyond its tables vanish. Worked out from what it answers.

Captions are tokenized one by one. The original is given a file of them and looks past a line's end: a caption that ends
in an initial with a point loses that point if the next one begins with "A", "The" or the like. Of 20,000 lines of
prose that it had not been made on none differed; of random strings of the oddest pieces one in some thousand still
does: emoji or no-break spaces inside addresses, a final sigma before a hyphen.

Like the original it takes the longest token that some rule makes at each place, where what a rule must see behind its
token counts as length, and of equally long ones the rule that is listed first.
"""

import re
from functools import lru_cache

_KEPT = 2**16  # captions: several scores of several answers take the same references


def _characters(ranges: str) -> str:
    """ "61-63 78" -> what stands in a regular expression's [...] for a, b, c and x."""
    return "".join("-".join(rf"\u{int(end, 16):04x}" for end in span.split("-")) for span in ranges.split())


# Which characters beyond ASCII are part of words, and which are tokens of their own; all others it ignores.
_LETTERS = """
    aa b5 ba c0-d6 d8-f6 f8-37d 384-386 388-481 483-487 48a-527 531-55f 561-587 58a 591-5bd 5bf 5c1-5c2
    5c4-5c5 5c7-5ea 5f0-5f2 615-61a 620-65e 66e-6d3 6d5-6ef 6fa-6ff 70f-7b1 7ca-7f5 7fa 800-815 81a 824 828
    840-858 8a0 8a2-8ac 900-939 93c-94e 950-955 958-963 971-977 979-97f 981-9e3 9f0-9f1 a01-a4d a59-a5e
    a72-a74 a81-ae1 b05-b39 b3d b5c-b61 b71 b82-bd0 c01-c03 c05-c33 c35-c39 c3d-c59 c60-c61 c85-cb9 cbd
    cde-ce1 cf1-cf2 d05-d3a d3d-d48 d4e d60-d61 d7a-d7f d85-dc6 e01-e3a e40-e4e e81-e84 e87-e88 e8a e8d
    e94-e97 e99-e9f ea1-ea7 eaa-eab ead-ecd edc-f00 f40-f6c f88-f8c 1000-102a 103f 1050-1055 105a-105d 1061
    1065-1066 106e-1070 1075-1081 108e 10a0-10fa 10fc-135a 1380-138f 13a0-13f4 1401-166c 166f-167f 1681-169a
    16a0-16ea 1700-170c 170e-1711 1720-1731 1740-1751 1760-1770 1780-17b3 17d7 17dc 1820-1877 1880-18a8
    18aa-191c 1950-19ab 19c1-19c7 1a00-1a16 1a20-1a54 1aa7 1b05-1b33 1b45-1b4b 1b83-1ba0 1bae-1baf 1bba-1be5
    1c00-1c23 1c4d-1c4f 1c5a-1c7d 1ce9-1cec 1cee-1cf1 1cf5-1cf6 1d00-1dbf 1e00-1fbc 1fbe 1fc2-1fcc 1fd0-1fdb
    1fe0-1fec 1ff2-1ffc 2071 207f 2090-209c 2102 2107 210a-2113 2115 2119-211d 2124 2126 2128 212a-212d
    212f-2139 213c-213f 2145-2149 214e 2183-2184 2c00-2c2e 2c30-2c5e 2c60-2ce4 2ceb-2cee 2cf2-2cf3 2d00-2d6f
    2d80-2dde 2e2f 3005-3006 3031-3035 303b-303c 3041-3096 309d-309f 30a1-30fa 30fc-312d 3131-318e 31a0-31ba
    31f0-31ff 3400-4db5 4e00-9fcc a000-a48c a4d0-a4fd a500-a60c a610-a61f a62a-a66e a67f-a697 a6a0-a6e5
    a717-a71f a722-a788 a78b-a78e a790-a793 a7a0-a7aa a7f8-a801 a803-a805 a807-a80a a80c-a822 a840-a873
    a882-a8b3 a8f2-a8f7 a8fb a90a-a925 a930-a946 a960-a97c a984-a9b2 a9cf aa00-aa28 aa40-aa42 aa44-aa4b
    aa60-aa76 aa7a aa80-aaaf aab1 aab5-aab6 aab9-aabd aac0 aac2-aadd aae0-aaea aaf2-aaf4 ab01-ab2e abc0-abe2
    ac00-fb1d fb1f-fb28 fb2a-fbb1 fbd3-fd3d fd50-fdc7 fdf0-fdfb fe70-fefc ff21-ff3a ff41-ff5a ff66-ffdc
"""
_DIGITS = """
    660-669 6f0-6f9 7c0-7c9 966-96f 9e6-9ef a66-a6f ae6-aef b66-b6f be6-bef c66-c6f ce6-cef d66-d6f e50-e59
    ed0-ed9 f20-f29 1040-1049 1090-1099 17e0-17e9 1810-1819 1946-194f 19d0-19d9 1a80-1a99 1b50-1b59 1bb0-1bb9
    1c40-1c49 1c50-1c59 a620-a629 a8d0-a8d9 a900-a909 a9d0-a9d9 aa50-aa59 abf0-abf9 ff10-ff19
"""
_SIGNS = """
    a1 a5-a9 ac ae-b4 b6-b9 bf d7 f7 37e 387 589 5be 5c0 5c3 5c6 5f3-603 606-60c 614 61b 61e-61f 66a 66d 6d4
    700-70d 7f6-7f8 964-965 e3f e4f 1fbd 2016-2017 201a 201e-2023 2030-2038 203b 203e-2042 2044 2070 2074-207e
    2080-208e 20a4 2100-2101 2103-2106 2108-2109 2114 2116-2118 211e-2123 2125 2127 2129 212e 213a-213b
    2140-2144 214a-214d 214f 2155-215e 2190-2bff 3001-3002 3012 30fb ff01-ff0f ff1a-ff20 ff3b-ff40 ff5b-ff65
    ffe0-ffe1 ffe5-ffe6
"""
# Abbreviations keep their point: these wherever they stand, the last ones (which may also end a sentence) even if what
# follows would be taken for part of the word, and some only with a capital or before a number.
_ABBREVIATIONS = """
    adj adm adv alex assoc asst atty ave brig capt cf cie cmdr col comdr cpl dept det dr drs elec ens ft gen
    gov govs hon insp invt jos lieut lt maj messrs mfg mlle mme mr mrs ms msgr mt mtg natl pfc ph pres prof
    profs pvt rep reps rev sen sens sfc sgt spc st ste supt treas vs wm
"""
_LAST_ABBREVIATIONS = """
    al ala apr ariz assn aug bancorp bhd bldg blvd bros calif co colo conn corp cos ct dak dec esq est etc ext
    feb fla fri ga inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon mont neb nev nov oct
    okla penn plc ppte ppty pte ptes pty ptys rd rt sep sept seq sq sr sys tel tenn thu thurs tue tues univ va
    vt wed wis wisc wyo
"""
_LAST_ABBREVIATIONS_WITH_A_CAPITAL = "ark az del ill la mass miss ore pa tex wash"
_ABBREVIATIONS_OF_NUMBERS = "art ca fig figs no nos op pp prop"
# Behind an initial these begin a sentence, so that its point is a full stop: "plan C. The end".
_STARTS = """
    a about according additionally after an as at but earlier he her here however if in it last many more now once one
    other our she since so some such that the their then there these they this we what when while yet you
"""
_HALVES = "can+not gon+na got+ta lem+me gim+me wan+na 't+is 't+was"
_JOINED = frozenset(pair.replace("+", "") for pair in _HALVES.split())


def _either(words: str) -> str:
    return "|".join(words.split())


def _capital(words: str) -> str:
    return f"(?:{'|'.join(f'{word.title()}|{word.upper()}' for word in words.split())})"


_L = rf"(?:[A-Za-z\xad{_characters(_LETTERS)}]|&[aeiouAEIOU](?:acute|grave|uml);)"
_D = rf"[0-9{_characters(_DIGITS)}]"
_LD = rf"(?:{_L}|{_D})"
_W = rf"(?:[A-Za-z0-9\xad]|(?=[^\W_])[{_characters(_LETTERS + _DIGITS)}])"  # no combining marks: not beside hyphens
_APOSTROPHE = "(?:['\x92’]|&apos;)"
_TICK = "(?:['`\x91\x92‘’]|&apos;)"
_WORD = rf"{_L}{_LD}*(?:[.!?]{_L}{_LD}*)*"
_NUMBER = rf"(?:{_D}*(?:[.,:\xad]{_D}+)+|{_D}+)"
_INITIALS = r"[A-Za-z](?:\.[A-Za-z])+"
_COMPANY = r"[A-Z]+(?:(?:&|&amp;|\+)[A-Z]+)+"
_NAME = rf"(?:[dDoOlL]{_APOSTROPHE}{_W})?{_W}+"
_NAMES = rf"{_NAME}(?:[-_\u058a\u2010\u2011]{_NAME})*"
_HYPHENED = rf"[A-Za-z0-9][A-Za-z0-9.,\xad]*(?:-(?:{_INITIALS}\.|[A-Za-z0-9\xad]+))+"
_SLASHED = r"(?:[A-Za-z0-9]+(?:-[A-Za-z]+){0,2})"
_ENDING = r"(?:[msdMSD]|re|ve|ll|RE|VE|LL)"  # of a contraction
_ANY_ABBREVIATION = rf"[A-Za-z]|(?i:{_either(_ABBREVIATIONS)})"
_LAST_ABBREVIATION = rf"(?:(?i:{_either(_LAST_ABBREVIATIONS)})|{_capital(_LAST_ABBREVIATIONS_WITH_A_CAPITAL)})"
_PATH = r"/[^ \t\n\"<>|()]+[^ \t\n\"<>|.!?(){},\xa0-]"
_WWW = r"(?i:www)\.(?:[^ \t\n\"<>|.!?(){},]+\.)+[a-zA-Z]{2,4}"
_SITE = r"(?:[^ \t\n\"'!$(){}|,-`]+\.)+(?i:com|net|org|edu)"
_MAIL = r"<?[A-Za-z0-9][^ \t\n\"<>|(){}\xa0]*@(?:[^ \t\n\"<>|(){}.\xa0]+\.)*[^ \t\n\"<>|(){}.\xa0]+>?"
_FILE = """
    bat bmp c class cgi cpp dll docx? exe gif gz h html? jar java jpe?g mov mp3 pdf php pl png ppt ps py sql tar txt wav
    x xml zip
"""
_PHONE = r"(?:\([0-9]{2,3}\)[ \xa0]?|\+{0,2}(?:[0-9]{2,4}[- \xa0])?[0-9]{2,4}[- \xa0])[0-9]{3,4}[- \xa0]?[0-9]{3,5}"
_TAG = "[A-Za-z][A-Za-z0-9_:.-]*"
_QUOTED = "(?:\"[^\"\n]*\"|'[^'\n]*')"
_ATTRIBUTES = rf"(?: +{_TAG}(?: *= *{_QUOTED})?)*"
_MARKUP = rf"(?:<!--[^>\n]*>|<[!?][A-Za-z][^\n>]*>|</{_TAG} *>|<{_TAG}{_ATTRIBUTES} */?>)"
_GRAVE, _ACUTE, _OPEN, _CLOSE = "‘‛‹\x91", "’›\x92", "“«\x93", "”»\x94"
_QUOTES = rf"[{_GRAVE}{_ACUTE}{_OPEN}{_CLOSE}`‚„]{{1,2}}"

# Each: a token, what must stand behind it, and how it is spelt if not as it stands: with brackets as words ("face"),
# with signs too ("sign"), with a plain apostrophe ("ending") or ampersand ("company"), or as the third says.
_RULES: list[tuple[str, str, str]] = [
    # the first halves of words written as one; the rest is an ordinary word
    *[(f"(?i:{half})", f"(?i:{rest})", "") for half, rest in (pair.split("+") for pair in _HALVES.split())],
    # markup, addresses
    (_MARKUP, "", ""),
    (r"(?i:https?)://[^ \t\n\"<>|(){}]+[^ \t\n\"<>|.!?(){},\xa0-]", "", ""),
    *[(site + path, "", "") for site in (_WWW, _SITE) for path in (_PATH, "")],
    (_MAIL, "", ""),
    (r"@[A-Za-z_][A-Za-z0-9_]*", "", ""),
    (rf"#{_L}+", "", ""),
    # contractions: what stands before n't ends in another letter
    ("[A-Za-z]*[A-MO-Za-mo-z]", f"[nN]{_TICK}[tT]", ""),
    (_WORD, rf"{_APOSTROPHE}{_ENDING}", ""),
    (f"[nN]{_TICK}[tT]", "", "ending"),
    (rf"{_APOSTROPHE}{_ENDING}", "[^A-Za-z]", "ending"),
    (rf"{_APOSTROPHE}(?:[nN]{_APOSTROPHE}?|(?i:em|till?|cause))", "", "ending of its own"),
    (rf"[lLdDjJ]{_APOSTROPHE}|(?:Dunkin|somethin|(?i:ol)){_APOSTROPHE}", "", "ending of its own"),
    (rf"[eoEO]{_APOSTROPHE}er|(?i:c'mon)|(?:[cC]ap{_APOSTROPHE}n|[nN]at{_APOSTROPHE}l|[eE]v{_APOSTROPHE}ry)", "", ""),
    (rf"[A-HJ-XZndlo]{_TICK}{_L}{{2,}}|[oO]{_TICK}o", "", "ending of its own"),
    (rf"[dDoOlL]{_TICK}{_W}{{2,}}", "", "ending of its own"),
    (rf"{_L}+[aeiouyAEIOUY]{_TICK}[aeiouA-Z]{_L}*", "", "ending of its own"),
    (rf"[yY]{_APOSTROPHE}", _L, "ending of its own"),
    # words and numbers
    (_WORD, "", ""),
    (rf"[A-Za-z0-9\xad{_characters(_LETTERS + _DIGITS)}]+", "", ""),
    (rf"(?:{_D}{{1,4}}[- \xa0])?{_D}{{1,4}}(?:\\?/|⁄){_D}{{1,4}}", "", ""),
    (rf"[-+]?{_NUMBER}", "", ""),
    (rf"{_LAST_ABBREVIATION}\.", r"[\s\S]{2}", ""),
    (_NAMES, "", ""),
    (_HYPHENED, "", ""),
    (rf"(?:{_WORD}|{_NAMES}|{_HYPHENED}|{_COMPANY})\.", "[,;:、]", "company"),
    (rf"{_SLASHED}(?:\\?/{_SLASHED}){{1,2}}", "", ""),
    (_COMPANY, "", "company"),
    # abbreviations
    (rf"{_INITIALS}\.|(?i:ph|ed)\.[dD]\.", "", ""),
    ("[A-Za-z]", rf"\.[ \xa0]+(?:{_capital(_STARTS)}|{_MARKUP})\s", ""),
    (rf"(?:{_ANY_ABBREVIATION}|{_LAST_ABBREVIATION})\.", "", ""),
    (rf"(?i:{_either(_ABBREVIATIONS_OF_NUMBERS)})\.", rf"[ \xa0]?{_D}|:", ""),
    (rf"(?:[A-Za-z0-9]+\.)+(?i:{_either(_FILE)})", r"[\s.,!?]", ""),
    # figures
    (r"[A-Z]+\$", "", ""),
    (_PHONE, "", "face"),
    (r"(?:\+{0,2}[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5}", "", ""),
    ("['\x92’][0-9]{2}", "[ \xa0\n]", ""),
    ("['\x92’][0-9]{2}[sS]", "", ""),
    # faces
    (r"[<>]?[:;=](?:'|[-o*])?[)(\]\[|\\@dDpPO{]", "(?![A-Za-z0-9])", "face"),
    (r"[xX^\-=~<>']_[xX^\-=~<>']|\([\^\-=~<>']_[\^\-=~<>']\)", "", "face"),
    # signs and punctuation
    (r"[cC]\+\+|[cC]#|[fF]#", "", ""),
    (r"\.{3,5}|(?:\. ){2,4}\.|…", "", "..."),
    (r"[?!]+", "", ""),
    ("-{5,}|-", "", ""),
    ("-{2,4}|[–—―\x96\x97]|&(?:mdash|ndash|MD);", "", "--"),
    (r"\*+|#+|_+|<<|>>|@{2,}|\\\*|-(?i:[lr][rcs]b)-", "", ""),
    ("&#[0-9]+;", "", ""),
    ("&(?i:amp|lt|gt|quot|apos);", "", "sign"),
    (f"''|``|{_QUOTES}", "", "sign"),
    ("'", r"[A-Za-z]\S", ""),
    (rf"{_APOSTROPHE}{_ENDING}", "", "ending"),
    (rf"[!-/:-@\[-`{{-~¢£¤€₠¼-¾⅓⅔\x80{_characters(_SIGNS)}]", "", "sign"),
]
_COMPILED = [(re.compile(f"({token})(?:{behind})"), spelling) for token, behind, spelling in _RULES]
_GAP = re.compile("(?:[ \t\u2000-\u200a\u3000]|&nbsp;)+")
_PLAIN = re.compile("([a-z]+) ")  # what most of a caption is: only halves and words can match here

_BRACKETS = {"(": "-lrb-", ")": "-rrb-"}
_SPELT = _BRACKETS | {"[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_SPELT |= {"£": "#", "¢": "cents", "€": "$", "¤": "$", "₠": "$", "\x80": "$"}
_SPELT |= {"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}
_SPELT |= {
    sign: plain for signs, plain in ((_GRAVE, "`"), (_ACUTE, "'"), (_OPEN, "``"), (_CLOSE, "''")) for sign in signs
}
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&apos;": "'", "&quot;": "''"}
_DROPPED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";", '"'])


def ptb_tokenize(caption: str) -> list[str]:
    """Lower-case Penn Treebank tokens of one caption, punctuation dropped: "The dog's ball." -> the dog 's ball."""
    return list(_tokenize(caption))


@lru_cache(_KEPT)
def _tokenize(caption: str) -> tuple[str, ...]:
    text = re.sub("[\n\r\x0b\x0c\x85\u2028\u2029]", " ", caption) + "\n\n"  # a line and what begins the next one
    tokens, place = [], 0
    while place < len(text):
        if gap := _GAP.match(text, place):
            place = gap.end()
        elif (plain := _PLAIN.match(text, place)) and plain[1] not in _JOINED:
            tokens.append(plain[1])
            place = plain.end()
        else:
            token, spelling = _longest(text, place)
            if token:
                tokens.append(_spell(token, spelling))
            place += len(token) or 1
    return tuple(token for token in tokens if token and token not in _DROPPED)


def _longest(text: str, place: int) -> tuple[str, str]:
    """The token that begins there, and how to spell it; "" where none does."""
    token, spelling, end = "", "", place
    for rule, how in _COMPILED:
        found = rule.match(text, place)
        if found and found.end() > end:
            token, spelling, end = found[1], how, found.end()
    return token, spelling


def _spell(token: str, spelling: str) -> str:
    if spelling in ("...", "--"):
        return spelling
    if spelling == "face":
        token = "".join(_BRACKETS.get(sign, sign) for sign in token)
    elif spelling == "sign":
        token = "".join(_SPELT.get(sign, sign) for sign in _ENTITIES.get(token.lower(), token))
    elif spelling == "company":
        token = token.replace("&amp;", "&")
    elif spelling:
        token = token.replace("&apos;", "'")
        if spelling == "ending":
            token = "".join(_SPELT.get(sign, sign) for sign in token)
    return token.lower().replace(" ", "\xa0").replace("\xad", "")
