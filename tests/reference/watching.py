"""How much memory of its own a script took: `WATCH` defines `watched(call) -> (what it returned, bytes)` within it."""

WATCH = """
import threading, time


def resident():  # pages of the process itself, without those of mapped files
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1]) * 1024


def watched(call):
    seen, on, before = [], [True], resident()

    def watch():
        while on:
            seen.append(resident())
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    found = call()
    on.clear()
    thread.join()
    return found, max(seen) - before
"""
