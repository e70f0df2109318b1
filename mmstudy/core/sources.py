"""Which modules of this package some code imports, directly or not, and a hash of what these modules do.

The standard library is all that it needs, so that make can ask before the environment is built:

    python3 mmstudy/core/sources.py notebooks/1_expansion.ipynb notebooks/2_estimators.ipynb
"""

import ast
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
FACE = PACKAGE / "__init__.py"


@cache
def imports(code: str) -> frozenset[str]:
    """The dotted names that Python code imports anywhere in it; `from a import b` counts as a.b."""
    names = set()
    for node in _statements(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """All statements, those inside others too, without the expressions that most of a tree consists of."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        for name in ("body", "orelse", "finalbody", "handlers", "cases"):
            waiting += getattr(node, name, [])


def files(code: str) -> set[Path]:
    """The files of this package that Python code imports, directly or not, the packages around them included.

    `import mmstudy` alone, the public face, counts as an import of all that the face offers.
    """
    found: set[Path] = set()
    face = False  # whether what the face offers has been taken in
    waiting = sorted(imports(code))
    met = set(waiting)
    while waiting:
        name = waiting.pop()
        new = [path for path in _on_the_way(name) if path not in found]
        found |= set(new)
        follow = [path for path in new if path != FACE]
        if _is_of_the_face(name) and not face:
            face = True
            follow.append(FACE)
        for path in follow:
            names = imports(path.read_text()) - met
            waiting += sorted(names)
            met |= names
    return found


def _is_of_the_face(name: str) -> bool:
    """Whether a dotted name is the package itself, or something that it offers and that is no module."""
    first, *rest = name.split(".")
    inside = rest and (rest[0].startswith("__") or (PACKAGE / rest[0]).is_dir())
    return first == PACKAGE.name and not inside


def _on_the_way(name: str) -> Iterator[Path]:
    """The files that Python reads to import a dotted name, if it belongs to this package."""
    first, *rest = name.split(".")
    if first != PACKAGE.name:
        return
    place = PACKAGE
    yield FACE
    for part in rest:
        place = place / part
        if place.with_suffix(".py").exists():
            yield place.with_suffix(".py")
            return
        if not (place / "__init__.py").exists():
            return
        yield place / "__init__.py"


def fingerprint(code: str) -> str:
    """A hash of what the modules that some code imports do: comments, docstrings and layout don't change it."""
    digest = hashlib.sha256()
    for path in sorted(files(code)):
        digest.update(_meaning(path.read_text()))
    return digest.hexdigest()


def of_package() -> str:
    """A hash of all files of this package, as they are: quick, where a comment may count."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


@cache
def _meaning(code: str) -> bytes:
    """A hash of the syntax tree of Python code without its docstrings and lists of names to export."""
    tree = ast.parse(code)
    tree.body = [node for node in tree.body if not _exports(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            documented = ast.get_docstring(node, clean=False) is not None
            node.body = (node.body[1:] or [ast.Pass()]) if documented else node.body
    return hashlib.sha256(ast.dump(tree).encode()).digest()


def _exports(node: ast.stmt) -> bool:
    """Whether this is `__all__ = [...]`."""
    return isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets)


def of_notebook(path: Path) -> str:
    """The code of a notebook, its cells one after another."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def main(notebooks: Iterable[str]) -> None:
    """Print NAME:FILE for each file that a notebook imports from this package, relative to the working directory."""
    for notebook in map(Path, notebooks):
        for path in sorted(files(of_notebook(notebook))):
            print(f"{notebook.stem}:{os.path.relpath(path)}")


if __name__ == "__main__":
    main(sys.argv[1:])
