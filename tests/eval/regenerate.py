"""Makes the golden files beside it anew, with the official tools; nothing else runs them.

    python tests/eval/regenerate.py captions PATH/TO/cider_scorer.py
    python tests/eval/regenerate.py vqa PATH/TO/vqaEval.py

The first needs Java, `pip install pycocoevalcap`, and pyciderevalcap/cider of vrama91's cider on GitHub for plain
CIDEr; the second PythonEvaluationTools of GT-Vision-Lab's VQA there. Both files are written for Python 2, and what it
says otherwise is rewritten before they are run here.
"""

import gzip
import json
import random
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).parent
SAMPLES = 1800

WHO = "a man|a woman|two dogs|a cat|the children|an old couple|a boy's kite|someone|3 people|A girl|The player's dog"
DOES = (
    "is riding|sits on|are playing with|holds|isn't near|can't reach|stands by|doesn't like|walks past|wouldn't leave"
)
WHAT = "a red bicycle|the beach|a wooden table|a slice of pizza|the street|a T-shirt|an open window|the grass|a train"
ODD = """
    don't Don't it's IT'S dogs' they've we'd you'll could've shouldn't've 'tis y'all o'clock ma'am rock'n'roll ol' d'you
    cannot Cannot gonna GONNA wanna gotta lemme gimme dunno ain't O'Brien L'Oréal xi'an 'em 'til 'cause '90s '80 n't
    Mr. Mrs. Dr. St. st. Ave. Jr. a.m. p.m. U.S. U.S.A. e.g. i.e. etc. vs. no. No. Inc. Ph.D. Jan. Fri. fig. approx. B.
    and/or 1/2 24/7 km/h w/ w/o a/c black/white dog/cat/bird either/ T-shirt red-and-white x-ray 12-year-old semi- -hand
    co-op mid-'80s twenty-one re-use http://www.example.org/a?b=c https://example.com www.foo.org foo.com/bar file.txt
    photo.jpg me@example.org @user #sunset #1 :) :-) ;) :( :D <3 =P ^_^ >_< xD :/ $5 US$5 $1,000.50 £20 €3.50 ¥100
    50¢ 5% 100% ½ ¼ 2½ ⅔ 1,234.5 3.14 .5 -5 +3 5+5 10:30 10:30am 5pm 1st 22nd 1980s 1980's 4x4 6'2" 5°
    2014-10-12 555-1234
    (415)555-1234 ... … .. .... -- --- — – wait... ?! !! ??? !!! &amp; &lt;b&gt; &quot;hi&quot; &apos; AT&T R&D q&a
    AT&amp;T <b>bold</b> <unk> </s> "quoted" 'single' “curly” ‘x’ ''two'' ``tick`` «fr» dog’s don’t „low“ (red) [blue]
    {green} ((x)) café naïve über Ελλάδα Москва 犬と猫 日本語。 한국어
    שלום مرحبا हिन्दी สวัสดี cafe\u0301 😀 dog😀cat ☕ ♥♥ ©2014 ™
    ± × a* ** a_b __ a\\b ~5 a|b a=b c++ C# a.b end.Start hello,world stop!now x;y 5:a ` ' " , . ; : - ! ? * / & @ # $
    WORD McDonald's STOP Wi-Fi iPhone 7-Eleven R2-D2 H2O m² b&w B&W r.i.p. X.Y. word., 5.: ª º № ★ → • §5 ¿qué? ¡hola!
"""
MARKS = " |  |, |. | - |; |: |... |! |? | (|) | '|' | \"|\" |/|-|_|—|&|\u00a0|'s |, and |\t"


def odd_caption(pick: random.Random) -> str:
    odd, kind = ODD.split(), pick.random()
    if kind < 0.02:
        return pick.choice(["", " ", "...", "?", "\n", "''", "\u3000", "😀"])
    if kind < 0.06:
        return pick.choice(odd + WHAT.split("|"))
    words = " ".join(pick.choice(part.split("|")) for part in (WHO, DOES, WHAT)).split(" ")
    if kind < 0.3:
        return " ".join(words) + pick.choice(["", ".", " .", "!", "\n"])
    for _ in range(pick.randint(1, 4)):
        words.insert(pick.randint(0, len(words)), pick.choice(odd))
    if kind < 0.8:
        return " ".join(words)
    return "".join(word + pick.choice([" ", " ", *MARKS.split("|")]) for word in words)


def run_python2(path: str) -> dict[str, Any]:
    source = re.sub(r'print ("[^"\n]*"|\(.*\))', r"print(\1)", Path(path).read_text(encoding="utf-8"))
    space: dict[str, Any] = {}
    for old, new in (("iteritems", "items"), ("xrange", "range"), ("cPickle", "pickle")):
        source = source.replace(old, new)
    exec(compile(source, path, "exec"), space)
    return space


