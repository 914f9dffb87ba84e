"""Find plugins, load each on its own, and collect what they provide. The only module that knows pluggy."""

from __future__ import annotations

import importlib
import inspect
import logging
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, Literal, TypeVar

import pluggy

from harness import hookspecs
from harness.errors import PluginError, UnknownNameError, UsageError
from harness.records import Provider
from harness.specs import (
    AugmentationSpec,
    BackboneSpec,
    DatasetSpec,
    Family,
    LossSpec,
    OptimizerSpec,
    ScheduleSpec,
    Spec,
)

GROUP = "harness"
logger = logging.getLogger("harness.plugins")

KINDS: dict[str, type[Spec]] = {
    "dataset": DatasetSpec,
    "backbone": BackboneSpec,
    "augmentation": AugmentationSpec,
    "loss": LossSpec,
    "optimizer": OptimizerSpec,
    "schedule": ScheduleSpec,
}
_PLURAL = {"loss": "losses"}
SpecT = TypeVar("SpecT", bound=Spec)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Component(Generic[SpecT]):
    """A spec and where it came from."""

    spec: SpecT
    provider: Provider


@dataclass(slots=True)
class Catalog(Generic[SpecT]):
    """All components of one kind, by name."""

    kind: str
    _specs: dict[str, Component[SpecT]] = field(default_factory=dict)
    _families: dict[str, tuple[Family[SpecT], Provider]] = field(default_factory=dict)
    _members: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def names(self) -> list[str]:
        """Return all names, members of families included; may import what is heavy."""
        return sorted({*self._specs, *(name for family in self._families for name in self._list(family))})

    def specs(self) -> list[Component[SpecT]]:
        """Return the components that belong to no family."""
        return [self._specs[name] for name in sorted(self._specs)]

    def families(self) -> list[str]:
        """Return the names of the families."""
        return sorted(self._families)

    def get(self, name: str, *, where: str = "") -> Component[SpecT]:
        """Return the component called `name` or `family:name`.

        Raises:
            UnknownNameError: There is none; names the nearest.
            UsageError: Two families have it.
        """
        if name in self._specs:
            return self._specs[name]
        prefix, colon, rest = name.partition(":")
        if colon and prefix in self._families:
            homes = [prefix] if rest in self._list(prefix) else []
        else:
            rest = name
            homes = [family for family in self._families if name in self._list(family)]
        if len(homes) > 1:
            choices = " or ".join(f"{family}:{name}" for family in sorted(homes))
            raise UsageError(f"{self.kind} {name!r} is ambiguous", where=where, fixes=[f"write {choices}"])
        if not homes:
            raise UnknownNameError(self.kind, name, self.names(), where=where)
        family, provider = self._families[homes[0]]
        return Component(spec=family.spec(rest), provider=_renamed(provider, name))

    def expand(self, pattern: str, *, where: str = "") -> list[str]:
        """Return the names a glob matches, or the name itself.

        Raises:
            UnknownNameError: Nothing matches.
        """
        if not any(sign in pattern for sign in "*?["):
            self.get(pattern, where=where)
            return [pattern]
        prefix, colon, rest = pattern.partition(":")
        if colon and prefix in self._families:
            found = [f"{prefix}:{name}" for name in self._list(prefix) if fnmatchcase(name, rest)]
        else:
            found = [name for name in self.names() if fnmatchcase(name, pattern)]
        if not found:
            raise UnknownNameError(self.kind, pattern, self.names(), where=where)
        return sorted(found)

    def add(self, item: SpecT | Family[SpecT], provider: Provider) -> None:
        """Add one component.

        Raises:
            PluginError: The name is taken.
        """
        taken = self._specs[item.name].provider if item.name in self._specs else None
        if taken is None and item.name in self._families:
            taken = self._families[item.name][1]
        if taken is not None:
            raise PluginError(
                f"{self.kind} {item.name!r} is provided twice: by plugin {taken.plugin!r} "
                f"({taken.distribution} {taken.version}) and by plugin {provider.plugin!r} "
                f"({provider.distribution} {provider.version})",
                fixes=[f"block one: -p no:{provider.plugin} or -p no:{taken.plugin}"],
            )
        if isinstance(item, Family):
            self._families[item.name] = (item, provider)
        else:
            self._specs[item.name] = Component(spec=item, provider=provider)

    def _list(self, family: str) -> tuple[str, ...]:
        if family not in self._members:
            self._members[family] = tuple(self._families[family][0].members())
        return self._members[family]


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
    _complained: set[str] = field(default_factory=set)

    def catalog(self, kind: str) -> Catalog[Any]:
        """Return the catalog of a kind such as `loss`."""
        catalog: Catalog[Any] = getattr(self, _plural(kind))
        return catalog

    def notify(self, hook: str, **values: object) -> None:
        """Call an observer hook; a failing observer is reported once and stops nothing."""
        for implementation in getattr(self._manager.hook, hook).get_hookimpls():
            arguments = [values[name] for name in implementation.argnames]
            try:
                with _kept_random_state():
                    implementation.function(*arguments)
            except Exception as error:
                key = f"{implementation.plugin_name}.{hook}"
                if key not in self._complained:
                    self._complained.add(key)
                    logger.warning(
                        "plugin %r failed in %s: %s (said once; the study goes on)",
                        implementation.plugin_name,
                        hook,
                        _describe(error),
                    )


