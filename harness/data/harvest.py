"""What a scan decodes anyway, shrunk and kept until banks have taken it over."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from functools import partial
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from harness.data.bank import Bank, Recipe, reduce_image
from harness.data.decode import Pixels
from harness.data.manifest import Item, Manifest
from harness.documents import digest
from harness.errors import StorageError


class Harvest:
    """Images of one data set on their way from a scan into banks; a context, which leaves nothing behind.

    Only a shortcut: where its folder cannot be written, or another process holds it, it takes nothing, and
    banks decode for themselves.

    Args:
        dataset: What is scanned; two studies that begin on one data set do not both keep it.
        recipes: Of the banks that will be wanted.
        home: Folder of all banks and caches.
    """

    def __init__(self, dataset: str, recipes: Iterable[Recipe], home: Path) -> None:
        self._home = home
        # Named and locked like a bank that is being made, so that clearing the cache passes it over.
        name = f"scan-{digest(dataset)[:24]}"
        self._folder = home / "bank" / f".{name}.part"
        self._lock_file = home / "bank" / f".{name}.lock"
        self._recipes = sorted(set(recipes))
        self._files: dict[Recipe, FileIO] = {}
        self._places: dict[tuple[Recipe, str], tuple[int, int, int]] = {}
        self._writing = threading.Lock()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        from filelock import FileLock, Timeout

        try:
            self._lock_file.parent.mkdir(parents=True, exist_ok=True)
            self._stack.enter_context(FileLock(self._lock_file).acquire(timeout=0))
            self._stack.callback(shutil.rmtree, self._folder, ignore_errors=True)
            # What is there is of a process that was killed.
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir()
            for number, recipe in enumerate(self._recipes):
                # Without a buffer: on a full disk its rest would fail once more when the file is closed.
                file = (self._folder / f"{number}.bin").open("wb+", buffering=0)
                self._files[recipe] = self._stack.enter_context(file)
        except (OSError, Timeout):
            self._files.clear()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def add(self, sha256: str, pixels: Pixels) -> None:
        """Take an image that was decoded; from any thread.

        Args:
            sha256: Of its content.
            pixels: uint8 (H, W, 3).
        """
        for recipe, file in [*self._files.items()]:
            try:
                image = reduce_image(pixels, *recipe)
                content = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
                with self._writing:
                    start = file.seek(0, 2)
                    if file.write(content.data) != content.nbytes:
                        raise OSError("the disk is full")
                    self._places[recipe, sha256] = start, content.shape[0], content.shape[1]
            # A full disk, or an image that cannot be shrunk: who makes the bank will say so.
            except (OSError, RuntimeError, ValueError):
                self._files.pop(recipe, None)

    def fill(self, manifest: Manifest) -> None:
        """Make the banks of train and val, where all images of the split were decoded just now.

        The test split stays sealed: its images are decoded again when it is opened.
        """
        for recipe, file in self._files.items():
            for split in ("train", "val"):
                items = manifest.of(split)
                if items and all((recipe, item.sha256) in self._places for item in items):
                    # There may be room for the bank where there is none for both.
                    with suppress(StorageError):
                        Bank.open(items, *recipe, self._home, reduced=partial(self._read, recipe, file))

    def _read(self, recipe: Recipe, file: FileIO, item: Item) -> Tensor:
        start, height, width = self._places[recipe, item.sha256]
        with self._writing:
            file.seek(start)
            content = file.read(height * width * 3) or b""
        image = torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(height, width, 3)
        return image.permute(2, 0, 1)
