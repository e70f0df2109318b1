"""Which expansion of a small trained network is worth its training? Operators, manifold estimators and the study.

The face: `import mmstudy as mm`, then `mm.expand(network, batch, "lemon", {"hidden.0": 64})`, `mm.size(network, batch)`
and what else `__all__` names. Nothing is loaded before it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmstudy.expansion.asked import candidate_pool, couplings, coverage, expand, pool_table
    from mmstudy.expansion.candidate import Candidate
    from mmstudy.expansion.receipt import receipt
    from mmstudy.manifold.asked import check, size, sizes
    from mmstudy.manifold.between import barrier, line, plane
    from mmstudy.ranking.asked import rank_expansions
    from mmstudy.tracing.trace import register_rule

__version__ = "0.1.0"
__all__ = [
    "Candidate",
    "barrier",
    "candidate_pool",
    "check",
    "couplings",
    "coverage",
    "expand",
    "line",
    "plane",
    "pool_table",
    "rank_expansions",
    "receipt",
    "register_rule",
    "size",
    "sizes",
]

_MODULES = {
    "Candidate": "expansion.candidate",
    "barrier": "manifold.between",
    "candidate_pool": "expansion.asked",
    "check": "manifold.asked",
    "couplings": "expansion.asked",
    "coverage": "expansion.asked",
    "expand": "expansion.asked",
    "line": "manifold.between",
    "plane": "manifold.between",
    "pool_table": "expansion.asked",
    "rank_expansions": "ranking.asked",
    "receipt": "expansion.receipt",
    "register_rule": "tracing.trace",
    "size": "manifold.asked",
    "sizes": "manifold.asked",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"mmstudy has no {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(f"mmstudy.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