def captions(path: str) -> dict[str, Any]:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    pick = random.Random(0)
    samples = []
    for _ in range(SAMPLES):
        refs = [odd_caption(pick) for _ in range(pick.randint(1, 5))]
        words = pick.choice(refs).split(" ")
        hyp = odd_caption(pick) if pick.random() < 0.4 else " ".join(w for w in words if pick.random() < 0.8)
        samples.append([hyp, *refs])
    texts = [text for sample in samples for text in sample]
    # a caption between each two: the tokenizer looks past a line's end
    lines = {place: [{"caption": text}, {"caption": "z"}] for place, text in enumerate(texts)}
    tokens = iter(PTBTokenizer().tokenize(lines).values())
    split = [[next(tokens)[0] for _ in sample] for sample in samples]
    refs = {place: sample[1:] for place, sample in enumerate(split)}
    hyps = {place: sample[:1] for place, sample in enumerate(split)}
    cider, cider_each = Cider().compute_score(refs, hyps)
    bleu, bleu_each = Bleu(4).compute_score(refs, hyps, verbose=0)
    rouge, rouge_each = Rouge().compute_score(refs, hyps)
    scorer = run_python2(path)["CiderScorer"]()
    for place in refs:
        scorer += (hyps[place][0], refs[place])
    plain, plain_each = scorer.compute_score("corpus")
    names = ["cider", "cider_plain", "bleu1", "bleu2", "bleu3", "bleu4", "rouge_l"]
    each = [cider_each, plain_each, *bleu_each, rouge_each]
    return {
        "captions": samples,
        "tokens": split,
        "scores": dict(zip(names, map(float, [cider, plain, *bleu, rouge]), strict=True)),
        "each": {name: [float(f"{score:.9g}") for score in scores] for name, scores in zip(names, each, strict=True)},
    }


def odd_answer(pick: random.Random) -> str:
    words = """
        yes no two 2 ten 10 none zero a an the red blue dont don't Im I'm its it's hes isnt isn't couldntve cant won't
        wont somebody'd whats o'clock oclock yall 1,000 1000 1.5 .5 5. 10,5 red/blue t-shirt u.s.a. U.S. p.m. yes. no!
        what? (red) [x] {y} a+b a=b a_b a-b x@y `q` "quote" c:d e;f 50% $5 #1 &amp; café CAFÉ 犬 ½ ... , - / RED Blue tv
        T.V. twenty-one 3:30 3:30pm 5'2" dog's dogs' YES NO True ٣ 5.٣
    """
    if pick.random() < 0.02:
        return pick.choice(["", " ", "\n", "a", "...", "\t"])
    text = pick.choice([" ", " ", ",", ", ", "/", "-", "\n", "\t", "  "]).join(
        pick.choice(words.split()) for _ in range(pick.choice([1, 1, 1, 2, 3]))
    )
    return pick.choice([text, text, text, text.upper(), f" {text} ", f"{text}.", f"the {text}"])


def vqa(path: str) -> dict[str, Any]:
    space = run_python2(path)
    pick = random.Random(0)
    samples = []
    for _ in range(6000):
        few = [odd_answer(pick) for _ in range(pick.randint(1, 4))]
        refs = [pick.choice(few) for _ in range(10)]
        answer = pick.choice(refs) if pick.random() < 0.7 else odd_answer(pick)
        if pick.random() < 0.3:
            answer = pick.choice(
                [answer.upper(), answer.strip("."), answer.replace("'", ""), f"a {answer}", f"{answer}!"]
            )
        samples.append([answer, *refs])
    kinds = {"question_type": "", "answer_type": ""}
    truth = {
        place: {"answers": [{"answer": text, "answer_id": n} for n, text in enumerate(refs)], **kinds}
        for place, (_, *refs) in enumerate(samples)
    }
    said = {place: {"answer": sample[0]} for place, sample in enumerate(samples)}
    run = space["VQAEval"](SimpleNamespace(qa=truth, getQuesIds=lambda: list(truth)), SimpleNamespace(qa=said), n=9)
    run.evaluate()
    return {"answers": samples, "each": [run.evalQA[place] / 100 for place in truth]}


if __name__ == "__main__":
    made = {"captions": captions, "vqa": vqa}[sys.argv[1]](sys.argv[2])
    text = json.dumps(made, ensure_ascii=False, separators=(",", ":"))
    (HERE / f"golden_{sys.argv[1]}.json.gz").write_bytes(gzip.compress(text.encode(), 9, mtime=0))
