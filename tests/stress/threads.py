"""Eight threads with encodes in flight, X made by numpy in each call: it must end, and every answer be right.

    python tests/stress/threads.py [rounds] [encodes a round]

Each round is a process of its own with a time limit of a minute, since what once hung was the process. By hand or by a nightly run.
"""

import subprocess
import sys
import threading
import time

import numpy as np

THREADS, LIMIT_SECONDS = 8, 60
N, D, K = 4000, 32, 64
IN_FLIGHT = 4  # calls that a thread starts before it asks for the first's answer


def one_round(n_encodes: int) -> None:
    """Encodes from all threads at once; a gap above the tolerance or an exception in any thread is an error."""
    import jaxdict as jd  # after the fork-free start of this process

    draw = np.random.default_rng(0)
    atoms = draw.normal(size=(K, D)).astype(np.float32)
    dictionary = jd.Dictionary(atoms / np.linalg.norm(atoms, axis=1, keepdims=True), np.zeros(D, np.float32))
    problem, wrong = jd.Problem(lam=0.5), []

    def work(seed):
        draw = np.random.default_rng(seed)
        waiting = []
        try:
            for _ in range(n_encodes // THREADS):
                waiting.append(jd.encode(problem, dictionary, draw.normal(size=(N, D)).astype(np.float32), tol=1e-4))
                if len(waiting) == IN_FLIGHT:
                    check(waiting.pop(0))
            for done in waiting:
                check(done)
        except Exception as error:  # told by the main thread
            wrong.append(f"thread {seed}: {error!r}")

    def check(done):
        if int(done.status) != 0 or not np.isfinite(np.asarray(done.codes)).all():
            wrong.append(done.message())

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[:3]


def main(rounds: int = 1, n_encodes: int = 200) -> int:
    for k in range(rounds):
        start = time.perf_counter()
        command = [sys.executable, __file__, "--round", str(n_encodes)]
        try:
            done = subprocess.run(command, timeout=LIMIT_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            print(f"round {k}: not done after {LIMIT_SECONDS} s")
            return 1
        print(f"round {k}: {time.perf_counter() - start:.1f} s, exit {done.returncode}", flush=True)
        if done.returncode:
            return 1
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--round"]:
        one_round(int(sys.argv[2]))
    else:
        sys.exit(main(*map(int, sys.argv[1:])))
