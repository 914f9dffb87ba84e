"""The conformance kit: it passes what is sound, and names what is not."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from harness import (
    AugmentationSpec,
    BackboneSpec,
    DataError,
    DatasetSpec,
    Family,
    InputSpec,
    LossSpec,
    OptimizerSpec,
    Sample,
    ScheduleSpec,
    UsageError,
    WeightsSpec,
    hookimpl,
)
from harness.testing import Check, parametrize_with_checks, plugin_checks


def plugin_of(kind, *items):
    hook = f"harness_{'losses' if kind == 'loss' else kind + 's'}"
    return type("Plugin", (), {hook: hookimpl(lambda self: items)})


def failures(plugin, **options):
    found = {}
    for check in plugin_checks(plugin, **options):
        try:
            check()
        except AssertionError as error:
            found[check.id] = str(error)
    return found


class TinyNet(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, num_classes)

    def forward(self, images):
        return self.head(torch.relu(self.norm(self.stem(images))).mean((2, 3)))


def backbone(build=lambda classes, weights, size: TinyNet(classes), **options):
    return BackboneSpec(name="net", summary="a net", build=build, input=InputSpec(size=16), **options)


def augmentation(function):
    return AugmentationSpec(name="aug", summary="a policy", build=lambda inputs: function(inputs.size))


def resize(image, size):
    return nn.functional.interpolate(image[None].float(), (size, size))[0].to(torch.uint8)


def loss(build):
    return LossSpec(name="cost", summary="a loss", build=build)


def optimizer(build, lr=(1e-4, 1e-1)):
    return OptimizerSpec(name="opt", summary="an optimizer", build=build, lr=lr)


def schedule(build):
    return ScheduleSpec(name="fall", summary="a schedule", build=build)


def dataset(build, licence="MIT", url="https://example.org"):
    return DatasetSpec(name="pictures", summary="pictures", build=build, licence=licence, url=url)


PIXELS = np.zeros((4, 4, 3), dtype=np.uint8)


def pictures(folder, download):
    return [Sample(id=str(number), label="ab"[number % 2], image=PIXELS) for number in range(4)]


def no_pictures(folder, download):
    raise DataError("pictures are not here")


def flip_or_not(size):
    def policy(image):
        image = image.flip(2) if torch.rand(1) < 0.5 else image
        image = image.flip(1) if np.random.rand() < 0.5 else image
        return resize(image, size)

    return policy


class Weighted(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, logits, labels):
        return nn.functional.cross_entropy(logits, labels, weight=self.weight)


class Moved(Weighted):
    def forward(self, logits, labels):
        return nn.functional.cross_entropy(logits, labels, weight=self.weight.to(logits.device))


class Looking(nn.Module):
    def forward(self, logits, labels):
        return nn.functional.cross_entropy(logits * (2 if labels.max() > 1 else 1), labels)


def weights_of(classes):
    return 1 / torch.tensor(classes.counts)


def one_size(classes, weights, size):
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, classes))


def one_size_in_words(classes, weights, size):
    if size != 16:
        raise UsageError("16 px only")
    return one_size(classes, weights, size)


@pytest.mark.parametrize(
    ("kind", "item"),
    [
        ("backbone", backbone()),
        ("backbone", backbone(blocks=lambda m: [["stem.weight", "stem.bias"], ["norm.weight", "norm.bias"]])),
        ("backbone", backbone(head=lambda model: ["head"])),
        ("backbone", backbone(one_size, fixed_size=True)),
        ("backbone", backbone(one_size_in_words)),
        ("augmentation", augmentation(flip_or_not)),
        ("loss", loss(lambda classes: nn.CrossEntropyLoss())),
        ("loss", loss(lambda classes: nn.CrossEntropyLoss(weight=1 / torch.tensor(classes.counts)))),
        ("loss", loss(lambda classes: Weighted(nn.Parameter(weights_of(classes), requires_grad=False)))),
        ("loss", loss(lambda classes: Moved(weights_of(classes)))),
        ("loss", loss(lambda classes: Looking())),
        ("optimizer", optimizer(lambda groups: torch.optim.SGD(groups, momentum=0.9))),
        ("optimizer", optimizer(torch.optim.AdamW)),
        ("schedule", schedule(lambda steps: lambda step: 1 - step / steps)),
        ("dataset", dataset(pictures)),
        ("dataset", dataset(no_pictures)),
        ("dataset", dataset(lambda folder, download: (folder / "index").open())),
    ],
)
def test_a_sound_component_passes(kind, item):
    assert failures(plugin_of(kind, item)) == {}


def shrink(classes, weights, size):
    return TinyNet(classes + 1)


class Noisy(TinyNet):
    def forward(self, images):
        return super().forward(images + torch.randn_like(images))


class Leaky(TinyNet):
    """Trains behind the host's back."""

    def forward(self, images):
        self.stem.weight.requires_grad_(True)
        return super().forward(images)


