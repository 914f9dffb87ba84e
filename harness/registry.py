"""Find plugins, load each on its own, and collect what they provide. The only module that calls hooks."""

from __future__ import annotations

import copy
import inspect
import logging
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pluggy

from harness import hookspecs
from harness.catalog import KINDS as KINDS
from harness.catalog import Catalog as Catalog
from harness.catalog import Component as Component
from harness.catalog import plural
from harness.discovery import GROUP, NAMED, Candidate, from_module, installed
from harness.errors import PluginError, UnknownNameError, nearest
from harness.isolation import describe_error, kept_random_state, registering
from harness.provenance import plugin_sha256
from harness.records import Provider
from harness.specs import (
    AugmentationSpec,
    BackboneSpec,
    DatasetSpec,
    Family,
    LossSpec,
    OptimizerSpec,
    ScheduleSpec,
)

logger = logging.getLogger("harness.plugins")

_PREFIX = "harness_"
HOOKS: tuple[str, ...] = tuple(name for name in vars(hookspecs) if name.startswith(_PREFIX))
"""The names of all hooks, in the order in which they are specified."""
_CLOSE = 0.75
"""Of difflib, without what all hooks begin with: `lossez` is close to `losses`."""
# Names become parts of file names and of `family:name`, and globs are matched against them.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+@-]{0,99}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginInfo:
    """What became of one plugin."""

    name: str
    distribution: str
    """The installed package; `-p` for a module named on the command line."""
    version: str
    status: Literal["ok", "blocked", "broken"]
    reason: str = ""
    hooks: tuple[str, ...] = ()
    components: tuple[tuple[str, str, str], ...] = ()
    """(kind, name, summary); a family counts as one."""


@dataclass(slots=True)
class Registry:
    """The plugins of this process and the components they provide."""

    plugins: tuple[PluginInfo, ...]
    arguments: tuple[str, ...]
    """The `-p` values it was loaded with: another process loads the same with them."""
    datasets: Catalog[DatasetSpec]
    backbones: Catalog[BackboneSpec]
    augmentations: Catalog[AugmentationSpec]
    losses: Catalog[LossSpec]
    optimizers: Catalog[OptimizerSpec]
    schedules: Catalog[ScheduleSpec]
    _manager: pluggy.PluginManager
    _complained: set[str] = field(default_factory=set, init=False)

    def catalog(self, kind: str) -> Catalog[Any]:
        """Return the catalog of a kind such as `loss`."""
        catalog: Catalog[Any] = getattr(self, plural(kind))
        return catalog

    def plugin(self, name: str) -> object:
        """Return the module or object of a loaded plugin.

        Raises:
            UnknownNameError: No plugin has this name.
            PluginError: It is blocked or broken.
        """
        found = {info.name: info for info in self.plugins}
        if name not in found:
            raise UnknownNameError("plugin", name, found, more="run `harness plugins list`")
        if found[name].status != "ok":
            raise PluginError(f"plugin {name!r} is {found[name].status}", why=found[name].reason)
        return self._manager.get_plugin(name)

    def provider(self, kind: str, name: str) -> Provider:
        """Return where a component came from, with the hash of its plugin's code.

        Raises:
            UnknownNameError: There is no such component.
        """
        found: Provider = self.catalog(kind).get(name).provider
        return replace(found, sha256=plugin_sha256(self._manager.get_plugin(found.plugin)))

    def notify(self, hook: str, **values: object) -> None:
        """Call an observer hook; a failing observer is reported once and stops nothing."""
        for implementation in getattr(self._manager.hook, hook).get_hookimpls():
            # A copy: records hold mappings, and no observer may change what the next one sees.
            arguments = [copy.deepcopy(values[name]) for name in implementation.argnames]
            try:
                with kept_random_state():
                    implementation.function(*arguments)
            except (Exception, SystemExit) as error:
                key = f"{implementation.plugin_name}.{hook}"
                if key not in self._complained:
                    self._complained.add(key)
                    logger.warning(
                        "plugin %r failed in %s: %s (said once; the study goes on)",
                        implementation.plugin_name,
                        hook,
                        describe_error(error),
                    )


