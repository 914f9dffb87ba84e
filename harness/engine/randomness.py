"""Random numbers of one head among several that train together."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import numpy.typing as npt
import torch


class RandomState:
    """The global generators as one head sees them: a context in which they go on where it left them.

    It leaves Python's and torch's where it got to: whoever uses it many times restores them once.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._device = device
        self._python = random.Random(seed).getstate()
        self._torch = torch.Generator().manual_seed(seed).get_state()
        self._cuda = torch.Generator(device).manual_seed(seed).get_state() if device.type == "cuda" else None
        self._numpy = np.random.MT19937(_Unseeded())  # type: ignore[arg-type]
        np.random.RandomState(self._numpy).seed(seed)

    def __enter__(self) -> None:
        # An exchange of NumPy's generators: to copy their state takes fifty times longer.
        self._outer = np.random.get_bit_generator()  # type: ignore[attr-defined]
        np.random.set_bit_generator(self._numpy)  # type: ignore[attr-defined]
        random.setstate(self._python)
        torch.set_rng_state(self._torch)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)

    def __exit__(self, *_: object) -> None:
        np.random.set_bit_generator(self._outer)  # type: ignore[attr-defined]
        self._python, self._torch = random.getstate(), torch.get_rng_state()
        if self._cuda is not None:
            self._cuda = torch.cuda.get_rng_state(self._device)


class _Unseeded(np.random.bit_generator.ISeedSequence):
    """Seeds of zeros, for a generator that is seeded in another way afterwards.

    To draw good ones takes half of the time in which a head is set up.
    """

    def generate_state(self, n_words: int, dtype: npt.DTypeLike = np.uint32) -> npt.NDArray[Any]:
        """Return zeros."""
        return np.zeros(n_words, dtype)