def other_weights(classes, weights, size):
    torch.seed()
    return TinyNet(classes)


def bound(classes, weights, size):
    """Build a network whose copies call the original."""
    model = TinyNet(classes)
    forward = model.forward
    model.forward = lambda images: forward(images)
    return model


class NaiveCrossEntropy(nn.Module):
    def forward(self, logits, labels):
        return -torch.log(logits.softmax(1).gather(1, labels[:, None])).mean()


class ClassZeroMatters(nn.Module):
    def forward(self, logits, labels):
        return (nn.functional.cross_entropy(logits, labels, reduction="none") * (1 + (labels == 0))).mean()


class Flip(nn.Module):
    def forward(self, logits, labels):
        return -nn.functional.cross_entropy(logits, labels)


class Greedy(torch.optim.SGD):
    def step(self):
        super().step()
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.mul_(0.99)


def one_group(groups):
    return torch.optim.SGD([p for group in groups for p in group["params"]], lr=groups[0]["lr"])


def own_rate(groups):
    return torch.optim.SGD([{**group, "lr": 1.0} for group in groups])


class Idle(torch.optim.SGD):
    def step(self):
        pass


class Counting:
    def __init__(self, steps):
        self.calls = 0

    def __call__(self, step):
        self.calls += 1
        return 1 / self.calls


def in_place(size):
    return lambda image: resize(image.fill_(3), size)


class Fixed(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, logits, labels):
        return self.value


def unseeded(size):
    generator = torch.Generator()
    generator.seed()
    return lambda image: torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=generator)


def drawing(size):
    return lambda image: torch.randint(0, 256, (3, size, size), dtype=torch.uint8)


def this_file():
    return Path(__file__)


