"""mmlm beside its peers, on the same plain decoder, media and learnt tokens: `python benchmarks/peers.py`.

Contenders (`benchmarks/contenders.py`) are built in one process and take turns, each turn in another order. Of a turn
the ratio to "text" counts: the plain decoder's own forward and gradient to its inputs, or its `generate`. Other work
on the machine slows all of a turn. A line of JSON for each contender and kind of work, with seconds on the wall and of
the processor, and a table at the end: medians of the turns, and their quartiles.

    train      R rows of 64 tokens, a quarter learnt: forward, backward, clipping, AdamW
    generate   16 tokens of prompt, 64 new ones, greedy
    memory     peak of a training step over the built model, MiB: in a process of its own for each

Decoders of CPUs are fp32 or bf16 as the kind of work says; on a GPU, if there is one, choose --bf16. Who is not
installed is named; benchmarks/README.md says how to install all.
"""

import argparse
import ctypes
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # OpenMP's waiting threads spin for some 50 us, not for ever
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch
from contenders import CONTENDERS, Contender, Work
from generation import machine, seconds, spread
from page import table, write

FP32, BF16 = torch.float32, torch.bfloat16
WORKS = {
    "train": Work("llama", FP32, rows=4, tokens=64, tiles=1, new=0),
    "train bf16": Work("llama", BF16, rows=4, tokens=64, tiles=1, new=0),
    "train 4 tiles": Work("llama", FP32, rows=4, tokens=64, tiles=4, new=0),
    "generate 1": Work("llama", FP32, rows=1, tokens=16, tiles=1, new=64),
    "generate 8": Work("llama", FP32, rows=8, tokens=16, tiles=1, new=64),
    "generate 8, 4 tiles": Work("llama", FP32, rows=8, tokens=16, tiles=4, new=64),
    "mixtral train": Work("mixtral", FP32, rows=4, tokens=64, tiles=1, new=0),
    "mixtral generate 1": Work("mixtral", FP32, rows=1, tokens=16, tiles=1, new=64),
    "mixtral generate 8": Work("mixtral", FP32, rows=8, tokens=16, tiles=1, new=64),
}
Time = tuple[float, float]  # seconds: wall, processor


def timed(run: Callable[[], Any]) -> Time:
    processor = time.process_time()
    return seconds(run), time.process_time() - processor


def run_of(name: str, contender: Contender) -> Callable[[], Any] | None:
    """What of a contender is timed."""
    return contender.train if "train" in name else contender.speak


def missing(name: str, names: list[str]) -> dict[str, str]:
    """Who cannot take part in a kind of work, and why."""
    return {one: why for one in names if (why := CONTENDERS[one].lacks(WORKS[name]))}


def built(name: str, names: list[str]) -> dict[str, Contender]:
    """The contenders that can take part in a kind of work."""
    return {one: CONTENDERS[one].make(WORKS[name]) for one in names if one not in missing(name, names)}


def measure(name: str, names: list[str], rounds: int) -> dict[str, dict[str, Any]]:
    """By contender: `wall` and `processor` seconds, and their ratios to those of "text", of each turn; `trained`,
    parameters that learn."""
    contenders, order = built(name, names), random.Random(0)
    runs = {one: run for one, its in contenders.items() if (run := run_of(name, its))}
    for run in runs.values():
        run()  # warm
    turns = [{one: timed(runs[one]) for one in order.sample(list(runs), len(runs))} for _ in range(rounds)]
    return {
        one: {
            "wall": spread([turn[one][0] for turn in turns]),
            "processor": spread([turn[one][1] for turn in turns]),
            "ratio": spread([turn[one][0] / turn["text"][0] for turn in turns]),
            "processor_ratio": spread([turn[one][1] / turn["text"][1] for turn in turns]),
            "trained": contenders[one].trained,
        }
        for one in runs
    }


def resident() -> float:
    """MiB of this process's memory now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def rise(run: Callable[[], Any]) -> float:
    """MiB that a few runs take at their peak over what is taken now, of the GPU if there is one."""
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        for _ in range(3):
            run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # what building has freed would be there to take
    before = resident()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak counts from here
    for _ in range(3):
        run()
    with open("/proc/self/status") as file:
        high = next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024
    return high - before


def peak(name: str, contender: str) -> float:
    """MiB that a few training steps take at their peak over what the built model takes."""
    run = run_of(name, CONTENDERS[contender].make(WORKS[name]))
    assert run is not None
    return rise(run)


def memory(name: str, contender: str, how: list[str]) -> float:
    """The same, in a process of its own."""
    command = [sys.executable, __file__, "--peak", contender, "--work", name, *how]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--work", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", action="store_true", help="tell the peaks of training steps, too")
    parser.add_argument("--bf16", action="store_true", help="decoders of all kinds of work in bf16")
    parser.add_argument("--write", action="store_true", help="the tables into docs/performance.md")
    parser.add_argument("--peak", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.bf16:
        WORKS.update({name: replace(work, dtype=BF16) for name, work in WORKS.items()})
    if args.peak:
        print(peak(args.work[0], args.peak))
        return
    names = ["text", *(one for one in args.contenders if one != "text")]  # the unit of the others
    print(machine(), flush=True)
    wall, processor = [["", *names]], [["", *names]]
    absent: dict[str, str] = {}
    for name in args.work:
        absent |= missing(name, names)
        found = measure(name, names, args.rounds)
        for one, its in found.items():
            print(json.dumps({"work": name, "contender": one} | its), flush=True)
        for rows, which, ratio in ((wall, "wall", "ratio"), (processor, "processor", "processor_ratio")):
            ratios = [cell(found.get(one, {}).get(ratio)) for one in names[1:]]
            rows.append([name, f"{found['text'][which][0]:.3f} s", *ratios])
        if "train" in name:
            trained = [f"{its['trained'] / 1e6:.1f}" if (its := found.get(one)) else "-" for one in names]
            wall.append([f"{name}, millions trained", *trained])
        if args.memory and "train" in name:
            peaks = {one: round(memory(name, one, ["--bf16"] * args.bf16)) for one in found}
            print(json.dumps({"work": name, "mib": peaks}), flush=True)
            wall.append([f"{name}, MiB", *(str(peaks.get(one, "-")) for one in names)])
    why = [f"{one}: {its}" for one, its in absent.items()]
    print(f"\nmedians (and quartiles) of {args.rounds} turns, over the plain decoder")
    widths = [max(map(len, column)) for column in zip(*wall, strict=True)]
    for row in wall:
        print("  ".join(map(str.ljust, row, widths)).rstrip())
    print("\n".join(why))
    if args.write:
        said = f"Medians (and quartiles) of {args.rounds} turns over the plain decoder, of time:"
        texts = [said, table(wall), "Of processor time:", table(processor), *why]
        write("gpu peers" if torch.cuda.is_available() else "peers", "\n\n".join(texts))


def cell(values: list[float] | None) -> str:
    return f"{values[0]:.2f} ({values[1]:.2f}-{values[2]:.2f})" if values else "-"


if __name__ == "__main__":
    main()
