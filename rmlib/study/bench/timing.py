"""Medians of calls that take turns."""

import random
import statistics
import time

import torch


def interleaved(calls: dict, rounds: int, device: torch.device, warmup: int = 5) -> dict:
    """Median seconds of every call: name -> function without arguments.

    Every round has another order: what ran before decides what is in the caches.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    shuffle = random.Random(0).shuffle
    for turn in range(warmup + rounds):
        shuffle(order)
        for name in order:
            wait()
            begun = time.perf_counter()
            calls[name]()
            wait()
            if turn >= warmup:
                times[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in times.items()}
