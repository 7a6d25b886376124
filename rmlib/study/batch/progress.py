"""What a running batch prints: a line for each event."""

import contextlib
import threading
import time

from rmlib.study.batch.costs import duration


class Progress:
    """What has become of the runs and notebooks, and how long the rest will take.

    ``expected``: run id -> seconds, or None where nothing like it was run before. A terminal or
    pipe that is gone costs the printed lines and nothing else.
    """

    def __init__(self, counts: dict, expected: dict, places: int, log):
        self.counts, self.expected = counts, expected
        self.places, self.log = places, log
        self.running: dict[str, float] = {}  # run id or name -> when it began
        self.took: list[float] = []  # seconds of what has ended
        self.lock = threading.RLock()

    def begin(self, name):
        with self.lock:
            self.running[name] = time.monotonic()

    def end(self, name, label, outcome, text):
        """Count and print what became of a run or notebook."""
        with self.lock:
            begun = self.running.pop(name, None)
            self.expected.pop(name, None)
            if begun is not None:
                self.took.append(time.monotonic() - begun)
            # what is left is counted at the end, with what never began
            if outcome in self.counts:
                self.counts[outcome] += 1
        self.say(f"{outcome:<7} {label}: {text}")

    def say(self, text):
        """One line, after where the batch stands."""
        # two that end at once would print into one line
        with contextlib.suppress(OSError, ValueError), self.lock:
            self.log(f"[{self.state()}] {text}")

    def state(self) -> str:
        """'12 done, 2 running, 1 failed, 30 to go, about 14 min left'."""
        with self.lock:
            parts = [f"{self.counts['done']} done", f"{len(self.running)} running"]
            parts += [f"{self.counts[n]} {n}" for n in ("failed", "stopped") if self.counts[n]]
            if waiting := len(self.expected.keys() - self.running.keys()):
                parts.append(f"{waiting} to go")
            usual = sum(self.took) / len(self.took) if self.took else None
            rest = [usual if each is None else each for each in self.expected.values()]
        known = [each for each in rest if each is not None]
        if rest and known == rest:
            parts.append(f"about {duration(sum(known) / min(self.places, len(rest)))} left")
        return ", ".join(parts)
