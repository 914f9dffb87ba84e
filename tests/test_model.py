from __future__ import annotations

import dataclasses

import pytest
import safetensors.torch
import torch
from nets import Constant, Plain, shake, trial

from harness import BackboneSpec, InputSpec
from harness.engine import model as models
from harness.engine.model import Models
from harness.errors import PluginError

CPU = torch.device("cpu")
DEPTHS = (0.0, 0.5, 1.0)


def backbone(make):
    """Return a spec of a small network that starts from a file or at random."""

    def build(num_classes, weights, image_size):
        seed = torch.randint(1000, ()).item()
        model = make()
        torch.manual_seed(seed)
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        model.head = torch.nn.Linear(6, num_classes)
        if weights:
            model.load_state_dict(safetensors.torch.load_file(weights), strict=False)
        return model

    inputs = InputSpec(size=8, crop=1.0)
    return BackboneSpec(name="net", summary="a net", build=build, input=inputs, head=lambda model: ["head"])


@pytest.fixture
def weights(tmp_path):
    """Return a function that writes a checkpoint."""

    def write(make, seed=0):
        state = shake(make(), seed).state_dict()
        path = tmp_path / f"{make.__name__}-{seed}.safetensors"
        safetensors.torch.save_file({name: v for name, v in state.items() if "head" not in name}, path)
        return path

    return write


def build(make, weights, *, classes=3, known=None, **changes):
    config = trial(**changes)
    torch.manual_seed(config.seed)
    return (known or Models(classes, CPU)).build(backbone(make), config, weights)


def test_an_architecture_is_planned_and_cut_once_for_each_freeze_depth(weights, monkeypatch):
    cuts = []

    def counted(model, plan, size):
        cuts.append(plan.depth)
        return original(model, plan, size)

    original = models.cut_model
    monkeypatch.setattr(models, "cut_model", counted)
    known = Models(3, CPU)
    for seed in range(3):
        for depth in DEPTHS:
            build(Plain, weights(Plain), known=known, seed=seed, freeze_depth=depth)
            build(Plain, None, known=known, seed=seed, freeze_depth=depth)
    assert cuts == list(DEPTHS)
    build(Plain, None, known=known, image_size=16)
    assert cuts == [*DEPTHS, 0.5]


def test_a_model_is_frozen_also_when_its_cut_is_known(weights):
    known = Models(3, CPU)
    for _ in range(2):
        model, part = build(Plain, weights(Plain), known=known)
        asking = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert asking == set(part.plan.trainable) != set(dict(model.named_parameters()))


def test_the_name_of_a_prefix_tells_its_weights_and_neither_the_head_nor_the_seed(weights):
    _, part = build(Plain, weights(Plain))
    names = {part.digests[True], part.digests[False]}
    for classes, changes in ((3, {"seed": 5}), (7, {}), (3, {"head_init": "zero"}), (3, {"lr": 1.0})):
        _, other = build(Plain, weights(Plain), classes=classes, **changes)
        assert {other.digests[True], other.digests[False]} == names
    _, other = build(Plain, weights(Plain, seed=1))
    assert not names & set(other.digests.values())
    _, deeper = build(Plain, weights(Plain), freeze_depth=1.0)
    assert not names & set(deeper.digests.values())


def test_frozen_layers_that_no_checkpoint_holds_fail_the_trial_after_the_first(weights, tmp_path):
    """What was computed with one random neck must not be taken for another's."""
    state = safetensors.torch.load_file(weights(Plain))
    partial = tmp_path / "partial.safetensors"
    safetensors.torch.save_file({name: v for name, v in state.items() if "second" not in name}, partial)
    known = Models(3, CPU)
    for seed in (1, 1):
        build(Plain, partial, known=known, seed=seed, freeze_depth=1.0)
    with pytest.raises(PluginError, match=r"'\w+' builds other frozen layers each time: second\.\w+ differs"):
        build(Plain, partial, known=known, seed=2, freeze_depth=1.0)


def test_random_weights_are_shared_with_no_other_seed():
    names = [build(Plain, None, seed=seed, init="scratch")[1].digests[True] for seed in (1, 2, 1)]
    assert names[0] == names[2] != names[1]
    known = Models(3, CPU)
    again = [build(Plain, None, known=known, seed=seed, init="scratch")[1].digests[True] for seed in (1, 2)]
    assert again == names[:2]


def test_a_cut_that_holds_tensors_of_a_model_is_made_anew_for_other_values():
    class Random(Constant):
        """What it adds after the cut is made from a buffer alone, which is another for each seed."""

        def __init__(self):
            super().__init__()
            self.register_buffer("noise", torch.zeros(6, 1, 1))
            self.first.reset_parameters = self.draw

        def draw(self):
            torch.nn.Conv2d.reset_parameters(self.first)
            self.noise.normal_()

        def forward(self, x):
            return self.finish(self.second(self.first(x)) + self.noise.exp())

    known = Models(3, CPU)
    for seed in (1, 2):
        model, part = build(Random, None, known=known, seed=seed, init="scratch")
        del model.first.reset_parameters
        half = part.cut.half(False)
        assert half.holds_tensors
        model.eval()
        images = torch.randn(4, 3, 8, 8)
        logits = half.bind_suffix(model)(half.bind_prefix(model)(images), 4)
        assert torch.equal(logits, model(images))


