"""What a running batch tells: a line for each event, and a status line in a terminal."""

import contextlib
import os
import shutil
import sys
import threading
import time
from pathlib import Path

from rmlib.study.batch.plan import duration


class Progress:
    """What has become of the units of work: counts, one line for each event, and how long the rest
    will take. Nobody needs to listen: a terminal or pipe that is gone costs these lines and nothing
    else.
    """

    def __init__(self, counts: dict, expected: dict, places: int, log, live: bool):
        self.counts, self.expected, self.places, self.log = (
            counts,
            expected,
            places,
            log,
        )  # expected: unit -> seconds or None, of what has not ended
        self.running, self.took, self.lock = (
            {},
            [],
            threading.Lock(),
        )  # unit -> (label, begun, log); (seconds, expected or None) of what has ended
        self.closed, self.live = threading.Event(), live
        if live:
            threading.Thread(target=self._watch, daemon=True).start()

    def begin(self, unit, label, file):
        with self.lock:
            self.running[unit] = label, time.monotonic(), file

    def end(self, unit, outcomes):
        """Count and tell what became of a unit: [(label, outcome, one line of text)]."""
        with self.lock:
            _, begun, _ = self.running.pop(unit, (None, None, None))
            expected = self.expected.pop(unit, None)
            if begun is not None:
                self.took.append((time.monotonic() - begun, expected))
            for _, outcome, _ in outcomes:
                if (
                    outcome in self.counts
                ):  # what is left is counted at the end, with what was never begun
                    self.counts[outcome] += 1
        for label, outcome, text in outcomes:
            self.tell(f"{outcome:<7} {label}: {text}")

    def tell(self, text):
        """One line, after where the batch stands."""
        self._show("")
        with contextlib.suppress(OSError, ValueError):
            self.log(f"[{self.state()}] {text}")

    def state(self) -> str:
        """'12 done, 2 running, 1 failed, 30 to go, about 14 min left'."""
        with self.lock:
            now, usual = time.monotonic(), _mean([seconds for seconds, _ in self.took])
            beside = (
                _mean(
                    [seconds - expected for seconds, expected in self.took if expected is not None]
                )
                or 0.0
            )  # a notebook does more than train
            begun = {unit: now - start for unit, (_, start, _) in self.running.items()}
            known = [
                usual if seconds is None else max(seconds + beside, 0.0)
                for seconds in self.expected.values()
            ]
            rest = [
                max(seconds - begun.get(unit, 0), 0)
                for unit, seconds in zip(self.expected, known)
                if seconds is not None
            ]
            waiting = len(self.expected.keys() - begun.keys())
            parts = [f"{self.counts['done']} done", f"{len(begun)} running"] + [
                f"{self.counts[name]} {name}" for name in ("failed", "stopped") if self.counts[name]
            ]
            parts += [f"{waiting} to go"] if waiting else []
        left = max(sum(rest) / max(min(self.places, len(rest)), 1), max(rest, default=0))
        return ", ".join(
            parts + ([f"about {duration(left)} left"] if left and None not in known else [])
        )

    def _watch(self):
        while not self.closed.wait(1):
            with self.lock:
                running = list(self.running.values())
            said = [
                f"{label}: {_last_line_of(file) or 'starting'}"
                f" ({duration(time.monotonic() - begun)})"
                for label, begun, file in running
            ]
            self._show(
                f"{self.state()} | {' | '.join(said)}"[: shutil.get_terminal_size().columns - 1]
            )

    def _show(self, text):
        """Make the status line anew."""
        with contextlib.suppress(OSError, ValueError):
            if self.live:
                print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    def close(self):
        self.closed.set()
        self._show("")


def _last_line_of(path: Path):
    """The last line of a log that is being written."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - 2000))
            return last_line(file.read().decode(errors="replace"))
    except OSError:
        return None


def _mean(values):
    return sum(values) / len(values) if values else None


def last_line(output: str):
    """The last line of a text that says something, cut at 200 characters; None if there is none."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:200] if lines else None
