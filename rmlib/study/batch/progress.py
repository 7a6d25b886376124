"""What a running batch tells: a line for each event."""

import contextlib
import threading
import time

from rmlib.study.batch.costs import duration


class Progress:
    """What has become of the units of work, and how long the rest will take.

    Nobody needs to listen: a terminal or pipe that is gone costs these lines and nothing else.
    """

    def __init__(self, counts: dict, expected: dict, places: int, log):
        """``expected``: unit -> seconds, or None where nothing like it was run before."""
        self.counts = counts
        self.expected = expected
        self.places = places
        self.log = log
        self.running = {}  # unit -> when it began
        self.took = []  # seconds of what has ended
        self.lock = threading.Lock()

    def begin(self, unit):
        with self.lock:
            self.running[unit] = time.monotonic()

    def end(self, unit, label, outcome, text):
        """Count and tell what became of a unit."""
        with self.lock:
            begun = self.running.pop(unit, None)
            self.expected.pop(unit, None)
            if begun is not None:
                self.took.append(time.monotonic() - begun)
            # what is left is counted at the end, with what never began
            if outcome in self.counts:
                self.counts[outcome] += 1
        self.tell(f"{outcome:<7} {label}: {text}")

    def tell(self, text):
        """One line, after where the batch stands."""
        with contextlib.suppress(OSError, ValueError):
            self.log(f"[{self.state()}] {text}")

    def state(self) -> str:
        """'12 done, 2 running, 1 failed, 30 to go, about 14 min left'."""
        with self.lock:
            parts = [f"{self.counts['done']} done", f"{len(self.running)} running"]
            for name in ("failed", "stopped"):
                if self.counts[name]:
                    parts.append(f"{self.counts[name]} {name}")
            if waiting := len(self.expected.keys() - self.running.keys()):
                parts.append(f"{waiting} to go")
            usual = sum(self.took) / len(self.took) if self.took else None
            rest = [usual if each is None else each for each in self.expected.values()]
        if rest and None not in rest:
            parts.append(f"about {duration(sum(rest) / min(self.places, len(rest)))} left")
        return ", ".join(parts)


def last_line(output: str):
    """The last line of a text that says something, cut at 200 characters; None if there is none."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:200] if lines else None