@dataclass(slots=True, kw_only=True)
class _Candidate:
    """A plugin before, while and after it is loaded."""

    name: str
    distribution: str
    version: str
    load: Callable[[], object]
    status: Literal["ok", "blocked", "broken"] = "ok"
    reason: str = ""
    hooks: tuple[str, ...] = ()
    components: tuple[tuple[str, str, str], ...] = ()


def load_registry(arguments: Sequence[str] = ()) -> Registry:
    """Load all installed plugins, each on its own, and collect their components.

    Args:
        arguments: `-p` values: `no:NAME` blocks a plugin before anything is loaded, `MODULE` adds one.

    Raises:
        PluginError: Two distributions register one plugin name, two plugins provide one component, or a
            module named with `-p` is broken. Any other broken plugin is listed and stops nothing.
    """
    blocked = {value.removeprefix("no:") for value in arguments if value.startswith("no:")}
    named = [value for value in arguments if not value.startswith("no:")]
    candidates = _installed(blocked) + [_from_module(name) for name in named]
    unknown = blocked - {candidate.name for candidate in candidates}
    if unknown:
        name = sorted(unknown)[0]
        raise UnknownNameError("plugin", name, [candidate.name for candidate in candidates], where="-p")

    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    catalogs: dict[str, Catalog[Any]] = {kind: Catalog(kind) for kind in KINDS}
    for candidate in candidates:
        if candidate.name in blocked:
            candidate.status = "blocked"
        else:
            _load(candidate, manager, catalogs)
            if candidate.status == "broken" and candidate.distribution == "-p":
                raise PluginError(
                    f"plugin {candidate.name!r} cannot be loaded", where="-p", why=candidate.reason
                )
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
            for candidate in candidates
        ),
        arguments=tuple(arguments),
        _manager=manager,
        **{_plural(kind): catalog for kind, catalog in catalogs.items()},
    )


def _installed(blocked: set[str]) -> list[_Candidate]:
    by_name: dict[str, list[EntryPoint]] = defaultdict(list)
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        # A checkout on the path and the installed package may describe one distribution twice.
        if all(_origin(point) != _origin(other) for other in by_name[point.name]):
            by_name[point.name].append(point)
    candidates = []
    for name, points in by_name.items():
        if len(points) > 1 and name not in blocked:
            homes = ", ".join(sorted(_origin(point)[0] for point in points))
            raise PluginError(
                f"two installed packages register a plugin named {name!r}: {homes}",
                fixes=["uninstall one of them", f"block both: -p no:{name}"],
            )
        distribution, version = _origin(points[0])
        candidates.append(
            _Candidate(name=name, distribution=distribution, version=version, load=points[0].load)
        )
    return candidates