def load_registry(arguments: Sequence[str] = ()) -> Registry:
    """Load all installed plugins, each on its own, and collect their components.

    Args:
        arguments: `-p` values: `no:NAME` blocks a plugin before anything is loaded, `MODULE` adds one.

    Raises:
        UnknownNameError: `no:NAME` names no plugin.
        PluginError: Two distributions register one plugin name, two plugins provide one component, or a
            module named with `-p` is broken. Any other broken plugin is listed and stops nothing.
    """
    blocked = {value.removeprefix("no:") for value in arguments if value.startswith("no:")}
    named = dict.fromkeys(value for value in arguments if not value.startswith("no:"))
    candidates = installed(blocked) + [from_module(name) for name in named]
    known = [candidate.name for candidate in candidates]
    for name in sorted(blocked.difference(known)):
        more = "run `harness plugins list`"
        raise UnknownNameError("plugin", name, known, where=f"-p no:{name}", more=more)

    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    catalogs: dict[str, Catalog[Any]] = {kind: Catalog(kind) for kind in KINDS}
    loaded = []
    for candidate in candidates:
        if candidate.name in blocked:
            candidate.status = "blocked"
        elif candidate.distribution == NAMED and _is_registered(candidate, manager):
            # `-p MODULE` of an installed plugin asks for what is already there.
            continue
        else:
            _load(candidate, manager, catalogs)
            if candidate.status == "broken" and candidate.distribution == NAMED:
                raise PluginError(
                    f"plugin {candidate.name!r} cannot be loaded",
                    where=f"-p {candidate.name}",
                    why=candidate.reason,
                    fixes=[_repair(candidate)],
                )
        loaded.append(candidate)
    return Registry(
        plugins=tuple(
            PluginInfo(
                name=candidate.name,
                distribution=candidate.distribution,
                version=candidate.version,
                status=candidate.status,
                reason=candidate.reason,
                hooks=candidate.hooks,
                components=candidate.components,
            )
            for candidate in loaded
        ),
        arguments=tuple(arguments),
        _manager=manager,
        **{plural(kind): catalog for kind, catalog in catalogs.items()},
    )


def _repair(candidate: Candidate) -> str:
    """Say what to do about a module that cannot be loaded."""
    if not candidate.missing:
        return "repair it; python -m pydoc harness.hookspecs says what a plugin needs"
    if f"{candidate.name}.".startswith(f"{candidate.missing}."):
        return "name a module, without .py, of the current folder or of an installed package"
    return f"install {candidate.missing.partition('.')[0]!r}, which {candidate.name!r} imports"


def _is_registered(candidate: Candidate, manager: pluggy.PluginManager) -> bool:
    return any(plugin is sys.modules.get(candidate.name, manager) for _, plugin in manager.list_name_plugin())


def _load(candidate: Candidate, manager: pluggy.PluginManager, catalogs: dict[str, Catalog[Any]]) -> None:
    """Load one plugin and collect its components; what it does wrong becomes its `reason`."""
    plugin: object = None
    free = not manager.has_plugin(candidate.name)
    try:
        with registering():
            loaded = candidate.load()
            plugin = loaded() if inspect.isclass(loaded) else loaded
            if not free:
                raise PluginError(f"another plugin is already called {candidate.name!r}")
            manager.register(plugin, name=candidate.name)
            found = list(_collect(plugin, manager))
    # SystemExit: a plugin that calls sys.exit() at import must not end the host.
    except (Exception, SystemExit) as error:
        # Not where the name belongs to a sound plugin.
        if free and manager.has_plugin(candidate.name):
            manager.unregister(name=candidate.name)
        candidate.status = "broken"
        candidate.reason = describe_error(error)
        candidate.missing = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
        return
    provider = Provider(
        name="", plugin=candidate.name, distribution=candidate.distribution, version=candidate.version
    )
    for kind, item in found:
        catalogs[kind].add(item, replace(provider, name=item.name))
    candidate.hooks = tuple(sorted(caller.name for caller in manager.get_hookcallers(plugin) or ()))
    candidate.components = tuple((kind, item.name, item.summary) for kind, item in found)


