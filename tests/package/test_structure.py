"""How much of the code refuses: guards belong to the doors, and below them a function is its formula."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from architecture import PACKAGE, modules_under

ALGEBRA = ("core", "guidance", "schedulers", "sampling.py", "losses.py")


def algebra() -> Iterator[Path]:
    for name in ALGEBRA:
        yield from modules_under(PACKAGE / name) if (PACKAGE / name).is_dir() else [PACKAGE / name]


def lines_of(node: ast.AST) -> set[int]:
    return set(range(node.lineno, node.end_lineno + 1))


def code_lines(tree: ast.Module) -> set[int]:
    """Lines of code: no comments, no documentation."""
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.Expr)]
    documentation = [node for node in texts if isinstance(getattr(node.value, "value", None), str)]
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.stmt | ast.expr | ast.arg)]
    simple = [node for node in nodes if not hasattr(node, "body")]
    code = set().union({node.lineno for node in nodes}, *map(lines_of, simple))
    return code - set().union(*map(lines_of, documentation))


def guard_lines(tree: ast.Module) -> set[int]:
    """Lines of `if ...: raise`, of statements that check, and of functions whose name says so."""
    found: set[int] = set()
    for node in ast.walk(tree):
        only_raises = isinstance(node, ast.If) and not node.orelse
        only_raises = only_raises and all(isinstance(each, ast.Raise) for each in node.body)
        call = node.value.func if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) else None
        name = getattr(call, "attr", getattr(call, "id", ""))
        name = node.name if isinstance(node, ast.FunctionDef) else name
        if only_raises or name.lstrip("_").startswith("check"):
            found |= lines_of(node)
    return found


def test_what_guards_the_algebra_is_a_small_part_of_it():
    trees = [ast.parse(path.read_text()) for path in algebra()]
    code = sum(len(code_lines(tree)) for tree in trees)
    guards = sum(len(guard_lines(tree) & code_lines(tree)) for tree in trees)
    assert guards / code <= 0.06


def test_refusals_are_few():
    sources = [path.read_text() for path in modules_under(PACKAGE)]
    raises = sum(isinstance(node, ast.Raise) for text in sources for node in ast.walk(ast.parse(text)))
    assert raises < 15.5e-3 * sum(len(text.splitlines()) for text in sources)
