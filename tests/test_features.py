from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from harness.engine.features import Features


class Prefix:
    """Gives features (N, 2, 3) of a mapped file, and counts how often it is asked."""

    def __init__(self, device="cpu"):
        self.asked = []
        self._device = device

    def fetch_all(self, split, view):
        self.asked.append((split, view))
        return [torch.zeros(5, 2, 3, device=self._device)]


def make(prefix, claim, views=None):
    # A device without memory of its own: what is sent there can be told from what is not.
    images = SimpleNamespace(
        labels={"train": torch.zeros(5), "val": torch.zeros(5)},
        device=torch.device("meta"),
        view=lambda epoch: epoch % views if views else epoch,
        views_recur=views is not None,
    )
    return Features(images, prefix, claim)


@pytest.mark.parametrize(("fits", "device"), [(True, "meta"), (False, "cpu")])
def test_features_stay_on_the_device_where_they_fit(fits, device):
    prefix, claims = Prefix(), []

    def claim(size):
        claims.append(size)
        return fits

    features = make(prefix, claim)
    for epoch in range(3):
        assert features.train(epoch).device.type == device
        assert features.train(epoch).shape == (5, 6)
        assert features.split("val").device.type == device
    # Of a split whose views change one is there at a time.
    assert claims == [5 * 6 * 4] * 2
    assert prefix.asked == [("train", 0), ("val", 0), ("train", 1), ("train", 2)]


def test_views_that_come_again_are_read_and_sent_once():
    prefix, claims = Prefix(), []
    features = make(prefix, lambda size: claims.append(size) or True, views=2)
    first, second = features.train(0), features.train(1)
    assert features.train(8) is first
    assert features.train(7) is second
    assert prefix.asked == [("train", 0), ("train", 1)]
    assert claims == [5 * 6 * 4] * 2, "each has room of its own"


@pytest.mark.parametrize("fits", [True, False])
def test_views_that_were_computed_on_the_device_stay_where_they_fit(fits):
    prefix = Prefix("meta")
    features = make(prefix, lambda size: fits, views=2)
    for epoch in range(4):
        features.train(epoch)
    assert len(prefix.asked) == (2 if fits else 4)


def test_what_was_computed_on_the_device_needs_no_room():
    features = make(Prefix("meta"), lambda size: pytest.fail("asked for room"))
    assert features.train(0).device.type == "meta"
