"""Check that the components of a study or a run are here, and still those that it was made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from harness.discovery import NAMED, canonical_name
from harness.errors import UnknownNameError, UsageError
from harness.records import Provider, TrialRecord
from harness.registry import Registry
from harness.search.folder import StudyFolder
from harness.search.space import COMPONENTS


def check_run_components(record: TrialRecord, registry: Registry) -> None:
    """Check that all that a run was made of is here.

    Raises:
        UnknownNameError: A component is not; names the plugin that it came from.
    """
    homes = _homes([record])
    used = [(kind, getattr(record.config, field)) for field, kind in COMPONENTS.items()]
    _check_known(used, homes, registry, where="the record of the run", command="study rerun")


def check_study_components(folder: StudyFolder, registry: Registry, *, command: str) -> None:
    """Check that the components of a study are here, and come from the plugins that it began with.

    Args:
        folder: Of the study.
        registry: The plugins.
        command: That goes on with it, for what there is to do.

    Raises:
        UnknownNameError: A component is not here; names the plugin that it came from.
        UsageError: Another plugin provides it now.
    """
    # What failed may have failed because of the plugin that is gone now.
    homes = _homes(record for record in folder.records() if record.state != "failed")
    used = [
        (COMPONENTS[axis.name], str(name))
        for axis in folder.space.axes
        if axis.name in COMPONENTS
        for name in axis.choices
    ]
    _check_known(used, homes, registry, where=str(folder.path), command=command)
    loaded = {info.name for info in registry.plugins if info.status == "ok"}
    moved, fixes = [], []
    for kind, name in used:
        now = registry.catalog(kind).get(name).provider
        then = homes.get((kind, name), now)
        if not _is_same(then, now):
            moved.append(f"{kind} {name!r}: {_said(then)} then, {_said(now)} now")
            fixes.append(_without(now) if then.plugin in loaded else _with(then, command))
    if moved:
        raise UsageError(
            f"study {folder.name!r} began with components of other plugins",
            where=str(folder.path),
            why="; ".join(moved),
            fixes=list(dict.fromkeys(fixes)),
        )


def _homes(records: Iterable[TrialRecord]) -> dict[tuple[str, str], Provider]:
    """Return who provided the components of records, by kind and name; the first one counts."""
    homes: dict[tuple[str, str], Provider] = {}
    for record in records:
        for field, kind in COMPONENTS.items():
            if kind in record.providers:
                homes.setdefault((kind, getattr(record.config, field)), record.providers[kind])
    return homes


def _check_known(
    used: Iterable[tuple[str, str]],
    homes: Mapping[tuple[str, str], Provider],
    registry: Registry,
    *,
    where: str,
    command: str,
) -> None:
    for kind, name in used:
        try:
            registry.catalog(kind).get(name)
        except UnknownNameError:
            home = homes.get((kind, name))
            if home is None:
                raise
            raise UnknownNameError(kind, name, (), where=where, more=_with(home, command)) from None


def _is_same(then: Provider, now: Provider) -> bool:
    # Not the version: an upgrade must not end all studies there are. Records tell it. Nor whether a module
    # was named or has been packaged since.
    homes = {canonical_name(then.distribution), canonical_name(now.distribution)}
    return then.plugin == now.plugin and (len(homes) == 1 or NAMED in homes)


def _said(provider: Provider) -> str:
    return f"{provider.plugin} ({provider.distribution})"


def _with(provider: Provider, command: str) -> str:
    """Say how to have a plugin."""
    if provider.distribution == NAMED:
        return f"load its plugin: harness -p {provider.plugin} {command} ..."
    return f"install {provider.distribution} {provider.version}"


def _without(provider: Provider) -> str:
    """Say how to be without a plugin."""
    is_named = provider.distribution == NAMED
    return f"leave out -p {provider.plugin}" if is_named else f"block it: -p no:{provider.plugin}"