FAULTS = {
    "backbone": [
        (backbone(shrink), "gives-logits", "net: logits have shape (3, 3), not (3, 2)"),
        (backbone(one_size), "takes-other-sizes", "net: images of 32 px fail, and fixed_size is not set"),
        (backbone(lambda c, w, s: 1), "gives-logits", "net: build returned a int"),
        (backbone(lambda c, w: TinyNet(c)), "gives-logits", "net: TypeError"),
        (backbone(lambda c, w, s: Noisy(c)), "repeats-itself-in-eval", "net: in eval mode two passes"),
        (backbone(other_weights), "initialises-from-the-seed", "net: with one seed, two builds"),
        (backbone(bound), "is-copied-whole", "net: a deep copy of it computes with the parameters of the"),
        (backbone(lambda c, w, s: Leaky(c)), "freezes-down-to-its-head", "['stem.weight'] gets a grad"),
        (backbone(blocks=lambda m: [["stem.weight"]]), "has-blocks", "leave out the parameter"),
        (backbone(blocks=lambda m: 2 * [["stem.weight"]]), "has-blocks", "'stem.weight' wrongly"),
        (backbone(blocks=lambda m: [["stem.w"]]), "has-blocks", "'stem.w' wrongly"),
        (backbone(head=lambda m: ["neck"]), "has-blocks", "'neck' is no submodule"),
        (
            backbone(weights=WeightsSpec(source="hub", licence="", cached=lambda: None, fetch=lambda: None)),
            "takes-its-weights",
            "net: its weights state no source or no licence",
        ),
        (
            backbone(weights=WeightsSpec(source="a", licence="b", cached=lambda: "x", fetch=lambda: None)),
            "takes-its-weights",
            "net: cached() returned 'x', which is no file",
        ),
        (
            # It reads nothing from the file.
            backbone(weights=WeightsSpec(source="a", licence="b", cached=this_file, fetch=lambda: None)),
            "takes-its-weights",
            "net: ['stem.weight'] does not come from its weights: two builds differ in it",
        ),
    ],
    "augmentation": [
        (augmentation(lambda s: lambda i: i), "keeps-the-form-of-images", "became (3, 37, 53), not"),
        (augmentation(lambda s: lambda i: resize(i, s) / 255), "keeps-the-form-of-images", "uint8"),
        (augmentation(in_place), "keeps-the-form-of-images", "changed in place"),
        (augmentation(unseeded), "repeats-itself-from-a-seed", "the same seed"),
        (augmentation(lambda s: ()), "keeps-the-form-of-images", "neither a function nor a tuple"),
        (
            augmentation(lambda s: (lambda i: resize(i, s), drawing(s))),
            "repeats-itself-from-a-seed",
            "policies of a tuple draw nothing",
        ),
    ],
    "loss": [
        (
            loss(lambda classes: nn.CrossEntropyLoss(reduction="none")),
            "prefers-the-right-answer",
            "cost: a loss is a scalar, not of shape (20,)",
        ),
        (loss(lambda classes: Flip()), "prefers-the-right-answer", "cost: a right answer costs"),
        (loss(lambda classes: NaiveCrossEntropy()), "is-a-scalar-with-a-gradient", "cost: it is inf"),
        (loss(lambda classes: Fixed(torch.ones(()))), "is-a-scalar-with-a-gradient", "no gradient"),
        (loss(lambda classes: Fixed(1.0)), "is-a-scalar-with-a-gradient", "returned a float"),
        (loss(lambda c: nn.functional.cross_entropy), "prefers-the-right-answer", "it built a function"),
        (loss(lambda classes: ClassZeroMatters()), "ignores-the-order-of-classes", "in another order"),
        (loss(lambda classes: Weighted(weights_of(classes))), "goes-to-its-device", "or a buffer"),
        (LossSpec(name="cost", summary="", build=lambda c: None), "is-described", "summary is empty"),
        (LossSpec(name="cost", summary="a\nb", build=lambda c: None), "is-described", "one line"),
        (LossSpec(name="cost", summary="a", build=None), "is-described", "build cannot be called"),
    ],
    "optimizer": [
        (optimizer(Greedy), "moves-what-trains", "opt: it moves a frozen parameter"),
        (optimizer(Idle), "moves-what-trains", "opt: two steps move nothing"),
        (optimizer(one_group), "keeps-its-groups", "opt: 2 groups became 1"),
        (optimizer(own_rate), "keeps-its-groups", "opt: a group's lr"),
        (optimizer(torch.optim.SGD, lr=(1, 1e3)), "goes-down-a-quadratic", "opt: at lr 31.6"),
    ],
    "schedule": [
        (schedule(lambda steps: lambda step: 2.0), "gives-factors", "fall: of 1 steps, step [0]"),
        (schedule(lambda steps: lambda step: float("nan")), "gives-factors", "outside [0, 1]"),
        (schedule(lambda steps: lambda step: 1 / (steps - 1)), "gives-factors", "ZeroDivisionError"),
        (schedule(lambda steps: lambda step: 0.0), "gives-factors", "fall: of 1 steps none learns"),
        (schedule(Counting), "gives-factors", "depends on earlier calls"),
    ],
    "dataset": [
        (dataset(no_pictures, licence=" "), "states-its-terms", "pictures: it states no licence"),
        (dataset(no_pictures, url="example.org"), "states-its-terms", "no address"),
        (dataset(lambda f, d: {}[f]), "reads-or-says-why", "pictures: KeyError"),
        (dataset(lambda f, d: []), "reads-or-says-why", "raise FileNotFoundError"),
        (dataset(lambda f, d: 2 * pictures(f, d)), "reads-or-says-why", "two samples have one id"),
        (dataset(lambda f, d: ["x.png"]), "reads-or-says-why", "something else than Sample"),
        (
            dataset(lambda f, d: [Sample(id="1", label="a", image=np.zeros((4, 4)))]),
            "reads-or-says-why",
            "float64 pixels",
        ),
        (
            dataset(lambda f, d: [Sample(id="1", label="a", image=PIXELS, split="validation")]),
            "reads-or-says-why",
            "sample '1' has the split 'validation'",
        ),
    ],
}


@pytest.mark.parametrize(
    ("kind", "item", "check", "message"),
    [(kind, *fault) for kind, faults in FAULTS.items() for fault in faults],
)
def test_an_unsound_component_is_named_with_its_fault(kind, item, check, message):
    found = failures(plugin_of(kind, item))
    text = found[f"{kind}/{item.name}/{check}"]
    assert message in text
    assert text.startswith(f"{item.name}: ")


def test_a_spec_that_can_be_changed_fails():
    class Open(LossSpec):
        def __setattr__(self, name, value):
            object.__setattr__(self, name, value)

    found = failures(plugin_of("loss", Open(name="cost", summary="s", build=lambda c: nn.CrossEntropyLoss())))
    assert found == {"loss/cost/is-described": "cost: it can be changed: specs are frozen"}


