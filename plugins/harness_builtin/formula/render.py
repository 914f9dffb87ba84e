"""Draw images of the source task: vectorised torch, the same code on a CPU and a GPU.

Fractals after Kataoka et al., Pre-training without natural images, ACCV 2020, and Anderson and Farrell,
Improving fractal pre-training, WACV 2022; radial contours after Kataoka et al., Replacing labeled real-image
datasets with auto-generated contours, CVPR 2022; dead leaves after Lee, Mumford and Huang, Occlusion models
for natural images, IJCV 2001, and Baradad et al., Learning to see by looking at noise, NeurIPS 2021; warped
waves after Takashima et al., Visual atoms, CVPR 2023.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from harness_builtin.formula.classes import FAMILIES, Classes, draw_uniform

SIDE = 64
"""Width and height of an image, in pixels."""

_WALKERS = 256
_STEPS = 64
_SETTLING = 16
_LEAVES = 18
_TAU = 2 * math.pi


class Renderer:
    """Draws images of all classes on one device."""

    def __init__(self, classes: Classes, device: str | torch.device = "cpu") -> None:
        def tensor(values: object) -> Tensor:
            return torch.as_tensor(np.asarray(values), dtype=torch.float32, device=device)

        self._uniform = {family: tensor(rows) for family, rows in classes.uniform.items()}
        self._affine, self._share = tensor(classes.affine), tensor(classes.share)
        # The choices of the chaos game are the same for every image, so they need not be drawn each time.
        choices = draw_uniform("classes", 10**6, _STEPS * _WALKERS)
        self._choices = tensor(choices.reshape(_STEPS, _WALKERS))
        axis = (torch.arange(SIDE, device=device, dtype=torch.float32) + 0.5) / SIDE * 2 - 1
        self._y, self._x = torch.meshgrid(axis, axis, indexing="ij")
        self._draw: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            "fractal": self._fractals,
            "atom": self._atoms,
            "leaves": self._leaves,
            "wave": self._waves,
        }

    def render(self, labels: Tensor, latents: Tensor) -> Tensor:
        """Draw images.

        Args:
            labels: Class numbers, int64 of shape (n,).
            latents: float64 in [0, 1) of shape (n, 64): their leading 32 bits seed the noise.

        Returns:
            uint8 of shape (n, 3, 64, 64).
        """
        device = self._x.device
        labels, latents = labels.to(device), latents.to(device)
        images = torch.empty(len(labels), 3, SIDE, SIDE, dtype=torch.uint8, device=device)
        first = 0
        for family, count in FAMILIES.items():
            rows = ((labels >= first) & (labels < first + count)).nonzero()[:, 0]
            if len(rows):
                pixels = self._draw[family](labels[rows] - first, latents[rows])
                images[rows] = self._develop(pixels, latents[rows])
            first += count
        return images

    def _fractals(self, label: Tensor, latents: Tensor) -> Tensor:
        u = latents.float()
        n = len(label)
        affine = self._affine[label].clone()
        # An instance is a slightly different system.
        wobble = _hashed(latents[:, 60], 8 * 6).view(n, 8, 2, 3) - 0.5
        affine[..., :2] *= 1 + 0.16 * wobble[..., :2]
        affine[..., 2] += 0.16 * wobble[..., 2]
        reach = self._share[label].cumsum(1)[:, :-1].contiguous()
        a, b, e, c, d, f = (part.contiguous() for part in affine.flatten(2).unbind(2))
        x = torch.zeros(n, _WALKERS, device=u.device)
        y, visits = x, []
        for step in range(_STEPS):
            chosen = torch.searchsorted(reach, self._choices[step].expand(n, -1).contiguous(), right=True)
            x, y = (
                a.gather(1, chosen) * x + b.gather(1, chosen) * y + e.gather(1, chosen),
                c.gather(1, chosen) * x + d.gather(1, chosen) * y + f.gather(1, chosen),
            )
            if step >= _SETTLING:
                visits.append(torch.stack([x, y], -1))
        cloud = torch.cat(visits, 1)
        centre = cloud.mean(1, keepdim=True)
        spread = cloud.std(1, keepdim=True).amax(2, keepdim=True).clamp_min(1e-3)
        x, y = ((cloud - centre) / spread / 2.1).unbind(-1)
        # `_placed` takes pixels to the object; points go the other way.
        size, angle, dx, dy = _view(u)
        cosine, sine = angle.cos(), angle.sin()
        px = (x * cosine - y * sine) * size + dx
        py = (x * sine + y * cosine) * size + dy
        column, line = ((px + 1) * SIDE / 2).floor().long(), ((py + 1) * SIDE / 2).floor().long()
        inside = (column >= 0) & (column < SIDE) & (line >= 0) & (line < SIDE)
        cell = torch.where(inside, line * SIDE + column, SIDE * SIDE)
        counts = torch.zeros(n, SIDE * SIDE + 1, device=u.device)
        counts.scatter_add_(1, cell, torch.ones_like(px))
        density = counts[:, :-1].view(n, SIDE, SIDE).log1p()
        density = density / density.flatten(1).amax(1).clamp_min(0.1)[:, None, None]
        soft = _blurred(density)
        mix = u[:, 5, None, None]
        density = mix * soft + (1 - mix) * density
        tone = (density ** (0.5 + u[:, 6, None, None])).clamp(0, 1)
        cover = (density * (2.5 + 4 * u[:, 7, None, None])).clamp(0, 1)
        colour = self._toned(self._palette("fractal", label, latents), tone)
        colour = colour * self._lit(soft * 6, u)
        return _over(self._background(latents), cover, colour)

    def _atoms(self, label: Tensor, latents: Tensor) -> Tensor:
        u, c = latents.float(), self._uniform["atom"][label]
        x, y = self._placed(u)
        radius, angle = (x * x + y * y + 1e-8).sqrt(), y.atan2(x)

        def of_class(index: int) -> Tensor:
            return c[:, index, None, None]

        first, second = (of_class(0) * 9).floor() + 2, (of_class(1) * 14).floor() + 3
        jitter = 1 + 0.2 * (u[:, 10, None, None] - 0.5)
        edge = (
            1
            + (0.05 + 0.35 * of_class(2)) * jitter * (first * angle).sin()
            + 0.22 * of_class(3) ** 2 * (second * angle + _TAU * of_class(4)).sin()
        )
        depth = radius / (edge * 0.8)
        bands = (of_class(5) * 6).floor()
        spokes = (of_class(6) * 8).floor()
        twist = (of_class(7) - 0.5) * 8
        phase = _TAU * of_class(8) + 0.6 * u[:, 11, None, None]
        wave = (_TAU * bands * depth ** (0.6 + of_class(9)) + phase).cos()
        ray = (spokes * first.clamp(max=6) * 0.5 * angle + twist * depth + phase).cos()
        share = of_class(10)
        pattern = share * wave * (bands > 0) + (1 - share) * ray * (spokes > 0)
        hard = (pattern * 8).clamp(-1, 1)
        pattern = hard.where(of_class(11) > 0.5, pattern)
        tone = (0.5 + 0.45 * pattern).clamp(0, 1)
        core = (of_class(12) > 0.6) & (depth < 0.15 + 0.25 * of_class(13))
        tone = tone.where(~core, 1 - tone.mean((1, 2), keepdim=True))
        hollow = 0.35 * (of_class(14) > 0.75) * (0.5 + of_class(15))
        cover = ((1 - depth) * 14).clamp(0, 1) * ((depth - hollow) * 14 + 1).clamp(0, 1)
        colour = self._toned(self._palette("atom", label, latents), tone)
        colour = colour * self._lit((1 - depth.clamp(0, 1.3) ** 2) * 2, u)
        return _over(self._background(latents), cover, colour)

    def _leaves(self, label: Tensor, latents: Tensor) -> Tensor:
        u, c = latents.float(), self._uniform["leaves"][label]
        n = len(label)
        palette = self._palette("leaves", label, latents)
        canvas = self._toned(palette, u[:, 9, None, None].expand(n, SIDE, SIDE))
        chance = _hashed(latents[:, 61], _LEAVES * 8).view(n, _LEAVES, 8)
        law = 0.25 + 2.5 * c[:, 3]
        heading = math.pi * c[:, 4] + (u[:, 10] - 0.5)
        order = (c[:, 5] > 0.5).float() * 0.85
        for index in range(_LEAVES):
            k = chance[:, index]
            # Large leaves are at the bottom, so that small ones are seen.
            rank = (index + 0.5) / _LEAVES
            size = (0.75 * (1 - rank) ** law + 0.12) * (0.7 + 0.6 * k[:, 0]) * (0.7 + 0.6 * c[:, 6])
            angle = heading + (1 - order) * _TAU * k[:, 1] + 0.3 * (k[:, 2] - 0.5)
            cover, depth = self._leaf(c, size, angle, 2.2 * k[:, 3] - 1.1, 2.2 * k[:, 4] - 1.1)
            tone = (k[:, 5, None, None] + 0.5 * (c[:, 7, None, None] - 0.5) * depth).clamp(0, 1)
            veins = (_TAU * (1 + (3 * c[:, 8, None, None]).floor()) * depth).cos() * 0.25
            tone = tone + veins * (c[:, 9, None, None] > 0.5)
            light = 0.75 + 0.5 * k[:, 6, None, None] - 0.35 * depth * (c[:, 10, None, None] > 0.4)
            colour = self._toned(palette, tone.clamp(0, 1)) * light[:, None]
            canvas = _over(canvas, cover, colour)
        return canvas

    def _leaf(self, c: Tensor, size: Tensor, angle: Tensor, dx: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
        """Return one leaf's coverage and the distance from its centre in units of its edge."""
        x, y = self._x - dx[:, None, None], self._y - dy[:, None, None]
        cosine, sine = angle.cos()[:, None, None], angle.sin()[:, None, None]
        aspect = (1 + 2 * (c[:, 2] - 0.3).clamp(0, 1))[:, None, None]
        across, along = cosine * x + sine * y, (cosine * y - sine * x) * aspect
        radius, theta = (across * across + along * along + 1e-8).sqrt(), along.atan2(across)
        sides = (c[:, 0] * 6).floor()[:, None, None] + 2
        # A regular polygon, blended with a star of as many rays; two sides stand for an ellipse.
        wedge = (theta % (_TAU / sides)) - math.pi / sides
        polygon = (math.pi / sides).cos() / wedge.cos().clamp_min(0.2)
        star = 1 + 0.45 * (sides * theta).cos()
        share = ((c[:, 1] - 0.4) * 2).clamp(0, 1)[:, None, None]
        edge = ((1 - share) * polygon + share * star).where(sides > 2, radius.new_ones(()))
        depth = radius / (edge * size[:, None, None])
        cover = ((1 - depth) * size[:, None, None] * SIDE * 0.5).clamp(0, 1)
        return cover, depth.clamp(0, 1)

    def _waves(self, label: Tensor, latents: Tensor) -> Tensor:
        u, c = latents.float(), self._uniform["wave"][label]
        x, y = self._placed(u, near=True)

        def of_class(index: int) -> Tensor:
            return c[:, index, None, None]

        field = _noise(latents[:, 62], 4) - 0.5
        warp = (0.1 + 0.9 * of_class(0) ** 2) * (
            (_TAU * (0.4 + of_class(1)) * y + _TAU * u[:, 12, None, None]).sin() * 0.4
            + field * 1.2 * (of_class(2) > 0.5)
        )
        radius = ((x + 0.5 * (u[:, 13, None, None] - 0.5)) ** 2 + y * y + 1e-8).sqrt()
        waves = []
        for start in (3, 8):
            frequency = 0.7 + 4.3 * of_class(start) ** 1.5
            angle = math.pi * of_class(start + 1)
            line = x * angle.cos() + y * angle.sin()
            line = radius.where(of_class(start + 2) > 0.7, line)
            wave = (_TAU * frequency * (line + warp) + _TAU * u[:, start + 11, None, None]).sin()
            hard = (wave * 6).clamp(-1, 1)
            waves.append(hard.where(of_class(start + 3) > 0.6, wave))
        one, other = waves
        ways = (one, one * other, (one + other) / 2, one.maximum(other))
        way = (of_class(13) * 4).floor()
        pattern = one
        for number, combined in enumerate(ways):
            pattern = combined.where(way == number, pattern)
        tone = 0.5 + 0.48 * pattern
        colour = self._toned(self._palette("wave", label, latents), tone)
        return colour * self._lit(pattern * 0.6, u)

    def _placed(self, u: Tensor, *, near: bool = False) -> tuple[Tensor, Tensor]:
        """Return the pixels' coordinates in the frame of an object that is turned, scaled and moved."""
        size, angle, dx, dy = (part[:, 0, None, None] for part in _view(u))
        if near:
            size = 0.7 + 0.7 * u[:, 0, None, None]
        x, y = self._x - dx, self._y - dy
        cosine, sine = angle.cos(), angle.sin()
        tilt = 1 + 0.5 * u[:, 4, None, None] * (not near)
        return (cosine * x + sine * y) / size, (cosine * y - sine * x) / size * tilt

    def _palette(self, family: str, label: Tensor, latents: Tensor) -> Tensor:
        """Return three colours an image, (n, 3, 3): the class's own with some jitter, or any."""
        own = self._uniform[family][label][:, 80:89].view(-1, 3, 3)
        chance = _hashed(latents[:, 59], 18).view(-1, 2, 3, 3)
        near = (own + 0.25 * (chance[:, 0] - 0.5)).clamp(0, 1)
        return near.where(latents.float()[:, 30, None, None] < 0.5, chance[:, 1])

    def _toned(self, palette: Tensor, tone: Tensor) -> Tensor:
        """Map tones (n, S, S) in [0, 1] to colours (n, 3, S, S) along the palette."""
        low, middle, high = palette[..., None, None].unbind(1)
        tone = tone[:, None] * 2
        return (low * (1 - tone) + middle * tone).where(tone < 1, middle * (2 - tone) + high * (tone - 1))

    def _lit(self, height: Tensor, u: Tensor) -> Tensor:
        """Return the light, (n, 1, S, S), that falls from one side on a surface."""
        slope_y, slope_x = torch.gradient(height, dim=(1, 2))
        angle = _TAU * u[:, 20, None, None]
        strength = 2.5 * u[:, 21, None, None] * (u[:, 22, None, None] < 0.6)
        light = 1 + strength * (slope_x * angle.cos() + slope_y * angle.sin())
        slant = self._x * angle.cos() + self._y * angle.sin()
        light = light + 0.5 * (u[:, 23, None, None] - 0.3).clamp(0, 1) * slant
        return light.clamp(0.3, 1.7)[:, None]

    def _background(self, latents: Tensor) -> Tensor:
        """Return two-coloured clouds, in some images with other things before them."""
        u = latents.float()
        n = len(u)
        chance = _hashed(latents[:, 58], 60)
        low, high = chance[:, :3, None, None], chance[:, 3:6, None, None]
        rough = u[:, 24, None, None]
        clouds = _noise(latents[:, 57], 3)
        for octave, cells in enumerate((6, 12, 24)):
            clouds = clouds + (rough ** (octave + 0.5)) * (_noise(latents[:, 56 - octave], cells) - 0.5)
        clouds = (clouds + 0.7 * (u[:, 25, None, None] - 0.5) * self._y).clamp(0, 1)[:, None]
        canvas = low * (1 - clouds) + high * clouds
        for index in range(2):
            k = chance[:, 10 + 12 * index : 22 + 12 * index]
            size = (0.15 + 0.5 * k[:, 0]) * (u[:, 26 + index] < 0.4)
            cover, _ = self._leaf(
                k[:, 4:7], size + 1e-3, _TAU * k[:, 1], 2.2 * k[:, 2] - 1.1, 2.2 * k[:, 3] - 1.1
            )
            canvas = _over(canvas, cover, k[:, 7:10, None, None].expand(n, 3, SIDE, SIDE))
        return canvas

    def _develop(self, pixels: Tensor, latents: Tensor) -> Tensor:
        """Add what a camera adds: saturation, exposure, contrast, noise; then 8 bits."""
        u = latents.float()[:, :, None, None, None]
        grey = pixels.mean(1, keepdim=True)
        pixels = grey + (pixels - grey) * (0.15 + 0.85 * u[:, 34])
        pixels = (pixels.clamp(0, 1.5) - 0.5) * (0.7 + 0.6 * u[:, 31]) + 0.5 + 0.3 * (u[:, 32] - 0.5)
        noise = _hashed(latents[:, 63], 3 * SIDE * SIDE).view(-1, 3, SIDE, SIDE) - 0.5
        pixels = pixels + noise * 0.2 * u[:, 33] ** 2
        return (pixels.clamp(0, 1) * 255 + 0.5).to(torch.uint8)


