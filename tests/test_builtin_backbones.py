"""The built-in backbones: described without being built, built with a new head, loaded with proof."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from harness import UsageError, WeightsError
from harness_builtin import backbones


def timm_spec(name):
    return backbones.describe_timm(name)


def torchvision_spec(name):
    return backbones.describe_torchvision(name)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Return a function that saves a random network of timm's and returns it with its file."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def save(name, num_classes=1000):
        torch.manual_seed(1)
        model = timm.create_model(name, pretrained=False, num_classes=num_classes)
        file = folder / f"{name}-{num_classes}.safetensors"
        safetensors.torch.save_file(model.state_dict(), file)
        return model, file

    return save


def without_head(model, head):
    return {key: value for key, value in model.state_dict().items() if not key.startswith(f"{head}.")}


def test_a_member_is_described_without_being_built(monkeypatch):
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("built"))

    spec = timm_spec("test_resnet.r160_in1k")

    assert spec.input.size == 160
    assert spec.input.interpolation == "bilinear"
    assert spec.input.crop == pytest.approx(0.95)
    assert spec.input.mean == (0.5, 0.5, 0.5)
    assert spec.weights.source == "timm/test_resnet.r160_in1k"
    assert spec.weights.licence == "apache-2.0"
    assert spec.weights.probe_url.endswith("/timm/test_resnet.r160_in1k/resolve/main/model.safetensors")


def test_an_architecture_that_nobody_trained_has_no_weights():
    assert timm_spec("test_maxvit").weights is None


def test_weights_at_an_address_are_looked_for_where_torch_keeps_them(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = torchvision_spec("squeezenet1_0").weights
    assert weights.cached() is None
    assert weights.licence == "bsd-3-clause"

    file = tmp_path / "hub" / "checkpoints" / weights.source.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")

    assert weights.cached() == file
    assert weights.fetch() == file


def test_the_families_have_no_name_in_common():
    ours, theirs = set(backbones.list_timm()), set(backbones.list_torchvision())

    assert {"resnet18", "resnet18.a1_in1k", "test_vit"} <= ours
    assert {"squeezenet1_0", "vit_b_16"} <= theirs
    assert not ours & theirs
    assert not [name for name in ours if name.endswith("_enc")]


@pytest.mark.parametrize("num_classes", [10, 1000])
@pytest.mark.parametrize(
    ("name", "head"), [("test_resnet", "fc"), ("test_vit", "head"), ("test_convnext", "head.fc")]
)
def test_the_backbone_is_the_files_and_the_head_is_new(checkpoint, name, head, num_classes):
    source, file = checkpoint(name)
    spec = timm_spec(name)

    model = spec.build(num_classes, file, spec.input.size)

    expected = without_head(source, head)
    got = without_head(model, head)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    weight = model.get_submodule(head).weight
    assert weight.shape[0] == num_classes
    assert weight.isfinite().all()
    if num_classes == 1000:
        assert not torch.equal(weight, source.get_submodule(head).weight)


def test_the_new_head_depends_on_the_seed_alone(checkpoint):
    _, file = checkpoint("test_resnet")

    def head(seed, weights):
        torch.manual_seed(seed)
        return timm_spec("test_resnet").build(5, weights, 64).fc.weight

    assert torch.equal(head(3, file), head(3, file))
    assert not torch.equal(head(3, file), head(4, file))


def test_scratch_is_random_and_touches_no_network(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("network"))
    model = timm_spec("test_resnet.r160_in1k").build(5, None, 64)

    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 5)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
@pytest.mark.parametrize("size", [64, 160])
def test_a_model_takes_images_of_the_size_it_was_built_for(checkpoint, name, size):
    source, file = checkpoint(name)

    model = timm_spec(name).build(5, file, size)

    assert model.training
    assert model.eval()(torch.zeros(1, 3, size, size)).shape == (1, 5)
    assert not timm_spec(name).fixed_size
    if name == "test_vit":
        same = model.pos_embed.shape == source.pos_embed.shape
        assert same == (size == 160)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({"model": "test_resnet", "epoch": 3}, "at its top are epoch, model"),
        ({}, "it is empty"),
        ([torch.zeros(2)], "it is a list"),
    ],
)
def test_a_checkpoint_without_named_tensors_says_what_it_holds(tmp_path, content, why):
    file = tmp_path / "weights.pt"
    torch.save(content, file)
    with pytest.raises(WeightsError, match="holds no tensors") as caught:
        timm_spec("test_resnet").build(5, file, 160)
    assert caught.value.why == why


def test_a_network_that_was_saved_as_a_whole_is_refused_with_what_to_do(tmp_path):
    torch.save(timm.create_model("test_resnet"), tmp_path / "whole.pth")
    with pytest.raises(WeightsError, match="cannot be read") as caught:
        timm_spec("test_resnet").build(5, tmp_path / "whole.pth", 160)
    assert "a Python object, timm.models.resnet.ResNet" in caught.value.why
    assert "state_dict()" in caught.value.fixes[0]


def test_a_size_that_an_architecture_cannot_take_is_refused():
    with pytest.raises(UsageError, match=r"50 px: .*; use \d+ px, its own size"):
        timm_spec("test_vit").build(5, None, 50)


def test_weights_that_do_not_fit_a_size_are_not_taken_for_those_of_another_network(tmp_path):
    # Its biases of attention have the size of its own images.
    name, size = "levit_128s", 160
    own, other = tmp_path / "own.safetensors", tmp_path / "other.safetensors"
    state = {key: value.contiguous() for key, value in timm.create_model(name).state_dict().items()}
    safetensors.torch.save_file(state, str(own))
    foreign = timm.create_model("test_resnet").state_dict()
    safetensors.torch.save_file(foreign, str(other))
    with pytest.raises(UsageError, match=r"160 px: its weights do not fit: .*; use 224 px"):
        timm_spec(name).build(5, own, size)
    with pytest.raises(WeightsError, match="not one of backbone 'levit_128s'"):
        timm_spec(name).build(5, other, size)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet", "test_nfnet"])
def test_every_parameter_is_in_one_block_or_in_the_head(name):
    spec = timm_spec(name)
    model = spec.build(5, None, spec.input.size)
    (head,) = spec.head(model)

    named = [parameter for block in spec.blocks(model) for parameter in block]
    in_head = [parameter for parameter, _ in model.named_parameters() if parameter.startswith(f"{head}.")]

    assert len(in_head) == 2
    assert sorted(named + in_head) == sorted(dict(model.named_parameters()))
    assert all(spec.blocks(model))
    first = next(iter(dict(model.named_parameters())))
    assert first in spec.blocks(model)[0]


def test_a_distilled_network_has_two_heads():
    model = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=4)

    assert timm_spec("deit_tiny_distilled_patch16_224").head(model) == ("head", "head_dist")


def test_an_architecture_without_groups_leaves_its_blocks_to_the_host():
    assert timm_spec("test_resnet").blocks(timm.create_model("test_resnet")) is not None
    with torch.device("meta"):
        model = timm.create_model("caformer_s18", num_classes=4)

    assert timm_spec("caformer_s18").blocks(model) is None


def test_a_checkpoint_of_another_architecture_is_refused_by_name_and_difference(checkpoint):
    _, file = checkpoint("test_resnet")

    with pytest.raises(WeightsError) as caught:
        timm_spec("test_efficientnet").build(5, file, 160)

    assert "test_efficientnet" in caught.value.what
    assert caught.value.where == str(file)
    assert "in the network" in caught.value.why


def test_a_checkpoint_of_a_deeper_network_of_the_kind_is_refused(tmp_path):
    deep = timm.create_model("resnet26", num_classes=3).state_dict()
    deep.update({"layer4.9.conv1.weight": torch.zeros(1)})
    safetensors.torch.save_file(deep, tmp_path / "deep.safetensors")

    with pytest.raises(WeightsError, match=r"no place in it: layer4\.9\.conv1\.weight"):
        timm_spec("resnet26").build(5, tmp_path / "deep.safetensors", 64)


def test_a_checkpoint_that_lacks_entries_is_refused_and_names_them(checkpoint, tmp_path):
    source, _ = checkpoint("test_resnet")
    state = source.state_dict()
    del state["layer2.0.conv1.weight"], state["bn1.running_mean"]
    safetensors.torch.save_file(state, tmp_path / "partial.safetensors")

    with pytest.raises(WeightsError, match=r"2 of \d+ entries are not in the file: .*bn1\.running_mean"):
        timm_spec("test_resnet").build(5, tmp_path / "partial.safetensors", 64)


def test_a_checkpoint_with_nan_is_refused(checkpoint, tmp_path):
    source, _ = checkpoint("test_resnet")
    state = {key: value.clone() for key, value in source.state_dict().items()}
    state["layer1.0.conv1.weight"][0] = float("nan")
    safetensors.torch.save_file(state, tmp_path / "nan.safetensors")

    with pytest.raises(WeightsError, match=r"NaN in the file: layer1\.0\.conv1\.weight"):
        timm_spec("test_resnet").build(5, tmp_path / "nan.safetensors", 64)


def test_a_checkpoint_that_was_cut_off_is_refused(checkpoint, tmp_path):
    _, file = checkpoint("test_resnet")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(file.read_bytes()[:-1000])

    with pytest.raises(WeightsError, match="cannot be read") as caught:
        timm_spec("test_resnet").build(5, cut, 64)
    assert caught.value.where == str(cut)


def test_a_checkpoint_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        timm_spec("test_resnet").build(5, tmp_path / "gone.safetensors", 64)


def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(tmp_path):
    trace = tmp_path / "it-ran"

    class Bomb:
        def __reduce__(self):
            return Path.touch, (trace,)

    torch.save({"state_dict": Bomb()}, tmp_path / "zip.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Bomb()))

    for file in ("zip.pth", "raw.pth"):
        with pytest.raises(WeightsError, match="cannot be read"):
            timm_spec("test_resnet").build(5, tmp_path / file, 64)
    assert not trace.exists()


def below(prefix, state):
    return {f"{prefix}{key}": value for key, value in state.items()}


WRAPPINGS = {
    "DistributedDataParallel": lambda state: {"state_dict": below("module.", state), "epoch": 3},
    "torch.compile": lambda state: below("_orig_mod.", state),
    "AveragedModel": lambda state: {**below("module.", state), "n_averaged": torch.tensor(3)},
    "Lightning": lambda state: {"state_dict": {**below("model.", state), "criterion.weight": torch.ones(3)}},
    "two wrappers": lambda state: {"state_dict": below("model.module.", state)},
    "a detector's backbone": lambda state: {**below("backbone.", state), "neck.weight": torch.ones(3)},
    "a key of its own": lambda state: {"model": "test_resnet", "weights": state},
    "a tutorial": lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {0: {}}}},
    "keys in keys": lambda state: {"model": {"state_dict": state}},
    "timm's averages": lambda state: {"state_dict": {"fc.bias": torch.ones(3)}, "state_dict_ema": state},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_checkpoint_of_a_wrapped_network_is_unwrapped(checkpoint, tmp_path, wrapping):
    source, plain = checkpoint("test_resnet")
    torch.save(WRAPPINGS[wrapping](source.state_dict()), tmp_path / "training.pth")

    def build(file):
        torch.manual_seed(3)
        return timm_spec("test_resnet").build(5, file, 64).state_dict()

    got, expected = build(tmp_path / "training.pth"), build(plain)
    assert all(torch.equal(got[key], expected[key]) for key in expected)


def test_a_model_of_torchvisions_is_unwrapped_too(tmp_path):
    import torchvision

    source = torchvision.models.get_model("mnasnet0_5", weights=None)
    torch.save({"state_dict": below("net.", source.state_dict())}, tmp_path / "training.pth")
    model = torchvision_spec("mnasnet0_5").build(5, tmp_path / "training.pth", 64)
    assert torch.equal(model.layers[0].weight, source.layers[0].weight)


def test_of_two_networks_in_a_checkpoint_that_fit_none_is_guessed(checkpoint, tmp_path):
    state = checkpoint("test_resnet")[0].state_dict()
    torch.save({**below("teacher.", state), **below("student.", state)}, tmp_path / "training.pth")
    with pytest.raises(WeightsError, match="more than once") as caught:
        timm_spec("test_resnet").build(5, tmp_path / "training.pth", 64)
    assert caught.value.why == "the entries below teacher. and below student. fit"


def test_the_one_network_of_a_checkpoint_that_fits_is_taken(checkpoint, tmp_path):
    source = checkpoint("test_resnet")[0].state_dict()
    deeper = {**source, "layer4.9.conv1.weight": torch.zeros(1)}
    state = {**below("a.", deeper), **below("b.", source), **below("c.", deeper)}
    torch.save(state, tmp_path / "training.pth")
    model = timm_spec("test_resnet").build(5, tmp_path / "training.pth", 64)
    assert torch.equal(model.conv1[0].weight, source["conv1.0.weight"])


def test_a_wrapped_network_that_does_not_fit_is_refused_for_what_it_lacks(checkpoint, tmp_path):
    state = below("model.", checkpoint("test_resnet")[0].state_dict())
    del state["model.bn1.running_mean"]
    file = tmp_path / "training.pth"
    torch.save(state, file)
    with pytest.raises(WeightsError, match="1 of 90 entries are not in the file: bn1") as caught:
        timm_spec("test_resnet").build(5, file, 64)
    assert caught.value.where == f"{file}: model.*"
    torch.save({"net.0.weight": torch.zeros(2)}, file)
    with pytest.raises(WeightsError, match=r"\.\.\.; it has net\.0\.weight instead"):
        timm_spec("test_resnet").build(5, file, 64)


def test_timms_own_loader_is_back_after_a_load_that_failed(checkpoint):
    from timm.models import _builder

    original = _builder.load_pretrained
    _, file = checkpoint("test_resnet")
    with pytest.raises(WeightsError):
        timm_spec("test_vit").build(5, file, 160)

    assert _builder.load_pretrained is original


@pytest.mark.parametrize("name", ["squeezenet1_0", "mnasnet0_5"])
def test_a_model_of_torchvisions_loads_a_file_of_any_class_count(name, tmp_path):
    import torchvision

    head = "classifier.1"
    torch.manual_seed(2)
    source = torchvision.models.get_model(name, weights=None, num_classes=12)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    spec = torchvision_spec(name)

    model = spec.build(5, tmp_path / "weights.pth", 64)

    expected, got = without_head(source, head), without_head(model, head)
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    assert spec.head(model) == (head,)
    assert model.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 5)
    assert spec.blocks is None


def test_a_model_of_torchvisions_refuses_a_checkpoint_of_another(tmp_path):
    import torchvision

    source = torchvision.models.get_model("shufflenet_v2_x0_5", weights=None)
    safetensors.torch.save_file(source.state_dict(), tmp_path / "other.safetensors")

    with pytest.raises(WeightsError, match="squeezenet1_0"):
        torchvision_spec("squeezenet1_0").build(5, tmp_path / "other.safetensors", 64)


def test_googlenet_drops_the_classifiers_that_only_help_training(tmp_path):
    import torchvision

    source = torchvision.models.googlenet(weights=None, init_weights=False, aux_logits=True)
    safetensors.torch.save_file(source.state_dict(), tmp_path / "googlenet.safetensors")

    model = torchvision_spec("googlenet").build(5, tmp_path / "googlenet.safetensors", 224)

    assert model.transform_input
    assert model.aux1 is None
    assert torch.equal(model.conv1.conv.weight, source.conv1.conv.weight)


def test_a_model_that_takes_one_size_says_so_and_refuses_others():
    assert torchvision_spec("vit_b_16").fixed_size
    assert not torchvision_spec("squeezenet1_0").fixed_size
    with pytest.raises(UsageError, match="224 px only"):
        torchvision_spec("vit_b_16").build(5, None, 64)


def test_a_model_of_one_size_is_built_for_that_size():
    spec = torchvision_spec("vit_h_14")
    with torch.device("meta"):
        model = spec.build(5, None, spec.input.size)
        assert model(torch.zeros(1, 3, spec.input.size, spec.input.size)).shape == (1, 5)
