"""The conformance kit: checks that any plugin should pass, ours included.

`plugin_checks` yields them. `parametrize_with_checks` makes pytest tests of them, and `harness plugins check
NAME` runs them from the command line. Each check builds its own objects, seeds what it draws, and restores
the random state; its message begins with the name of the component.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from types import ModuleType
from typing import TYPE_CHECKING, Any

from harness.isolation import describe_error, kept_random_state, seed_all
from harness.kit.checks import CHECKS
from harness.kit.component import is_described, require
from harness.registry import HOOKS, KINDS, components_of
from harness.specs import Family, Spec

if TYPE_CHECKING:
    import pytest

__all__ = ["Check", "parametrize_with_checks", "plugin_checks"]

HEAVY = ("torch", "torchvision", "timm", "optuna", "pandas", "scipy", "sklearn", "tensorflow", "jax")


@dataclass(frozen=True, slots=True)
class Check:
    """One check of one component; call it to run it."""

    id: str
    """`kind/component/check`, or `plugin/check`."""
    run: Callable[[], None]
    """Raises AssertionError, with a message that begins with the component's name."""

    def __call__(self) -> None:
        """Run it."""
        self.run()


def plugin_checks(plugin: object, *, members: Mapping[str, Sequence[str]] | None = None) -> Iterator[Check]:
    """Yield the checks of a plugin's components.

    Args:
        plugin: A module, a class or an object with hooks; it need not be installed.
        members: Family name -> members to check. Of other families the first and the middle one are checked.
    """
    try:
        found = components_of(plugin)
    except (Exception, SystemExit) as error:
        yield _check("plugin/registers", _name_of(plugin), _fail, describe_error(error))
        return
    yield _check("plugin/registers", _name_of(plugin), _registers_the_same_twice, plugin)
    source = _importable(plugin)
    if source:
        yield _check("plugin/is-light", _name_of(plugin), _imports_nothing_heavy, *source)
    for kind, item in found:
        if not isinstance(item, Family):
            yield from _spec_checks(kind, item.name, partial(_itself, item))
            continue
        yield _check(f"{kind}/{item.name}/members", item.name, _family_lists_names, item)
        for member in (members or {}).get(item.name) or _first_and_middle(item):
            yield _check(f"{kind}/{member}/member", member, _member_has_its_name, item, member)
            yield from _spec_checks(kind, member, partial(item.spec, member))


def parametrize_with_checks(
    plugin: object,
    *,
    expected_failures: Mapping[str, str] | None = None,
    members: Mapping[str, Sequence[str]] | None = None,
) -> pytest.MarkDecorator:
    """Return a decorator that runs a test function `test(check)` once for each check of a plugin.

    Args:
        plugin: As in `plugin_checks`.
        expected_failures: Id of a check -> why it fails. The check must fail: one that passes is an error.
        members: As in `plugin_checks`.

    Raises:
        ValueError: An expected failure names no check.
    """
    import pytest

    expected = {
        name: [pytest.mark.xfail(reason=reason, strict=True)]
        for name, reason in (expected_failures or {}).items()
    }
    checks = list(plugin_checks(plugin, members=members))
    unknown = sorted(set(expected) - {check.id for check in checks})
    if unknown:
        raise ValueError(f"expected_failures names no check: {', '.join(unknown)}")
    return pytest.mark.parametrize(
        "check", [pytest.param(check, id=check.id, marks=expected.get(check.id, [])) for check in checks]
    )


def _check(id: str, name: str, function: Callable[..., None], *arguments: Any) -> Check:
    def run() -> None:
        try:
            with kept_random_state():
                seed_all(0)
                function(*arguments)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{name}: {describe_error(error)}") from error

    return Check(id, run)


def _spec_checks(kind: str, name: str, spec: Callable[[], Any]) -> Iterator[Check]:
    def run(function: Callable[[Any], None]) -> None:
        described = spec()
        require(
            isinstance(described, KINDS[kind]),
            f"a {kind} is a {KINDS[kind].__name__}, not a {type(described).__name__}",
        )
        function(described)

    for label, function in {"is-described": is_described, **CHECKS[kind]}.items():
        yield _check(f"{kind}/{name}/{label}", name, run, function)


def _itself(spec: Spec) -> Spec:
    return spec


def _fail(message: str) -> None:
    raise AssertionError(message)


def _name_of(plugin: object) -> str:
    named = plugin if isinstance(plugin, ModuleType | type) else type(plugin)
    return named.__name__


def _registers_the_same_twice(plugin: object) -> None:
    first, second = (
        [(kind, item.name, item.summary) for kind, item in components_of(plugin)] for _ in range(2)
    )
    require(first == second, "its hooks yield something else when they are called again")


def _importable(plugin: object) -> tuple[str, str, str] | None:
    """Return module, name in it and file of a plugin, or None where another process cannot import it."""
    if isinstance(plugin, ModuleType):
        return (plugin.__name__, "", str(plugin.__file__)) if getattr(plugin, "__file__", None) else None
    owner = plugin if isinstance(plugin, type) else type(plugin)
    module = sys.modules.get(owner.__module__)
    file = getattr(module, "__file__", None)
    try:
        reachable = attrgetter(owner.__qualname__)(module) is owner
    except AttributeError:
        return None
    # An object whose class has no hooks got them in some other way, which another process cannot repeat.
    known = reachable and any(hasattr(owner, hook) for hook in HOOKS)
    return (owner.__module__, owner.__qualname__, str(file)) if known and file else None


_IMPORT = """
import importlib, importlib.util, json, operator, sys
name, attribute, file, path, heavy = json.loads(sys.argv[1])
sys.path[:] = path
from harness.registry import components_of
try:
    plugin = importlib.import_module(name)
except ModuleNotFoundError as error:
    if error.name not in (name, name.partition(".")[0]):
        raise
    found = importlib.util.spec_from_file_location(name, file)
    plugin = sys.modules[name] = importlib.util.module_from_spec(found)
    found.loader.exec_module(plugin)
components_of(operator.attrgetter(attribute)(plugin) if attribute else plugin)
print(json.dumps(sorted(set(heavy) & set(sys.modules))), file=sys.__stdout__)
"""


def _imports_nothing_heavy(module: str, attribute: str, file: str) -> None:
    """Run the registration hooks in a new interpreter: in this one torch is there already."""
    values = json.dumps([module, attribute, file, [str(entry) for entry in sys.path], HEAVY])
    # A fixed program and a list of arguments: nothing of the plugin's reaches a shell.
    command = [sys.executable, "-c", _IMPORT, values]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    require(done.returncode == 0, f"it cannot be imported on its own: {done.stderr.strip()[-300:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    require(not found, f"loading it imports {', '.join(found)}: import them inside `build`")


def _names(family: Family[Any]) -> list[str]:
    return list(family.members())


def _family_lists_names(family: Family[Any]) -> None:
    names = _names(family)
    require(names, "members() lists nothing")
    wrong = [name for name in names if not isinstance(name, str) or not name or name != name.strip()]
    require(not wrong, f"members() lists {wrong[:1]!r}, which is no name")
    require(len(set(names)) == len(names), "members() lists a name twice")


def _first_and_middle(family: Family[Any]) -> list[str]:
    try:
        names = _names(family)
        return sorted({names[0], names[len(names) // 2]})
    except (Exception, SystemExit):
        # The check of the members says what is wrong.
        return []


def _member_has_its_name(family: Family[Any], member: str) -> None:
    name = family.spec(member).name
    require(name == member, f"spec({member!r}) describes {name!r}")