def _origin(point: EntryPoint) -> tuple[str, str]:
    return (point.dist.name, point.dist.version) if point.dist else ("unknown", "")


def _from_module(name: str) -> _Candidate:
    return _Candidate(
        name=name, distribution="-p", version="", load=lambda: importlib.import_module(name)
    )


def _load(
    candidate: _Candidate, manager: pluggy.PluginManager, catalogs: dict[str, Catalog[Any]]
) -> None:
    """Load one plugin and collect its components; what it does wrong becomes its `reason`."""
    try:
        with _kept_random_state():
            loaded = candidate.load()
            plugin = loaded() if inspect.isclass(loaded) else loaded
            manager.register(plugin, name=candidate.name)
            found = list(_collect(candidate, plugin, manager))
    # BaseException: a plugin that calls sys.exit() at import must not end the host.
    except (Exception, SystemExit) as error:
        if manager.has_plugin(candidate.name):
            manager.unregister(name=candidate.name)
        candidate.status = "broken"
        candidate.reason = _describe(error)
        return
    provider = Provider(
        name="", plugin=candidate.name, distribution=candidate.distribution, version=candidate.version
    )
    for kind, item in found:
        catalogs[kind].add(item, _renamed(provider, item.name))
    candidate.hooks = tuple(caller.name for caller in manager.get_hookcallers(plugin) or ())
    candidate.components = tuple((kind, item.name, item.summary) for kind, item in found)


def _collect(
    candidate: _Candidate, plugin: object, manager: pluggy.PluginManager
) -> Iterator[tuple[str, Any]]:
    """Yield the checked components of one registered plugin."""
    known = {name for name, _ in inspect.getmembers(hookspecs, inspect.isfunction) if name.startswith("harness_")}
    callers = {caller.name: caller for caller in manager.get_hookcallers(plugin) or ()}
    for name in callers:
        if name not in known:
            raise UnknownNameError("hook", name, known)
    for kind, expected in KINDS.items():
        hook = f"harness_{_plural(kind)}"
        if hook not in callers:
            continue
        for implementation in callers[hook].get_hookimpls():
            if implementation.plugin is not plugin:
                continue
            items = implementation.function()
            if not isinstance(items, Iterable):
                raise TypeError(f"{hook} returned {type(items).__name__}, not an iterable of {expected.__name__}")
            for item in items:
                if not isinstance(item, expected | Family):
                    raise TypeError(f"{hook} yielded {type(item).__name__}, not {expected.__name__}")
                yield kind, item


@contextmanager
def _kept_random_state() -> Iterator[None]:
    """Restore Python's, NumPy's and torch's generators: a plugin must not shift anyone's random numbers."""
    python = random.getstate()
    numpy = sys.modules.get("numpy")
    torch = sys.modules.get("torch")
    numpy_state = numpy.random.get_state() if numpy else None
    # While torch is being imported by another thread it is in sys.modules without its parts.
    torch_state = torch.get_rng_state() if torch and hasattr(torch, "get_rng_state") else None
    try:
        yield
    finally:
        random.setstate(python)
        if numpy and numpy_state is not None:
            numpy.random.set_state(numpy_state)
        if torch and torch_state is not None:
            torch.set_rng_state(torch_state)


def _plural(kind: str) -> str:
    return _PLURAL.get(kind, f"{kind}s")


def _renamed(provider: Provider, name: str) -> Provider:
    return Provider(
        name=name,
        plugin=provider.plugin,
        distribution=provider.distribution,
        version=provider.version,
    )


def _describe(error: BaseException) -> str:
    text = str(error).splitlines()[0] if str(error) else ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
