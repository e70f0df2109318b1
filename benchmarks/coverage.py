"""What coverage and growth of a language model take: seconds, and memory in multiples of the model.

    python benchmarks/coverage.py [--quick] [what ...]

GPT-2 of 124 million parameters, drawn at random, called on two examples of 16 tokens with all cores. A line is of two
processes of its own: one for the seconds, in which all is done for the first time, and one for the memory. That is the
largest of the process, the model included, beyond what Python and its packages take once a small model has been through
the same. `--quick` measures a small model: it shows that all runs, and no more. Needs the package transformers.
"""

import argparse
import resource
import time
import warnings
from importlib.util import find_spec

import psutil
import torch
from speed import alone

import mmstudy as mm
from mmstudy.core.processes import cores

SMALL = {"n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2}
SECONDS, MODELS = 20.0, 3.0  # what each shall take at most
GROWN = {  # what → operator, location, times as many units; or one more block
    "a perceptron's width": ("lemon", "transformer.h.0.mlp.c_fc", 2),
    "the stream": ("lemon", "transformer.wte", 2),
    "heads": ("lemon", "transformer.h.0.attn.c_attn[1]", 2),
    "depth": ("identity_block", "transformer.h.0", 0),
}
WORK = ("couplings", "coverage", *GROWN)


def model(small: bool):
    """GPT-2, and a batch for it."""
    from transformers import GPT2Config, GPT2LMHeadModel

    network = GPT2LMHeadModel(GPT2Config(**SMALL if small else {})).eval()
    draws = torch.Generator().manual_seed(0)
    return network, {"input_ids": torch.randint(network.config.vocab_size, (2, 16), generator=draws)}


def done(what: str, network, batch) -> tuple[float, float]:
    """What is measured, and the seconds that it took: by the clock, and of all cores."""
    times = GROWN[what][2] if what in GROWN else 0
    size = mm.couplings(network, batch)[GROWN[what][1]].size if times else 0
    began, spent = time.perf_counter(), time.process_time()
    if what == "couplings":
        mm.couplings(network, batch)
    elif what == "coverage":
        mm.coverage(network, batch)
    else:
        operator, place, _ = GROWN[what]
        _ = mm.expand(network, batch, operator, {place: times * size or 1})
    return time.perf_counter() - began, time.process_time() - spent


def measured(what: str, quick: bool, again: bool) -> tuple[float, float, float]:
    """Seconds, seconds of all cores, and peak memory in multiples of the model.

    Args:
        again: a small model goes first, so that all packages are loaded.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(cores())
    first = model(small=True)  # its package is loaded
    if again:
        done(what, *first)
    before = psutil.Process().memory_info().rss
    network, batch = model(small=quick)
    size = sum(p.numel() * p.element_size() for p in network.parameters())
    took = done(what, network, batch)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return *took, (peak - before) / size


def main() -> None:
    """Measure all, or what is asked for, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model")
    parser.add_argument("what", nargs="*", default=WORK, help=f"of {', '.join(WORK)}; all of them by default")
    options = parser.parse_args()
    if strange := [what for what in options.what if what not in WORK]:
        parser.error(f"{strange[0]!r} is none of {', '.join(WORK)}")
    if find_spec("transformers") is None:
        print("Skipped: the package transformers is not installed.")
        return
    print(f"| what | seconds (≤ {SECONDS:g}) | seconds of all cores | memory, in models (≤ {MODELS:g}) |")
    print("| --- | ---: | ---: | ---: |")
    for what in options.what:
        seconds, spent, _ = alone(measured, what, options.quick, False)
        *_, models = alone(measured, what, options.quick, True)
        print(f"| {what} | {seconds:.1f} | {spent:.1f} | {models:.1f} |", flush=True)
    print("\nThe stream of twice the width is that of a network of two models: with the old one they take three.")


if __name__ == "__main__":
    main()