def components_of(plugin: object) -> list[tuple[str, Any]]:
    """Return (kind, spec or family) of each component of a plugin that need not be installed.

    Args:
        plugin: A module, an object, or a class that is instantiated.

    Raises:
        PluginError: A hook is unknown, lacks its marker, is a wrapper, or yields what it must not.
    """
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    with registering():
        plugin = plugin() if inspect.isclass(plugin) else plugin
        manager.register(plugin)
        return list(_collect(plugin, manager))


def _collect(plugin: object, manager: pluggy.PluginManager) -> Iterator[tuple[str, Any]]:
    """Yield (kind, component) of one registered plugin, checked.

    Raises:
        PluginError: A hook is unknown, lacks its marker, is a wrapper, or yields what it must not.
    """
    callers = {caller.name: caller for caller in manager.get_hookcallers(plugin) or ()}
    for name in HOOKS:
        if callable(getattr(plugin, name, None)) and manager.parse_hookimpl_opts(plugin, name) is None:
            raise PluginError(f"{name} lacks @hookimpl: write `from harness import hookimpl` and decorate it")
    short = [hook.removeprefix(_PREFIX) for hook in HOOKS]
    for name in _own_functions(plugin):
        # pluggy passes over what lacks the marker. A helper may have any name that is like no hook's.
        unknown = name not in (*HOOKS, *callers)
        if unknown and nearest(name.removeprefix(_PREFIX), short, cutoff=_CLOSE):
            raise UnknownNameError("hook", name, HOOKS)
    if not callers:
        raise PluginError("it implements no hook: is this a plugin of harness?")
    for name, caller in callers.items():
        for implementation in caller.get_hookimpls():
            if implementation.plugin is not plugin:
                continue
            # A plugin marks a hook of a newer harness so, to run on this one too.
            if name not in HOOKS and not implementation.optionalhook:
                raise UnknownNameError("hook", name, HOOKS)
            if implementation.wrapper or implementation.hookwrapper:
                raise PluginError(f"{name} is a hook wrapper, which harness does not call")
    for kind in KINDS:
        hook = f"harness_{plural(kind)}"
        seen: set[str] = set()
        for implementation in callers[hook].get_hookimpls() if hook in callers else ():
            if implementation.plugin is plugin:
                for item in _checked(hook, kind, implementation.function()):
                    if item.name in seen:
                        raise PluginError(f"{hook} yielded {kind} {item.name!r} twice")
                    seen.add(item.name)
                    yield kind, item


def _own_functions(plugin: object) -> Iterator[str]:
    """Yield the names of functions that a plugin defines itself and that look like hooks."""
    owner = plugin if inspect.ismodule(plugin) else type(plugin)
    home = owner.__name__ if inspect.ismodule(owner) else owner.__module__
    for name, value in vars(owner).items():
        if name.startswith(_PREFIX) and inspect.isfunction(value) and value.__module__ == home:
            yield name


def _checked(hook: str, kind: str, items: object) -> Iterator[Any]:
    expected = KINDS[kind]
    if not isinstance(items, Iterable):
        raise PluginError(f"{hook} returned {type(items).__name__}, not an iterable of {expected.__name__}")
    for item in items:
        if not isinstance(item, expected | Family):
            raise PluginError(f"{hook} yielded {type(item).__name__}, not {expected.__name__}")
        if not isinstance(item.name, str) or not _NAME.fullmatch(item.name):
            raise PluginError(f"{hook} yielded the name {item.name!r}: use letters, digits and ._+@- only")
        if not isinstance(item.summary, str):
            raise PluginError(f"{hook} yielded {kind} {item.name!r} with a summary that is no text")
        yield item
