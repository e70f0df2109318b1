"""What coverage and growth of a language model take: seconds, and memory in multiples of the model.

    python benchmarks/coverage.py [--quick] [what ...]

GPT-2 of 124 million parameters, drawn at random, called on two examples of 16 tokens with all cores. Each line is of a
process of its own. Its memory is the largest of that process, the model included, beyond what Python and its packages
take. `--quick` measures a small model: it shows that all runs, and no more. Needs the package transformers.
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


def measured(what: str, quick: bool) -> tuple[float, float, float]:
    """Seconds, seconds of all cores, and peak memory in multiples of the model, in a fresh process."""
    from transformers import GPT2Config, GPT2LMHeadModel

    warnings.simplefilter("ignore")
    torch.set_num_threads(cores())
    GPT2LMHeadModel(GPT2Config(**SMALL))  # all is imported
    before = psutil.Process().memory_info().rss
    network = GPT2LMHeadModel(GPT2Config(**SMALL if quick else {})).eval()
    size = sum(p.numel() * p.element_size() for p in network.parameters())
    draws = torch.Generator().manual_seed(0)
    batch = {"input_ids": torch.randint(network.config.vocab_size, (2, 16), generator=draws)}
    began, spent = time.perf_counter(), time.process_time()
    if what == "couplings":
        mm.couplings(network, batch)
    elif what == "coverage":
        mm.coverage(network, batch)
    else:
        operator, place, times = GROWN[what]
        number = times * mm.couplings(network, batch)[place].size if times else 1
        began, spent = time.perf_counter(), time.process_time()
        _ = mm.expand(network, batch, operator, {place: number})
    took = time.perf_counter() - began, time.process_time() - spent
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
        seconds, spent, models = alone(measured, what, options.quick)
        print(f"| {what} | {seconds:.1f} | {spent:.1f} | {models:.1f} |", flush=True)


if __name__ == "__main__":
    main()
