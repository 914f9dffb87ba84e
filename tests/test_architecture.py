"""Who may import whom, read from the syntax tree. There is no list of exceptions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import harness

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "torchvision", "timm", "optuna", "pandas", "scipy", "sklearn"}
DESCRIBING = {
    "harness.catalog",
    "harness.config",
    "harness.discovery",
    "harness.documents",
    "harness.errors",
    "harness.hookspecs",
    "harness.isolation",
    "harness.metrics",
    "harness.paths",
    "harness.predictions",
    "harness.provenance",
    "harness.records",
    "harness.registry",
    "harness.samples",
    "harness.specs",
    "harness.text",
}
KIT = {"harness.testing"}
# A command of its own, which no plugin imports.
PRETRAINING = {"harness_builtin.formula.pretrain", "harness_builtin.formula.render"}
# Each layer may import itself and those before it.
LAYERS = ["describing", "leaderboard", "data", "engine", "search", "kit", "cli"]
READABLE = {
    "harness.documents",
    "harness.errors",
    "harness.metrics",
    "harness.paths",
    "harness.predictions",
    "harness.records",
    "harness.samples",
    "harness.text",
}


def modules(folder: Path, package: str) -> dict[str, ast.Module]:
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = (package, *path.relative_to(folder).with_suffix("").parts)
        name = ".".join(parts).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


HOST = modules(ROOT / "harness", "harness")
BUILTIN = modules(ROOT / "plugins" / "harness_builtin", "harness_builtin")
EXAMPLE = modules(ROOT / "plugins" / "harness-example", "harness-example")


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield each imported name in full: a module, or a module and what is taken from it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def home(name: str) -> str:
    """Return the module of ours that an imported name is, or is in."""
    while name not in HOST:
        name = name.rpartition(".")[0]
    return name


def layer(module: str) -> str:
    if module in DESCRIBING:
        return "describing"
    if module in KIT:
        return "kit"
    # The package itself is a table of contents, and `python -m harness` a command line.
    return module.split(".")[1] if module not in ("harness", "harness.__main__") else "cli"


def host_imports(module: str) -> Iterator[str]:
    for name in imports(HOST[module]):
        if name.split(".")[0] == "harness" and name != "harness.__version__":
            yield home(name)


def at_module_level(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield the statements that an import runs."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        yield node
        children = ast.iter_child_nodes(node)
        waiting += [child for child in children if isinstance(child, ast.stmt | ast.excepthandler)]


@pytest.mark.parametrize("module", HOST)
def test_every_module_has_a_layer(module):
    assert layer(module) in LAYERS


@pytest.mark.parametrize("module", HOST)
def test_imports_point_one_way(module):
    own = LAYERS.index(layer(module))
    upward = [name for name in host_imports(module) if LAYERS.index(layer(name)) > own]
    assert not upward, f"{module} ({LAYERS[own]}) imports {upward}"


@pytest.mark.parametrize("module", [name for name in HOST if layer(name) == "leaderboard"])
def test_the_leaderboard_reads_records_and_nothing_else(module):
    other = {name for name in host_imports(module) if layer(name) != "leaderboard"} - READABLE
    assert not other, f"{module} imports {sorted(other)}"
    heavy = {name.split(".")[0] for name in imports(HOST[module])} & (HEAVY - {"pandas"})
    assert not heavy, f"{module} imports {sorted(heavy)}"


@pytest.mark.parametrize("module", [name for name in HOST if layer(name) in ("data", "engine")])
def test_data_and_engine_know_nothing_of_leaderboards(module):
    assert not [name for name in host_imports(module) if layer(name) == "leaderboard"]


@pytest.mark.parametrize("module", HOST)
def test_modules_import_each_other_in_no_circle(module):
    seen: set[str] = set()
    # What a function imports when it runs, and what only a type checker reads, makes no circle.
    waiting = [module]
    while waiting:
        for node in at_module_level(HOST[waiting.pop()]):
            for name in imports(node) if isinstance(node, ast.Import | ast.ImportFrom) else ():
                if name.split(".")[0] == "harness" and home(name) not in seen | {"harness"}:
                    seen.add(home(name))
                    waiting.append(home(name))
    assert module not in seen


@pytest.mark.parametrize("module", HOST)
def test_the_host_knows_no_plugin(module):
    foreign = [name for name in imports(HOST[module]) if name.startswith("harness_")]
    named = [
        node.value
        for node in ast.walk(HOST[module])
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "harness_builtin" in node.value
    ]
    assert not foreign + named


@pytest.mark.parametrize("module", sorted(DESCRIBING))
def test_describing_modules_are_light(module):
    assert module in HOST
    heavy = [
        name
        for node in at_module_level(HOST[module])
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in imports(node)
        if name.split(".")[0] in HEAVY
    ]
    assert not heavy


@pytest.mark.parametrize("module", HOST)
def test_each_library_has_one_home(module):
    used = {name.split(".")[0] for name in imports(HOST[module])}
    if module not in ("harness.hookspecs", "harness.registry"):
        assert "pluggy" not in used
    if LAYERS.index(layer(module)) < LAYERS.index("search"):
        assert "optuna" not in used
    if layer(module) not in ("cli", "leaderboard"):
        assert "rich" not in used
    if layer(module) != "cli":
        assert "click" not in used


@pytest.mark.parametrize(("module", "tree"), [*BUILTIN.items(), *EXAMPLE.items()])
def test_plugins_use_the_public_api_only(module, tree):
    ours = [name for name in imports(tree) if name.split(".")[0] == "harness"]
    allowed = {f"harness.{name}" for name in harness.__all__}
    allowed |= {"harness.testing.parametrize_with_checks", "harness.testing.plugin_checks"}
    assert set(ours) <= allowed, f"{module} imports {sorted(set(ours) - allowed)}"


@pytest.mark.parametrize("module", sorted(set(BUILTIN) - PRETRAINING))
def test_built_in_plugins_are_light(module):
    assert not [
        name
        for name in imports(BUILTIN[module])
        if any(f"{name}.".startswith(f"{other}.") for other in PRETRAINING)
    ]
    heavy = [
        name
        for node in at_module_level(BUILTIN[module])
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in imports(node)
        if name.split(".")[0] in HEAVY
    ]
    assert not heavy


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch", ["torch"]),
        ("try:\n    import torch\nexcept ImportError:\n    import timm", ["timm", "torch"]),
        ("class A:\n    import torch", ["torch"]),
        ("if TYPE_CHECKING:\n    import torch\nelse:\n    import timm", ["timm"]),
        ("def f():\n    import torch", []),
        ("with x:\n    from torch import nn", ["torch.nn"]),
    ],
)
def test_this_file_sees_what_an_import_runs(source, found):
    statements = [n for n in at_module_level(ast.parse(source)) if isinstance(n, ast.Import | ast.ImportFrom)]
    assert sorted(name for node in statements for name in imports(node)) == found
