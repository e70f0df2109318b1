"""Named substreams of randomness: the same words give the same generator on every machine and in every process."""

import hashlib

import torch


def seed_of(*words: object) -> int:
    """A 63-bit seed from a stable hash of the words (Python's own `hash` differs from process to process)."""
    text = "\x1f".join(map(str, words)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def generator(*words: object) -> torch.Generator:
    """A CPU generator for one named purpose, e.g. `generator(task.seed, "minibatches", 3)`.

    Always on the CPU: draws are moved to the device, so that a CPU and a GPU see the same numbers.
    """
    return torch.Generator().manual_seed(seed_of(*words))
