"""Call what the plugin of a backbone wrote: what it does wrong is an error that names both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import HarnessError, PluginError
from harness.isolation import describe_error
from harness.registry import Component
from harness.specs import BackboneSpec

if TYPE_CHECKING:
    from torch import nn


def build_backbone(
    backbone: Component[BackboneSpec], num_classes: int, weights: Path | None, image_size: int
) -> nn.Module:
    """Build a backbone.

    Raises:
        PluginError: It cannot be built.
        HarnessError: What its plugin says itself: of a checkpoint that does not fit, say.
    """
    with blamed(backbone, f"cannot be built for images of {image_size} px"):
        return backbone.spec.build(num_classes, weights, image_size)


def find_cached(backbone: Component[BackboneSpec]) -> Path | None:
    """Return the file of a backbone's own weights; None where it has to be fetched, or there are none.

    Raises:
        PluginError: Its plugin fails, or names no file.
    """
    weights = backbone.spec.weights
    with blamed(backbone, "cannot say whether its weights are here"):
        file = weights.cached() if weights else None
        if file is not None and not (isinstance(file, Path) and file.is_file()):
            raise TypeError(f"cached() returned {file!r}, neither the Path of a file nor None")
    return file


@contextmanager
def blamed(backbone: Component[BackboneSpec], what: str) -> Iterator[None]:
    """Make of any error but our own one that names the backbone and its plugin."""
    try:
        yield
    except HarnessError:
        raise
    except Exception as error:
        home = backbone.provider
        package = f"{home.distribution} {home.version}".strip()
        raise PluginError(
            f"backbone {home.name!r} {what}",
            where=f"plugin {home.plugin} ({package})",
            why=describe_error(error),
            fixes=["leave the backbone out", "report it to the author of the plugin"],
        ) from error
