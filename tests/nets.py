"""Small networks, each with one of the traps of a cut, and what runs them whole and in parts."""

from __future__ import annotations

import copy
from functools import partial

import torch
from records_factory import make_config
from torch import Tensor, nn
from torch.nn import functional

from harness.engine.cut import Cut, bind_suffix
from harness.engine.freeze import FreezePlan, apply_freeze, set_train_mode
from harness.engine.layers import place_modules, record_calls

SIZE = 8


def freeze(model: nn.Module, *prefixes: str, size: int = SIZE, still: tuple[str, ...] | None = None):
    """Freeze the parameters whose names start like this, in any place of the network; return the plan.

    `still` replaces the modules that the host would hold in eval mode.
    """
    names = [name for name, _ in model.named_parameters()]
    frozen = tuple(name for name in names if name.startswith(prefixes))
    parameters = dict(model.named_parameters())
    calls = record_calls(model, size)
    outermost, held = place_modules(model, {id(parameters[name]) for name in frozen}, calls)
    plan = FreezePlan(
        depth=0.5,
        frozen=frozen,
        trainable=tuple(name for name in names if name not in frozen),
        frozen_modules=outermost,
        eval_modules=held if still is None else still,
        head=("head",),
        n_blocks=2,
        n_frozen=1,
        param_share=0.5,
    )
    apply_freeze(model, plan)
    return plan


def trial(**changes):
    """Return what a short training on the CPU is told."""
    values = {
        "backbone": "net",
        "freeze_depth": 0.5,
        "lr": 0.01,
        "optimizer": "sgd",
        "augmentation": "none",
        "schedule": "constant",
        "epochs": 3,
        "batch_size": 7,
        "image_size": SIZE,
        "warmup": 0.0,
        "clip_grad": 0.0,
        "precision": "fp32",
    }
    return make_config(**{**values, **changes})


def images(number: int, size: int = SIZE) -> Tensor:
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(number))


def shake(model: nn.Module, seed: int = 0) -> nn.Module:
    """Leave no zero that could hide an edge, and no statistics at their start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.1, generator=generator)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5, generator=generator)
    return model


def step(model: nn.Module, plan: FreezePlan, forward, *, training: bool, seed: int = 7) -> dict[str, Tensor]:
    """Return what a step leaves behind: logits, gradients, buffers."""
    model.eval()  # as a validation between two epochs does
    if training:
        set_train_mode(model, plan)
    model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    with torch.set_grad_enabled(training):
        logits = forward()
    if training:
        functional.cross_entropy(logits, torch.arange(len(logits)) % logits.shape[1]).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    return {"logits": logits.detach()} | gradients | buffers


def differences(model: nn.Module, plan: FreezePlan, cut: Cut, size: int = SIZE) -> list[str]:
    """Run a model whole and in parts, as a trial does, and name all that is not bit-equal.

    The prefix runs on a copy that nobody trains.
    """
    found: list[str] = []
    whole, parts, twin = copy.deepcopy(model), copy.deepcopy(model), copy.deepcopy(model)
    suffix = bind_suffix(parts, cut)
    for training, number in ((True, 4), (False, 5), (True, 6), (False, 1)):
        half, batch = cut.half(training), images(number, size)
        twin.eval()
        if training:
            set_train_mode(twin, plan)
        with torch.no_grad():
            rows = [row.clone() for row in half.boundary.pack(half.bind_prefix(twin)(batch.clone()))]
        expected = step(whole, plan, partial(whole, batch), training=training)
        got = step(parts, plan, partial(suffix, rows, training), training=training)
        found += [f"{name} only in one" for name in expected.keys() ^ got.keys()]
        found += [
            f"{name}, training {training}, {number} images"
            for name in expected.keys() & got.keys()
            if not torch.equal(expected[name], got[name])
        ]
    return found


class Plain(nn.Module):
    """Two layers and a head."""

    def __init__(self, **extra: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 3)
        for name, module in extra.items():
            setattr(self, name, module)
        shake(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(functional.gelu(self.second(functional.gelu(self.first(x)))))

    def finish(self, x: Tensor) -> Tensor:
        return self.head(x.mean((2, 3)))


class Permuted(Plain):
    """Its boundary is a permuted tensor, and dropout draws its mask in memory order."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).permute(0, 2, 3, 1)
        x = functional.dropout(x, 0.5, self.training)
        return self.finish(self.second(x.permute(0, 3, 1, 2)))


