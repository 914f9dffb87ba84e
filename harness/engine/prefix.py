"""The frozen part of a model: run once for each image and view, then read from the store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from harness.data.views import send
from harness.documents import digest
from harness.engine.cost import Bandwidth, is_worth_storing
from harness.engine.freeze import set_train_mode
from harness.engine.model import FrozenPart
from harness.engine.precision import autocast
from harness.engine.source import Images
from harness.engine.store import ActivationStore, Entry, EntrySpec, TensorSpec
from harness.engine.trace import TracedHalf, join_prefixes
from harness.isolation import kept_random_state

SCHEMA = "harness.activations/1"

Chunk: TypeAlias = tuple[int, list[list[Tensor]]]
"""First row, and for each part its tensors with a row an image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """How often what a prefix computes will be read."""

    epochs: int
    trials: float
    """Of the study, this one included, that have the same backbone and freeze depth."""

    def reads(self, views: int) -> float:
        """Return how many times each image is read in each of its views."""
        return self.trials * self.epochs / views


@dataclass(slots=True)
class PrefixCounts:
    """What a prefix has done."""

    passes: int = 0
    """Batches of images that went through."""
    seconds: float = 0.0
    """Spent in them, with the making of the images."""


class Prefix:
    """Gives what crosses a cut, in batches that are the same whether they are stored or not.

    A batch of training images runs in a pass of `batch_size`, and one of validation images in that of its own
    place, stored or not: other passes would give other last bits.

    Args:
        model: A copy that nobody trains, on the device.
        part: The freeze depth of the training.
        parts: Freeze depths of the study, whose values are stored in the same pass.
        images: What the model reads.
        store: Of activations; None computes all on the spot.
        facts: All that the activations depend on beside the frozen part, the images and their order.
        sharing: Decides with the measured cost whether storing is worth it.
        batch_size: Of the training.
        precision: `fp32` or `bf16`.
        bandwidth: Of the store, as measured so far.
        on_step: Called after each pass.
    """

    def __init__(
        self,
        model: nn.Module,
        part: FrozenPart,
        parts: Sequence[FrozenPart],
        images: Images,
        *,
        store: ActivationStore | None,
        facts: Mapping[str, str],
        sharing: Sharing,
        batch_size: int,
        precision: str,
        bandwidth: Bandwidth,
        on_step: Callable[[], None],
    ) -> None:
        self._model, self._part, self._parts, self._images = model, part, parts, images
        self._store, self._facts, self._sharing = store, facts, sharing
        self._batch_size, self._precision = batch_size, precision
        self._bandwidth, self._on_step = bandwidth, on_step
        self._bound: dict[bool, Callable[[Tensor], Sequence[Any]]] = {}
        self._entries: dict[tuple[str, int], Entry | None] = {}
        self._declined: set[str] = set()
        self.counts = PrefixCounts()
        self._warm: set[str] = set()

    def fetch(self, split: str, view: int, rows: Sequence[int]) -> list[Tensor]:
        """Return the tensors of some rows, on the device."""
        entry = self._entry(split, view)
        half = self._part.cut.half(split == "train")
        if entry is None:
            run = self._run(training=split == "train")
            return half.boundary.pack(self._pass(split, view, rows, self._part, run))
        names = [str(number) for number in range(len(half.boundary.rows))]
        return [send(entry.gather(name, list(rows)), self._images.device) for name in names]

    def fetch_all(self, split: str, view: int) -> list[Tensor]:
        """Return the tensors of all rows: mapped ones where they are stored, else on the device."""
        entry = self._entry(split, view)
        half = self._part.cut.half(split == "train")
        if entry is not None:
            return [entry.mapped(str(number)) for number in range(len(half.boundary.rows))]
        run = self._run(training=split == "train")
        size = len(self._images.labels[split])
        parts: list[list[Tensor]] = []
        for start, (packed,) in self._chunks(split, view, [self._part], lambda images: [run(images)]):
            parts.append([tensor[: size - start] for tensor in packed])
        return [torch.cat(tensors) for tensors in zip(*parts, strict=True)]

    def _run(self, *, training: bool) -> Callable[[Tensor], Sequence[Any]]:
        """Return what runs the prefix; where all is stored it is never asked for."""
        if training not in self._bound:
            self._bound[training] = self._part.cut.half(training).bind_prefix(self._model)
        return self._bound[training]

    def _pass(
        self,
        split: str,
        view: int,
        rows: Sequence[int],
        deepest: FrozenPart,
        run: Callable[[Tensor], Sequence[Any]],
        *,
        wait: bool = False,
    ) -> Sequence[Any]:
        """Send a batch of images through the model as far as its deepest cut; where asked, wait for a GPU."""
        began = time.perf_counter()
        if split == "train":
            set_train_mode(self._model, deepest.plan)
        else:
            self._model.eval()
        (images,) = self._images.fetch(split, view, rows)
        # A replayed prefix runs what trains as well, where that comes first.
        with torch.no_grad(), autocast(self._precision, self._images.device), kept_random_state():
            values = run(images)
        if wait and self._images.device.type == "cuda":
            torch.cuda.synchronize(self._images.device)
        self.counts.passes += 1
        self.counts.seconds += time.perf_counter() - began
        self._on_step()
        return values

    def _entry(self, split: str, view: int) -> Entry | None:
        """Return the stored view, storing it the first time; None where that is not worth it."""
        # The test split is opened once: its activations are nobody else's.
        if self._store is None or split == "test":
            return None
        if (split, view) not in self._entries:
            own = self._key(self._part, split, view)
            entry = self._store.open(own)
            if entry is None and split not in self._declined:
                others = {self._key(part, split, view): part for part in self._parts}
                others.pop(own, None)
                entry = self._fill(self._store, split, view, others)
                for key in others:
                    # Nothing of this training reads them.
                    self._store.release(key)
                if entry is None:
                    self._declined.add(split)
            self._let_go(self._store, split)
            self._entries[split, view] = entry
        return self._entries[split, view]

    def _let_go(self, store: ActivationStore, split: str) -> None:
        """Unmap the other views of a split: who goes on to the next one has done with them for an epoch."""
        for key in [key for key in self._entries if key[0] == split]:
            if self._entries.pop(key) is not None:
                store.release(self._key(self._part, *key))

    def _fill(
        self, store: ActivationStore, split: str, view: int, others: Mapping[str, FrozenPart]
    ) -> Entry | None:
        """Store a view for this and, by key, the other freeze depths, where that is worth it."""
        reads = self._sharing.reads(self._images.views(self._sharing.epochs) if split == "train" else 1)
        if reads <= 1:
            return None
        absent = [part for key, part in others.items() if store.open(key) is None]
        parts, run = self._join([self._part, *absent], training=split == "train")
        if self._images.device.type == "cuda" and split not in self._warm:
            # The first pass brings the images there, loads kernels and tries algorithms: its time says
            # nothing of the others.
            next(self._chunks(split, view, parts, run))
            self._warm.add(split)
        before = self.counts.seconds
        chunks = self._chunks(split, view, parts, run)
        first = next(chunks)
        rows = len(self._images.labels[split])
        seconds = (self.counts.seconds - before) / min(self._batch_size, rows)
        shares = [_relative(part, parts) for part in parts]
        specs = [
            self._spec(part, split, view, packed, seconds=seconds * share * rows)
            for part, packed, share in zip(parts, first[1], shares, strict=True)
        ]
        worth = [
            is_worth_storing(
                seconds=spec.seconds / rows,
                size=spec.bytes / rows,
                reads=reads,
                bandwidth=self._bandwidth.value,
            )
            for spec in specs
        ]
        if not worth[0]:
            return None
        chosen = {number: spec for number, spec in enumerate(specs) if worth[number]}
        with store.fill(list(chosen.values()), self._on_step) as filling:
            # Another process may have written them meanwhile.
            for start, packed in _after(first, chunks) if filling.missing else ():
                for number, spec in chosen.items():
                    if spec.key in filling.missing:
                        for name, tensor in zip(spec.tensors, packed[number], strict=True):
                            wanted = tensor[: rows - start]
                            with self._bandwidth.measured(wanted.nbytes):
                                filling.write(spec.key, name, start, wanted)
            spent = self.counts.seconds - before
            filling.seconds.update({spec.key: spent * shares[number] for number, spec in chosen.items()})
            written = time.perf_counter()
        # Until it is on the disk.
        self._bandwidth.note(0, time.perf_counter() - written)
        return store.open(specs[0].key)

    def _join(
        self, parts: Sequence[FrozenPart], *, training: bool
    ) -> tuple[list[FrozenPart], Callable[[Tensor], Sequence[Sequence[Any]]]]:
        """Return the parts whose values one pass can give, this training's first, and the pass."""
        halves = [part.cut.half(training) for part in parts]
        traced = [half for half in halves if isinstance(half, TracedHalf)]
        if len(traced) == len(halves) > 1:
            numbers, joined = join_prefixes(traced)
            if 0 in numbers:
                return [parts[number] for number in numbers], joined.bind_prefix(self._model)
        run = self._run(training=training)
        return [self._part], lambda images: [run(images)]

    def _chunks(
        self,
        split: str,
        view: int,
        parts: Sequence[FrozenPart],
        run: Callable[[Tensor], Sequence[Sequence[Any]]],
    ) -> Iterator[Chunk]:
        """Send a split through in its order."""
        training = split == "train"
        deepest = max(parts, key=lambda part: part.plan.n_frozen)
        size = len(self._images.labels[split])
        for start in range(0, size, self._batch_size):
            rows = list(range(start, min(start + self._batch_size, size)))
            if training:
                # As many as in any batch of the training.
                rows += [rows[-1]] * (min(self._batch_size, size) - len(rows))
            values = self._pass(split, view, rows, deepest, run, wait=True)
            pairs = zip(parts, values, strict=True)
            yield start, [part.cut.half(training).boundary.pack(own) for part, own in pairs]

    def _spec(
        self, part: FrozenPart, split: str, view: int, packed: Sequence[Tensor], *, seconds: float
    ) -> EntrySpec:
        tensors = {
            str(number): TensorSpec(shape=tuple(tensor.shape[1:]), dtype=tensor.dtype)
            for number, tensor in enumerate(packed)
        }
        return EntrySpec(
            key=self._key(part, split, view),
            rows=len(self._images.labels[split]),
            tensors=tensors,
            facts={**self._facts, "split": split, "view": str(view), "freeze_depth": f"{part.plan.depth:g}"},
            seconds=seconds,
        )

    def _key(self, part: FrozenPart, split: str, view: int) -> str:
        name = part.digests[split == "train"]
        return digest([SCHEMA, dict(self._facts), name, self._images.key(split, view)])[:40]


def _relative(part: FrozenPart, parts: Sequence[FrozenPart]) -> float:
    """Return which share of the longest pass is spent up to this part's cut."""
    if part.flops is None:
        return 1.0
    longest = max((other.flops.frozen_share for other in parts if other.flops), default=0.0)
    return part.flops.frozen_share / longest if longest else 1.0


def _after(first: Chunk, rest: Iterator[Chunk]) -> Iterator[Chunk]:
    yield first
    yield from rest
