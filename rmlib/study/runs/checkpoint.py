"""Stopping a run and going on: its checkpoint, and the signals that ask it to stop."""

import contextlib
import io
import json
import os
import signal
import sys
import time
import zipfile

import torch

from rmlib import UserError
from rmlib.study.guarded import handling
from rmlib.study.runs import records
from rmlib.study.runs.records import CHECKPOINT, PREVIOUS, check_images

SHARE = 0.01  # of a run's time that its checkpoints may take


class Checkpoints:
    """The checkpoint of a :class:`rmlib.study.runs.run.StoredRun`, and the one before it."""

    def __init__(self, run):
        self.run = run
        self.path, self.previous = run.folder / CHECKPOINT, run.folder / PREVIOUS
        self.saved = time.perf_counter()  # when the last one was written
        self.cost = 0.0  # seconds that it took

    def are_cheap(self) -> bool:
        """Whether one that costs what the last did takes less than SHARE of the time since."""
        return self.cost <= SHARE * (time.perf_counter() - self.saved)

    def save(self) -> None:
        """Write the checkpoint, atomically; the one before is kept."""
        self.run.still_held()
        begun, core = time.perf_counter(), self.run.core
        place = {"epoch": core.epoch, "step": core.step, "train_seconds": core.seconds}
        state = {"model": core.model.state_dict(), "optimizer": core.optimizer.state_dict()}
        state |= {"sums": core.sums, "images": self.run.train_set.checksum}
        state["progress"] = json.dumps(self.run.progress | place)
        # torch reports a full disk as an obscure RuntimeError; a plain write says what it is
        buffer = io.BytesIO()
        torch.save(state, buffer)
        records.atomic_write(self.path, buffer.getbuffer(), before=PREVIOUS)
        self.saved = time.perf_counter()
        self.cost = self.saved - begun
        self.run.progress["checkpoint_seconds"] += self.cost

    def restore(self, log) -> None:
        """Go on from the last checkpoint, or from the one before if that is damaged."""
        wrong: list[str] = []
        for path in filter(os.path.exists, (self.path, self.previous)):
            try:
                images = self._load(path)
            except Exception as error:  # torch raises many kinds for a broken file
                reason = (str(error) or type(error).__name__).splitlines()[0][:100]
                wrong.append(f"the checkpoint {path} is damaged ({reason})")
                continue
            check_images(self.run.params, self.run.train_set.checksum, images)
            if wrong:
                log(f"{wrong[0]}: the one before is used")
                # the damaged one must not take its place when the next is written
                os.replace(path, self.path)
            self.run.progress["restarts"] += 1
            return
        if wrong:
            them = "it" if len(wrong) == 1 else "them"
            raise UserError(f"{' and '.join(wrong)}: delete {them} to start this run again")

    def _load(self, path):
        """Take over a checkpoint; returns the checksum of its images."""
        core = self.run.core
        # torch compares no checksum: a flipped bit would train on
        with zipfile.ZipFile(path) as archive:
            if part := archive.testzip():
                raise ValueError(f"the checksum of {part} differs")
        state = torch.load(path, map_location=core.loader.device, weights_only=True)
        progress = json.loads(state["progress"])
        core.model.load_state_dict(state["model"])
        # the groups' settings follow from the parameters and the device
        settings = core.optimizer.state_dict()["param_groups"]
        momentum = {"state": state["optimizer"]["state"], "param_groups": settings}
        core.optimizer.load_state_dict(momentum)
        core.sums.copy_(state["sums"])
        core.epoch, core.step = progress.pop("epoch"), progress.pop("step")
        core.seconds = progress.pop("train_seconds")
        self.run.progress |= progress
        return state["images"]

    def delete(self) -> None:
        """Take both away, when the record is there."""
        self.path.unlink(missing_ok=True)
        self.previous.unlink(missing_ok=True)


def epochs_done(folder) -> int:
    """How many epochs of a run its last checkpoint has behind it; 0 without one."""
    try:
        state = torch.load(folder / CHECKPOINT, map_location="cpu", weights_only=True, mmap=True)
        return json.loads(state["progress"])["epoch"]
    except Exception:  # torch raises many kinds for a broken file
        return 0


def interactive() -> bool:
    """Whether somebody watches: a terminal, or a notebook in Jupyter, not papermill or nbval."""
    return sys.stdout.isatty() or "JPY_SESSION_NAME" in os.environ


@contextlib.contextmanager
def noticing_signals():
    """A list that SIGTERM and Ctrl-C (or "interrupt kernel") enter, so that a step ends first.

    Where somebody watches, a second Ctrl-C interrupts at once, without a checkpoint. Elsewhere
    signals come in numbers, as from a machine that shuts down.
    """
    received: list[str] = []

    def notice(number, _):
        if received and number == signal.SIGINT and interactive():
            raise KeyboardInterrupt
        received.append(signal.Signals(number).name)

    with handling((signal.SIGTERM, signal.SIGINT), notice):
        yield received
