"""Kills real runs at random moments and resumes them until they end.

    killing.py WORDS FOLDER KILLS PROCESSES        the command's words and the run's folder, as JSON

Prints, as JSON, how many kills there were, and how many of them left half a checkpoint. What takes long is imported
once: each run is forked from here, before any thread was started, as a process of its own, or several.
"""

import json
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path

import finetune.run  # noqa: F401
from mmlm.cli import main


def start(words, processes):
    """Forks the processes of a run, and returns their ids."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(processes):
        if not (child := os.fork()):
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
            if processes > 1:
                ours = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
                ours |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                os.environ |= {name: str(value) for name, value in ours.items()}
            status = 1
            try:
                status = main(["finetune", *words])
            finally:
                os._exit(status)
        started.append(child)
    return started


def run(words, processes, kill=lambda: False):
    """A run until it ends, or until `kill` says that it is to be killed; True if it ended, and well."""
    left = start(words, processes)
    while left:
        for child in list(left):
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                left.remove(child)
                assert status == 0, f"a process of the run ended with {status}"
        if left and kill():
            for child in left:
                os.kill(child, signal.SIGKILL)
            for child in left:
                os.waitpid(child, 0)
            return False
        time.sleep(0.0002)
    return True


def moment(checkpoints, steps, delay):
    """When to kill: so many seconds after the run has taken so many steps, each with its checkpoint."""
    seen, since = [names(checkpoints, "step-*")], []

    def kill():
        if (now := names(checkpoints, "step-*")) != seen[-1]:
            seen.append(now)
        if not since and len(seen) > steps:
            since.append(time.perf_counter())
        return bool(since) and time.perf_counter() - since[0] > delay

    return kill


def amid_a_write(checkpoints, number):
    """When to kill: while the so many-th checkpoint is written."""
    seen = set()

    def kill():
        drafts = names(checkpoints, ".step-*.part")
        seen.update(drafts)
        return bool(drafts) and len(seen) >= number

    return kill


def names(folder, pattern):
    return {path.name for path in folder.glob(pattern)} if folder.exists() else set()


def killings(words, folder, kills, processes):
    """How often the run was killed before it ended, and how many kills left half a checkpoint."""
    drawn, halves = random.Random(0), 0
    for number in range(kills):
        steps = drawn.randint(1, 8)
        kind = amid_a_write(folder, steps) if number % 2 else moment(folder, steps, drawn.uniform(0, 0.04))
        if run(words, processes, kind):
            return number, halves
        halves += bool(names(folder, ".step-*.part"))
    assert run(words, processes)
    return kills, halves


if __name__ == "__main__":
    words, folder, kills, processes = map(json.loads, sys.argv[1:])
    print(json.dumps(killings(words, Path(folder, "checkpoints"), kills, processes)))
