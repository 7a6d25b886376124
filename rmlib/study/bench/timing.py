"""Medians of calls that take turns."""

import random
import statistics
import time

import torch


def interleaved(
    candidates: dict, rounds: int, device: torch.device, warmup: int = 5
) -> dict[str, float]:
    """Median seconds per call of every candidate (name -> function without arguments).

    Every round calls all of them in another order: what ran before decides what is in the caches.
    """
    times = {name: [] for name in candidates}
    order = list(candidates)
    shuffle = random.Random(0).shuffle
    for turn in range(warmup + rounds):
        shuffle(order)
        for name in order:
            _wait(device)
            begun = time.perf_counter()
            candidates[name]()
            _wait(device)
            if turn >= warmup:
                times[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in times.items()}


def _wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize()
