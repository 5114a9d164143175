"""Two processes of one team, each of which could not read another sample: what do they agree on?"""

import json
from types import SimpleNamespace

from accelerate import PartialState
from accelerate.utils import gather_object

from finetune.tensor_parallel import agreed
from mmlm.ranks import joined

state = PartialState(cpu=True)
with joined():
    read = {0: [["a", "b"], ["c", "e"]], 1: [["a"], ["c", "d", "e"]]}[state.process_index]
    unread = {0: ["d: gone"], 1: ["b: gone", "f: damaged"]}[state.process_index]
    parts, broken = agreed([[SimpleNamespace(id=name) for name in part] for part in read], unread, 2)
    found = gather_object([[[[entry.id for entry in part] for part in parts], broken]])
    if state.is_main_process:
        print(json.dumps(found))