def _view(u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return size, angle and place of the object, each (n, 1)."""
    size = 0.5 + 0.6 * u[:, 0:1]
    return size, 1.4 * (u[:, 1:2] - 0.5), 0.7 * (u[:, 2:3] - 0.5), 0.7 * (u[:, 3:4] - 0.5)


def _over(canvas: Tensor, cover: Tensor, colour: Tensor) -> Tensor:
    return canvas + cover[:, None] * (colour - canvas)


def _blurred(values: Tensor) -> Tensor:
    return avg_pool2d(values[:, None], 3, 1, 1)[:, 0]


def _noise(seed: Tensor, cells: int) -> Tensor:
    """Return smooth noise, (n, S, S), about in [0, 1], with `cells` grid cells a side."""
    knots = _hashed(seed, (cells + 1) ** 2).view(-1, 1, cells + 1, cells + 1)
    return interpolate(knots, size=(SIDE, SIDE), mode="bicubic", align_corners=True)[:, 0]


def _hashed(seed: Tensor, count: int) -> Tensor:
    """Expand one latent an image into `count` uniform numbers: (n,) float64 to (n, count) float32.

    Integer mixing in the manner of MurmurHash3's finaliser (Appleby), exact on any device.
    """
    value = (seed.double() * 2**32).long()[:, None]
    value = value + torch.arange(count, device=seed.device) * 0x9E3779B9
    mask = 0xFFFFFFFF
    value = value & mask
    for multiplier in (0x85EBCA6B, 0xC2B2AE35):
        value = ((value ^ (value >> 16)) * multiplier) & mask
    value = value ^ (value >> 13)
    return (value >> 8).float() * 2.0**-24
