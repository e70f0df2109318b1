"""The page of networks of other makes, written from the tables that are tested: networks_page.py FILE."""

import sys
from pathlib import Path

from foreign import MODELS
from zoo import ZOO

HEAD = """# Networks of other makes

What of them grows exactly, checked in double precision, and what is refused, and why. Every row is a test:
`tests/expansion/test_zoo.py` and `tests/expansion/test_foreign.py`, whose tables this page is written from
(`make notebooks`). `mm.coverage(network, batch)` says the same of a network of yours.

## Written by hand

| network | grows | by | refused | because |
|---|---|---|---|---|
"""
WIDER = """
## From `transformers`, twice as wide

The numbers of the configuration follow, so that the model can be saved and loaded. Where there are none, no
configuration of its class has such sizes: the model works, but its class does not load what is saved of it: that fails,
or gives another function.

| model | what gets wider at once | its configuration follows |
|---|---|---|
"""
FOREIGN = """
## From `transformers`, by one more block

| model | class | an exact block | its configuration follows |
|---|---|---|---|
"""


def page() -> str:
    """The page in Markdown."""
    rows = []
    for name, animal in ZOO.items():
        refused = animal.refused or ({"all of it": animal.whole} if animal.whole else {})
        columns = animal.grows, animal.grows.values(), refused, refused.values()
        rows.append(f"| {name} | {' | '.join('<br>'.join(_plain(cell) for cell in column) for column in columns)} |\n")
    wider, models = [], []
    for name, model in MODELS.items():
        for what, (_, configured) in model.wider.items():
            what += " (in single precision, in which its norms compute)" * (what in model.single)
            wider.append(f"| {name} | {what} | {', '.join(configured) or 'none has'} |\n")
        exact = f"none: `{_plain(model.behind)}` stands behind its branches" if model.behind else "`identity_block`"
        models.append(f"| {name} | `{model.kind}` | {exact} | {', '.join(model.depth)} |\n")
    return HEAD + "".join(rows) + WIDER + "".join(wider) + FOREIGN + "".join(models)


def _plain(text: str) -> str:
    """Without what a pattern or a table would take for something else."""
    return text.replace("\\", "").replace("|", "or")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page())