class Dropping(Plain):
    """Draws at random in three places."""

    def __init__(self) -> None:
        super().__init__(start=nn.Dropout2d(0.3), middle=nn.Dropout(0.3), end=nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(functional.gelu(self.first(self.start(x))))
        return self.head(self.end(self.second(x).mean((2, 3))))


class Normed(Plain):
    """Normalises over the batch in four places, once without parameters of its own."""

    def __init__(self) -> None:
        super().__init__(norm=nn.BatchNorm2d(6), bare=nn.BatchNorm2d(6, affine=False), late=nn.BatchNorm2d(6))
        self.last = nn.BatchNorm1d(6, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.gelu(self.bare(self.norm(self.first(x))))
        return self.head(self.last(self.late(self.second(x)).mean((2, 3))))


class InPlace(Plain):
    """Changes values in place before, at and after the cut."""

    def __init__(self) -> None:
        super().__init__(act=nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        kept = self.act(self.first(x.sub_(0.1)))
        x = self.second(kept.clone())
        kept.add_(1)
        x += self.act(kept)
        return self.finish(self.act(x))


class LateChange(InPlace):
    """Changes a frozen value in place after what trains has read it."""

    def forward(self, x: Tensor) -> Tensor:
        kept = self.act(self.first(x))
        x = self.second.bias.view(6, 1, 1) + kept
        kept.add_(1)
        return self.finish(self.second(x) * kept.clone())


class Windowed(Plain):
    """Puts four windows of each image into the batch, and counts images in whole numbers."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        number, channels, height, width = x.shape
        windows = number * 4
        x = x.view(number, channels, 2, height // 2, 2, width // 2).permute(0, 2, 4, 1, 3, 5)
        x = self.second(x.reshape(windows, channels, height // 2, width // 2))
        return self.head(x.view(number, 4, channels, -1).mean((1, 3)))


class Constant(Plain):
    """Adds a table of frozen biases, a grid made from the shape, and a literal, after the cut."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(10, 6))
        self.register_buffer("index", torch.arange(6).flip(0), persistent=False)
        self.scale = torch.tensor(0.7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x) * torch.tensor([[[1.5]]]) * self.scale
        grid = torch.arange(x.shape[3], device=x.device, dtype=x.dtype) / 10
        x = self.second(x) + grid
        x = x + self.table[self.index].mean(1).view(6, 1, 1) + torch.tensor([0.25]).to(x.device)
        return self.finish(functional.gelu(x))


class Pooled(Plain):
    """Its frozen leaf gives a tuple, and the places of the maxima, whole numbers, are read after the cut."""

    def __init__(self) -> None:
        super().__init__(pool=nn.MaxPool2d(2, return_indices=True), unpool=nn.MaxUnpool2d(2))

    def forward(self, x: Tensor) -> Tensor:
        x, places = self.pool(self.first(x))
        return self.finish(self.unpool(self.second(x), places))


class Shared(Plain):
    """Calls a frozen layer twice, and once more on what trains."""

    def __init__(self) -> None:
        super().__init__(loop=nn.Conv2d(6, 6, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.loop(self.loop(x).relu())
        return self.finish(self.loop(self.second(x).relu()))


class Streams(Plain):
    """Two streams after a stem, of which one trains; it comes first, and draws."""

    def __init__(self) -> None:
        super().__init__(stem=nn.Conv2d(3, 3, 1), other=nn.Conv2d(3, 6, 3, padding=1), drop=nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        trained = self.drop(self.other(x).relu())
        return self.finish(trained * self.second(self.first(x).relu()))


class Skipping(Plain):
    """Leads the first layer's output past all that trains."""

    def forward(self, x: Tensor) -> Tensor:
        x = functional.gelu(self.first(x))
        return self.head(torch.cat([self.second(x)[:, :3], x[:, 3:]], 1).mean((2, 3)))


class Options(Plain):
    """Takes more arguments, all with defaults."""

    def forward(self, x, mask=None, scale=1.5, flag=False, sizes=(2, 3), *more, count=2, name="mean"):
        x = self.first(x) * scale
        if mask is not None:
            x = x * mask
        if flag:
            raise ValueError("never asked for")
        return self.head(getattr(self.second(x) * (count + len(more)), name)(sizes))


class ZeroStart(Plain):
    """Its second layer starts without effect."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.gelu(self.first(x))
        return self.finish(x + self.second(x))


class Branching(Plain):
    """Looks at its values, which cannot be traced."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.second(x) if x.abs().sum() > 0 else x
        return self.finish(functional.gelu(x))


class Mixing(nn.Module):
    """Subtracts the mean of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class Mixed(Plain):
    """Mixes the images of a batch before anything trains."""

    def __init__(self) -> None:
        super().__init__(mixing=Mixing())

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(self.second(self.mixing(self.first(x))))