def test_the_copy_is_nobody_elses(weights):
    known = Models(3, CPU)
    path = weights(Plain)
    model, _ = build(Plain, path, known=known)
    twin, parts = known.copy_untrained(model, backbone(Plain), trial(), path, DEPTHS, lambda: None)
    before = {name: value.clone() for name, value in twin.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in twin.state_dict().items())
    # Nothing is cut at depth 0.
    assert [part.plan.depth for part in parts] == [0.5, 1.0]
    trained, _ = build(Plain, path, known=known, seed=9)
    assert (
        known.copy_untrained(trained, backbone(Plain), trial(seed=9), path, DEPTHS, lambda: None)[0] is twin
    )


def test_other_weights_get_another_copy(weights):
    known = Models(3, CPU)
    twins = []
    for seed in (0, 1, 0):
        path = weights(Plain, seed=seed)
        model, _ = build(Plain, path, known=known)
        twin, _ = known.copy_untrained(model, backbone(Plain), trial(), path, DEPTHS, lambda: None)
        assert torch.equal(twin.first.weight, model.first.weight)
        twins.append(twin)
    first, second, again = twins
    assert first is again is not second
    # Those of other seeds at random would be no use to the next trial.
    model, _ = build(Plain, None, known=known, init="scratch")
    twin, parts = known.copy_untrained(
        model, backbone(Plain), trial(init="scratch"), None, DEPTHS, lambda: None
    )
    assert parts == ()
    assert torch.equal(twin.first.weight, model.first.weight)


def test_all_depths_of_a_copy_are_named_as_their_own_trials_name_them(weights):
    path = weights(Plain)
    model, _ = build(Plain, path)
    known = Models(3, CPU)
    _, parts = known.copy_untrained(model, backbone(Plain), trial(), path, DEPTHS, lambda: None)
    for part in parts:
        _, own = build(Plain, path, freeze_depth=part.plan.depth, seed=4)
        assert own.digests == part.digests
        assert dataclasses.asdict(own.plan) == dataclasses.asdict(part.plan)


def test_models_lie_in_memory_as_suits_the_device(weights):
    checkpoint = weights(Plain)
    known = Models(3, torch.device("mps"))
    plain, first = build(Plain, checkpoint, known=known)
    assert all(weight.is_contiguous() for weight in plain.parameters())
    model, part = build(Plain, checkpoint)
    convolutions = [weight for weight in model.parameters() if weight.ndim == 4]
    assert convolutions
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in convolutions)
    # Its values are the same, and so is the name of what it computes.
    assert part.digests == first.digests
    for name, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


def test_copies_that_are_large_together_make_room_for_the_one_in_use(weights, monkeypatch):
    monkeypatch.setattr(models, "_KEPT", 0)
    known = Models(3, CPU)
    twins = []
    for seed in (0, 1, 0):
        path = weights(Plain, seed=seed)
        model, _ = build(Plain, path, known=known)
        twins.append(known.copy_untrained(model, backbone(Plain), trial(), path, DEPTHS, lambda: None)[0])
    assert len({id(twin) for twin in twins}) == 3


def hidden():
    """Return the spec of a backbone whose head has a hidden layer, drawn when it is built."""

    def build(num_classes, weights, image_size):
        # Before the rest, which sets the generator.
        head = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, num_classes))
        return Plain(head=head)

    inputs = InputSpec(size=8, crop=1.0)
    return BackboneSpec(name="net", summary="a net", build=build, input=inputs, head=lambda model: ["head"])


@pytest.mark.parametrize(("how", "builds"), [("zero", 4), ("xavier", 2), ("kaiming", 2), ("timm", 4)])
def test_a_head_of_which_something_stays_as_built_is_built_from_its_own_seed(tmp_path, how, builds):
    made = []
    spec = hidden()
    counted = dataclasses.replace(spec, build=lambda *values: made.append(1) or spec.build(*values))
    known = Models(3, CPU)
    for seed in range(4):
        config = trial(seed=seed, head_init=how)
        torch.manual_seed(seed)
        model, _ = known.build(counted, config, tmp_path / "weights", reuse=how != "timm")
        known.copy_untrained(model, spec, config, tmp_path / "weights", DEPTHS, lambda: None)
        torch.manual_seed(seed)
        expected, _ = Models(3, CPU).build(spec, config, tmp_path / "weights")
        for name, value in expected.state_dict().items():
            assert torch.equal(model.state_dict()[name], value), (seed, name)
    assert len(made) == builds
