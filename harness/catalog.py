"""The components of one kind, by name, each with the plugin it came from."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Generic, TypeVar

from harness.errors import PluginError, UnknownNameError, UsageError
from harness.isolation import describe_error, registering
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


def plural(kind: str) -> str:
    """Return the plural of a kind, as its hook has it."""
    return _PLURAL.get(kind, f"{kind}s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Component(Generic[SpecT]):
    """A spec and where it came from."""

    spec: SpecT
    provider: Provider


@dataclass(slots=True)
class Catalog(Generic[SpecT]):
    """All components of one kind, by name.

    A component that stands alone is found before a member of a family, so that looking it up does not list
    all of timm. `family:name` always means the member.
    """

    kind: str
    _specs: dict[str, Component[SpecT]] = field(default_factory=dict)
    _families: dict[str, tuple[Family[SpecT], Provider]] = field(default_factory=dict)
    _members: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _failures: dict[str, str] = field(default_factory=dict)

    def names(self) -> list[str]:
        """Return all names, members of families included; may import what is heavy."""
        return sorted({*self._specs, *(name for family in self._families for name in self.members(family))})

    def specs(self) -> list[Component[SpecT]]:
        """Return the components that belong to no family."""
        return [self._specs[name] for name in sorted(self._specs)]

    def families(self) -> list[str]:
        """Return the names of the families."""
        return sorted(self._families)

    def members(self, family: str) -> tuple[str, ...]:
        """Return the names a family lists; none, and a warning said once, where listing fails."""
        if family not in self._members:
            described, provider = self._families[family]
            try:
                with registering():
                    members = tuple(described.members())
                    for name in members:
                        if not isinstance(name, str):
                            raise TypeError(f"members() listed {name!r}, which is no name")
            except (Exception, SystemExit) as error:
                members = ()
                self._failures[family] = (
                    f"family {family!r} of plugin {provider.plugin!r} could not be listed: "
                    f"{describe_error(error)}"
                )
                logger.warning("%s", self._failures[family])
            self._members[family] = members
        return self._members[family]

    def get(self, name: str, *, where: str = "") -> Component[SpecT]:
        """Return the component called `name` or `family:name`.

        Raises:
            UnknownNameError: There is none; names the nearest.
            UsageError: Two families have it.
            PluginError: A family cannot describe its member.
        """
        if name in self._specs:
            return self._specs[name]
        prefix, colon, rest = name.partition(":")
        if colon and prefix in self._families:
            if rest not in self.members(prefix):
                known = [f"{prefix}:{member}" for member in self.members(prefix)]
                more = self._failures.get(prefix) or self._listing()
                raise UnknownNameError(self.kind, name, known, where=where, more=more)
            return self._describe(prefix, rest, name, where)
        homes = [family for family in self._families if name in self.members(family)]
        if len(homes) > 1:
            choices = " or ".join(f"{family}:{name}" for family in sorted(homes))
            raise UsageError(f"{self.kind} {name!r} is ambiguous", where=where, fixes=[f"write {choices}"])
        if not homes:
            more = "; ".join(self._failures.values()) or self._listing()
            raise UnknownNameError(self.kind, name, self.names(), where=where, more=more)
        return self._describe(homes[0], name, name, where)

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
            found = [f"{prefix}:{name}" for name in self.members(prefix) if fnmatchcase(name, rest)]
        else:
            found = [name for name in self.names() if fnmatchcase(name, pattern)]
        if not found:
            more = "; ".join(self._failures.values()) or self._listing()
            raise UnknownNameError(self.kind, pattern, self.names(), where=where, more=more)
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

    def _listing(self) -> str:
        """Say how to list the components."""
        commands = {"backbone": "harness models list --all", "dataset": "harness data list"}
        return f"list what there is: {commands.get(self.kind, 'harness plugins list')}"

    def _describe(self, family: str, member: str, name: str, where: str) -> Component[SpecT]:
        described, provider = self._families[family]
        expected = KINDS[self.kind]
        try:
            with registering():
                spec = described.spec(member)
            if not isinstance(spec, expected):
                raise TypeError(f"spec() returned {type(spec).__name__}, not {expected.__name__}")
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"family {family!r} cannot describe {self.kind} {member!r}",
                where=where or f"plugin {provider.plugin} ({provider.distribution} {provider.version})",
                why=describe_error(error),
                fixes=[f"choose another {self.kind}, or report this to {provider.distribution}"],
            ) from error
        return Component(spec=spec, provider=replace(provider, name=name))