def test_a_plugin_that_cannot_register_fails_in_one_check():
    found = failures(plugin_of("loss", 1))
    assert found == {"plugin/registers": "Plugin: harness_losses yielded int, not LossSpec"}
    assert "implements no hook" in failures(object)["plugin/registers"]


def test_hooks_that_yield_something_else_each_time_fail():
    numbers = iter(range(9))

    class Plugin:
        @hookimpl
        def harness_schedules(self):
            yield ScheduleSpec(name=f"s{next(numbers)}", summary="s", build=lambda steps: lambda step: 1.0)

    assert "something else" in failures(Plugin)["plugin/registers"]


@pytest.mark.parametrize(
    ("members", "message"),
    [([], "nothing"), (["a", "a"], "twice"), ([1], "no name"), (None, "TypeError"), ([" a"], "no name")],
)
def test_a_family_lists_names(members, message):
    family = Family(name="many", summary="s", members=lambda: members, spec=lambda name: schedule(None))
    assert message in failures(plugin_of("schedule", family))["schedule/many/members"]


def test_a_family_is_checked_by_its_first_and_middle_member_or_by_those_named():
    def spec(name):
        return ScheduleSpec(name=name, summary="s", build=lambda steps: lambda step: 1.0)

    family = Family(name="many", summary="s", members=lambda: ["a", "b", "c", "d"], spec=spec)
    plugin = plugin_of("schedule", family)

    def checked(**options):
        return {check.id.split("/")[1] for check in plugin_checks(plugin, **options)} - {"registers"}

    assert checked() == {"many", "a", "c"}
    assert checked(members={"many": ["b"]}) == {"many", "b"}
    assert failures(plugin) == {}


def test_a_member_that_goes_by_another_name_or_kind_fails():
    family = Family(name="many", summary="s", members=lambda: ["a"], spec=lambda name: schedule(None))
    assert failures(plugin_of("schedule", family))["schedule/a/member"] == "a: spec('a') describes 'fall'"
    family = Family(name="many", summary="s", members=lambda: ["cost"], spec=lambda name: loss(None))
    found = failures(plugin_of("schedule", family))
    assert "a schedule is a ScheduleSpec, not a LossSpec" in found["schedule/cost/gives-factors"]


def test_a_check_shifts_no_random_numbers():
    check = next(check for check in plugin_checks(plugin_of("backbone", backbone())) if "logits" in check.id)
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(5)
    np.random.seed(5)
    check()
    assert (torch.rand(1), np.random.rand()) == expected


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("", ""),
        ("import torch", "loading it imports torch"),
        ("print('noise')", ""),
    ],
)
def test_a_plugin_that_imports_torch_when_it_loads_fails(tmp_path, monkeypatch, head, message):
    code = f"from harness import hookimpl\n{head}\n@hookimpl\ndef harness_losses(): return []\n"
    (tmp_path / "weighty_plugin.py").write_text(code)
    # Another process would take seconds to import the real one.
    (tmp_path / "torch.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    import weighty_plugin

    found = failures(weighty_plugin)
    del sys.modules["weighty_plugin"]
    assert (message in found["plugin/is-light"]) if message else found == {}


def test_the_decorator_makes_one_test_of_each_check():
    plugin = plugin_of("schedule", schedule(lambda steps: lambda step: 2.0))
    reason = "it warms up by itself"
    mark = parametrize_with_checks(plugin, expected_failures={"schedule/fall/gives-factors": reason}).mark
    assert mark.name == "parametrize"
    name, cases = mark.args
    assert name == "check"
    assert [case.id for case in cases] == [
        "plugin/registers",
        "schedule/fall/is-described",
        "schedule/fall/gives-factors",
    ]
    assert [list(case.marks) for case in cases[:2]] == [[], []]
    (xfail,) = cases[2].marks
    # Strict: an expected failure that does not come is an error.
    assert (xfail.name, xfail.kwargs) == ("xfail", {"reason": reason, "strict": True})


def test_an_expected_failure_must_name_a_check():
    with pytest.raises(ValueError, match="names no check: loss/gone/x"):
        parametrize_with_checks(plugin_of("loss"), expected_failures={"loss/gone/x": "reason"})


def test_a_check_is_called_or_run():
    done = []
    check = Check("id", lambda: done.append(1))
    check()
    check.run()
    assert done == [1, 1]
