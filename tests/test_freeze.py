from __future__ import annotations

import dataclasses
import re
from copy import deepcopy
from itertools import pairwise

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional

from harness import load_registry
from harness.engine.freeze import FreezePlan, apply_freeze, count_flops, plan_freeze, set_train_mode
from harness.errors import HarnessError, PluginError, UsageError

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


def frozen_flop_share(model, plan, image_size):
    flops = count_flops(model, plan, image_size)
    return None if flops is None else flops.frozen_share


# One small model of each family: name, image size, and what makes it smaller.
FAMILIES = [
    ("test_resnet", 32, {}),
    ("test_nfnet", 32, {}),
    ("test_byobnet", 32, {}),
    ("test_efficientnet", 32, {}),
    ("test_convnext", 32, {}),
    ("test_mambaout", 32, {}),
    ("test_vit2", 32, {}),
    ("mobilenetv3_small_050", 32, {}),
    ("mobilenetv4_conv_small_035", 32, {}),
    ("regnety_002", 32, {}),
    ("densenet121", 32, {"growth_rate": 8, "block_config": (2, 2, 4, 2)}),
    ("repvgg_a0", 32, {}),
    ("ghostnet_050", 32, {}),
    ("hgnetv2_b0", 32, {}),
    ("dla46_c", 32, {}),
    ("starnet_s050", 32, {}),
    ("hrnet_w18_small", 32, {}),
    ("inception_v3", 75, {}),
    ("efficientvim_m1", 64, {}),
    ("mobilevit_xxs", 32, {}),
    ("edgenext_xx_small", 32, {}),
    ("levit_128s", 64, {"img_size": 64}),
    ("swin_tiny_patch4_window7_224", 56, {"img_size": 56, "embed_dim": 24, "depths": (1, 1, 2, 1)}),
    ("deit_tiny_distilled_patch16_224", 32, {"img_size": 32, "depth": 4}),
    ("eva02_tiny_patch14_224", 28, {"img_size": 28, "depth": 4}),
    ("xcit_nano_12_p16_224", 32, {"img_size": 32, "depth": 3}),
    ("cait_xxs24_224", 32, {"img_size": 32, "depth": 4}),
    ("mixer_s32_224", 64, {"img_size": 64}),
    ("gmlp_ti16_224", 32, {"img_size": 32}),
    ("pvt_v2_b0", 32, {"depths": (1, 1, 1, 1)}),
    ("poolformer_s12", 32, {}),
    ("pit_ti_224", 64, {"img_size": 64}),
    ("coat_tiny", 32, {"img_size": 32, "serial_depths": (1, 1, 1, 1), "parallel_depth": 2}),
]


@dataclasses.dataclass(kw_only=True)
class Family:
    model: nn.Module
    blocks: list[list[str]] | None
    head: tuple[str, ...]
    size: int
    start: dict[str, torch.Tensor]
    plans: dict[float, FreezePlan] = dataclasses.field(default_factory=dict)

    def plan(self, depth):
        if depth not in self.plans:
            self.plans[depth] = plan_freeze(
                self.model, depth, blocks=self.blocks, head=self.head, image_size=self.size
            )
        return self.plans[depth]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small operations are slower on many threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def backbones():
    return load_registry(["no:terminal"]).backbones


@pytest.fixture(scope="module", params=FAMILIES, ids=[name for name, _, _ in FAMILIES])
def family(request, backbones):
    name, size, options = request.param
    torch.manual_seed(0)
    try:
        model = timm.create_model(name, num_classes=5, drop_rate=0.1, drop_path_rate=0.1, **options)
    except TypeError:
        model = timm.create_model(name, num_classes=5, drop_rate=0.1, **options)
    perturb(model)
    spec = backbones.get(name).spec
    start = {name: value.detach().clone() for name, value in all_tensors(model)}
    return Family(model=model, blocks=spec.blocks(model), head=spec.head(model), size=size, start=start)


def perturb(model):
    """Leave no zero that could hide a layer's effect, and no statistics at their start."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)


def train(model, plan, size, *, steps=2, lr=0.1):
    """Train as an engine does and return the state before."""
    apply_freeze(model, plan)
    before = {name: value.detach().clone() for name, value in all_tensors(model)}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.01)
    torch.manual_seed(1)
    for _ in range(steps):
        model.eval()  # as a validation between two epochs does
        set_train_mode(model, plan)
        optimizer.zero_grad()
        logits = model(torch.randn(3, 3, size, size) + 1)
        functional.cross_entropy(logits, torch.tensor([0, 1, 2])).backward()
        optimizer.step()
    return before


def all_tensors(model):
    """Return parameters and buffers, those that are never saved included."""
    return [*model.named_parameters(), *model.named_buffers()]


def head_parameters(model, plan):
    heads = {head: model.get_submodule(head) for head in plan.head}
    return {f"{head}.{name}" for head, module in heads.items() for name, _ in module.named_parameters()}


# --- over timm's families ---------------------------------------------------------------------------------


def test_trainable_sets_are_nested_from_everything_to_the_head_alone(family):
    plans = [family.plan(depth) for depth in DEPTHS]
    everything = {name for name, _ in family.model.named_parameters()}
    assert set(plans[0].trainable) == everything
    assert (plans[0].frozen, plans[0].eval_modules, plans[0].param_share) == ((), (), 0.0)
    assert set(plans[-1].trainable) == head_parameters(family.model, plans[-1])
    assert plans[-1].param_share == 1.0
    for shallow, deep in pairwise(plans):
        assert set(deep.trainable) < set(shallow.trainable)
        assert set(shallow.eval_modules) < set(deep.eval_modules)
        assert shallow.param_share < deep.param_share
    for plan in plans:
        assert set(plan.trainable) | set(plan.frozen) == everything
        assert not set(plan.trainable) & set(plan.frozen)
        assert plan.n_frozen == int(plan.depth * plan.n_blocks + 0.5)


@pytest.mark.parametrize("depth", [0.25, 0.5, 0.75, 1.0])
def test_frozen_parameters_and_buffers_stay_bit_identical(family, depth):
    plan, model = family.plan(depth), family.model
    with torch.no_grad():
        for name, value in all_tensors(model):
            value.copy_(family.start[name])
    before = train(model, plan, family.size)
    after = dict(all_tensors(model))
    still = [f"{name}." for name in plan.eval_modules]
    kept = {*plan.frozen, *(name for name, _ in model.named_buffers() if name.startswith(tuple(still)))}
    assert [name for name in kept if not torch.equal(before[name], after[name])] == []
    assert [name for name in plan.frozen if model.get_parameter(name).grad is not None] == []

    changed = {name for name in plan.trainable if not torch.equal(before[name], after[name])}
    assert changed >= head_parameters(model, plan)
    assert len(changed) > 0.95 * len(plan.trainable)
    statistics = {name for name, _ in model.named_buffers() if name.endswith("running_mean")}
    assert [name for name in statistics - kept if torch.equal(before[name], after[name])] == []


# --- models that name no blocks ---------------------------------------------------------------------------


def conv_net(*, affine=True, p=0.5):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Dropout2d(p),
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4, affine=affine),
        nn.ReLU(),
        nn.Dropout(p),
        nn.Conv2d(4, 4, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(p),
        nn.Linear(4, 5),
    )


def test_without_blocks_each_layer_is_one_and_the_last_is_the_head():
    plan = plan_freeze(conv_net(), 0.5, image_size=16)
    assert (plan.n_blocks, plan.n_frozen, plan.head) == (3, 2, ("9",))
    assert plan.frozen == ("1.weight", "1.bias", "2.weight", "2.bias")
    assert plan.frozen_modules == ("1", "2")
    assert plan.param_share == pytest.approx((112 + 8) / (112 + 8 + 148))


def test_layers_are_ordered_as_they_are_called_and_not_as_they_are_registered():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 5)
            self.second = nn.Conv2d(4, 4, 3)
            self.first = nn.Conv2d(3, 4, 3)

        def forward(self, images):
            return self.head(self.second(self.first(images)).mean((2, 3)))

    plan = plan_freeze(Backwards(), 0.5, image_size=16)
    assert plan.head == ("head",)
    assert plan.frozen == ("first.weight", "first.bias")


class Transformer(nn.Module):
    """Holds parameters in containers, and a fused layer that calls its parts only when it must."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(2, 2)
        self.patches = nn.Conv2d(3, 8, 8, stride=8)
        self.position = nn.Parameter(torch.zeros(1, 4, 8))
        self.scale = nn.Parameter(torch.ones(8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, images):
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.position
        return self.head(self.layer(tokens * self.scale).mean(1))


def test_parameters_of_a_container_go_with_its_first_layer():
    model = Transformer()
    plan = plan_freeze(model, 0.2, image_size=16)
    assert (plan.n_blocks, plan.n_frozen) == (6, 1)
    first = {"position", "scale", "patches.weight", "patches.bias", "unused.weight", "unused.bias"}
    assert set(plan.frozen) == first
    attention = {name for name, _ in model.named_parameters() if "self_attn" in name}
    assert set(plan_freeze(model, 0.4, image_size=16).frozen) == first | attention


def test_a_frozen_fused_layer_is_planned_and_counted_as_before():
    model = Transformer()
    first = plan_freeze(model, 0.4, image_size=16)
    share = frozen_flop_share(model, first, 16)
    apply_freeze(model, first)
    assert plan_freeze(model, 0.4, image_size=16) == first
    assert frozen_flop_share(model, first, 16) == share


def test_parameters_that_no_block_names_join_the_layer_called_before_them():
    model = conv_net()
    blocks = [["1.weight", "1.bias"], ["5.weight"], ["9.weight"]]
    plan = plan_freeze(model, 0.5, blocks=blocks, head=["9"], image_size=16)
    assert plan.n_blocks == 2
    assert set(plan.frozen) == {"1.weight", "1.bias", "2.weight", "2.bias"}
    plan = plan_freeze(model, 1.0, blocks=blocks[1:], head=["9"], image_size=16)
    assert (plan.n_blocks, plan.trainable) == (1, ("9.weight", "9.bias"))


# --- what is held in eval mode ----------------------------------------------------------------------------


def test_dropout_before_a_frozen_layer_is_off_and_after_the_last_one_is_on():
    model = conv_net()
    plan = plan_freeze(model, 1.0, image_size=16)
    apply_freeze(model, plan)
    set_train_mode(model, plan)
    assert [name for name, module in model.named_modules() if module.training] == ["", "6", "7", "8", "9"]
    assert set(plan.eval_modules) == {"0", "1", "2", "3", "4", "5"}
    images = torch.randn(4, 3, 16, 16)
    assert torch.equal(model[:8](images), model[:8](images))


def test_dropout_between_trained_layers_is_on_although_a_frozen_one_comes_later():
    model = conv_net()
    blocks = [["5.weight", "5.bias"], ["1.weight", "1.bias", "2.weight", "2.bias"]]
    plan = plan_freeze(model, 0.5, blocks=blocks, head=["9"], image_size=16)
    assert plan.eval_modules == ("5",)


def test_a_frozen_batch_norm_without_parameters_keeps_its_statistics():
    model = conv_net(affine=False)
    before = train(model, plan_freeze(model, 1.0, image_size=16), 16)
    assert torch.equal(before["2.running_mean"], model[2].running_mean)
    model = conv_net(affine=False)
    before = train(model, plan_freeze(model, 0.5, image_size=16), 16)
    assert not torch.equal(before["2.running_mean"], model[2].running_mean)


def test_a_partly_frozen_batch_norm_keeps_its_statistics_and_trains_the_rest():
    model = conv_net()
    blocks = [["1.weight", "1.bias", "2.weight"], ["2.bias", "5.weight", "5.bias"]]
    plan = plan_freeze(model, 0.5, blocks=blocks, image_size=16)
    assert "2" in plan.eval_modules
    assert "2" not in plan.frozen_modules
    before = train(model, plan, 16)
    for name in ("2.weight", "2.running_mean", "2.running_var", "2.num_batches_tracked"):
        assert torch.equal(before[name], model.state_dict()[name]), name
    assert not torch.equal(before["2.bias"], model[2].bias)


def test_dropout_that_only_training_calls_is_off_in_front_of_a_frozen_layer():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.early, self.two = nn.Conv2d(3, 4, 3), nn.Dropout(), nn.Conv2d(4, 4, 3)
            self.late, self.head = nn.Dropout(), nn.Linear(4, 5)

        def forward(self, images):
            maps = self.one(images)
            maps = self.two(self.early(maps) if self.training else maps).mean((2, 3))
            return self.head(self.late(maps) if self.training else maps)

    assert plan_freeze(Sometimes(), 1.0, image_size=16).eval_modules == ("one", "early", "two")


def test_a_shared_layer_is_one_block_and_keeps_what_it_shares_still():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3)
            self.shared = nn.Conv2d(4, 4, 3, padding=1)
            self.alias = self.shared
            self.between = nn.Dropout()
            self.head = nn.Linear(4, 5)

        def forward(self, images):
            maps = self.alias(self.between(self.shared(self.stem(images))))
            return self.head(maps.mean((2, 3)))

    model = Twice()
    plan = plan_freeze(model, 1.0, image_size=16)
    assert (plan.n_blocks, plan.frozen_modules) == (2, ("stem", "shared"))
    assert set(plan.eval_modules) == {"stem", "shared", "between"}
    half = plan_freeze(model, 0.5, image_size=16)
    assert half.frozen == ("stem.weight", "stem.bias")
    blocks = [[f"{name}.weight", f"{name}.bias"] for name in ("stem", "shared", "alias")]
    assert plan_freeze(model, 1.0, blocks=blocks, image_size=16).frozen == plan.frozen
    share = frozen_flop_share(model, plan, 16)
    assert share is not None and share > 0.99


def test_a_weight_that_the_head_shares_trains_with_it():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.Flatten())
    model[2].weight = model[0].weight
    plan = plan_freeze(model, 1.0, image_size=4)
    assert plan.trainable == ("0.weight", "2.bias")
    assert plan.frozen == ("0.bias", "1.weight", "1.bias")
    assert plan.frozen_modules == ("1",)


# --- graph, state and applying ----------------------------------------------------------------------------


def test_below_the_cut_there_is_no_graph():
    def size(depth):
        model = timm.create_model("test_resnet", num_classes=5)
        plan = plan_freeze(model, depth, image_size=32)
        apply_freeze(model, plan)
        set_train_mode(model, plan)
        seen, todo = set(), [model(torch.randn(2, 3, 32, 32)).grad_fn]
        while todo:
            node = todo.pop()
            if node is not None and node not in seen:
                seen.add(node)
                todo += [parent for parent, _ in node.next_functions]
        held = {id(node.variable) for node in seen if hasattr(node, "variable")}
        assert held == {id(model.get_parameter(name)) for name in plan.trainable}
        return len(seen)

    sizes = [size(depth) for depth in DEPTHS]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] <= 5


@pytest.mark.parametrize("name", ["test_resnet", "levit_128s"])
def test_planning_and_counting_leave_the_model_and_the_generators_alone(name):
    model = timm.create_model(name, num_classes=5, drop_rate=0.5)
    model.train()
    next(iter(model.children())).eval()
    flags = [module.training for module in model.modules()]
    before = {key: value.detach().clone() for key, value in all_tensors(model)}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    size = 224 if name.startswith("levit") else 32
    plan = plan_freeze(model, 0.5, image_size=size)
    assert frozen_flop_share(model, plan, size)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(value, before[key]) for key, value in all_tensors(model))
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert not any(getattr(module, "attention_bias_cache", None) for module in model.modules())


def test_a_buffer_that_even_eval_mode_moves_is_restored():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(()))
            self.head = nn.Linear(3, 5)

        def forward(self, images):
            self.count += 1
            return self.head(images.mean((2, 3)) + 0 * torch.rand(1))

    model = Counting()
    state = torch.get_rng_state()
    plan_freeze(model, 0.0, image_size=8)
    assert model.count == 0
    assert torch.equal(torch.get_rng_state(), state)


def test_another_plan_replaces_the_first():
    model = conv_net()
    deep, shallow = (plan_freeze(model, depth, image_size=16) for depth in (1.0, 0.25))
    apply_freeze(model, deep)
    assert plan_freeze(deepcopy(model), 0.25, image_size=16) == shallow
    apply_freeze(model, shallow)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(shallow.trainable)


def test_freezing_drops_an_old_gradient():
    model = conv_net()
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    apply_freeze(model, plan_freeze(model, 1.0, image_size=16))
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["9.weight", "9.bias"]


def test_a_constant_of_the_author_never_trains():
    model = conv_net()
    model[5].weight.requires_grad_(False)
    plan = plan_freeze(model, 0.0, image_size=16)
    assert "5.weight" not in plan.trainable
    assert "5.weight" not in plan.frozen
    apply_freeze(model, plan)
    assert not model[5].weight.requires_grad


# --- shares -----------------------------------------------------------------------------------------------


def test_flop_share_grows_with_depth():
    model = timm.create_model("test_resnet", num_classes=5)
    shares = [frozen_flop_share(model, plan_freeze(model, depth, image_size=64), 64) for depth in DEPTHS]
    assert shares[0] == 0.0
    assert shares == sorted(set(shares))
    assert 0.99 < shares[-1] < 1.0


def test_flop_share_is_the_share_of_the_multiplications():
    model = conv_net()
    share = frozen_flop_share(model, plan_freeze(model, 0.5, image_size=16), 16)
    first, second, head = 14 * 14 * 4 * 27, 12 * 12 * 4 * 36, 4 * 5
    assert share == pytest.approx(first / (first + second + head))


def test_layers_in_a_list_that_is_never_called_count_as_frozen():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Conv2d(3, 3, 3) for _ in range(3)])
            self.head = nn.Linear(3, 5)

        def forward(self, images):
            for layer in self.layers:
                images = layer(images)
            return self.head(images.mean((2, 3)))

    model = Listed()
    plan = plan_freeze(model, 1.0, image_size=16)
    assert plan.frozen_modules == ("layers",)
    share = frozen_flop_share(model, plan, 16)
    assert share is not None and share > 0.99


def test_flop_share_is_none_where_nothing_can_be_counted():
    class Free(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.head = nn.GroupNorm(1, 3), nn.BatchNorm1d(3)

        def forward(self, images):
            return self.head(self.scale(images).mean((2, 3)))

    model = Free()
    plan = plan_freeze(model, 1.0, image_size=8)
    assert frozen_flop_share(model, plan, 8) is None
    model = conv_net()
    assert frozen_flop_share(model, plan_freeze(model, 1.0, image_size=16), 2) is None
    assert not any(module._forward_pre_hooks for module in model.modules())


# --- bad inputs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [-0.1, 1.1, float("nan")])
def test_a_depth_outside_0_to_1_is_refused(depth):
    with pytest.raises(UsageError, match="between 0 and 1"):
        plan_freeze(conv_net(), depth, image_size=16)


@pytest.mark.parametrize(
    ("blocks", "head", "why"),
    [
        ([["1.weight", "nope"]], None, "no such parameter"),
        ([["1.weight"], ["1.weight"]], None, "named twice"),
        (None, ["nope"], "no submodule"),
        (None, [""], "no submodule"),
        (None, ["8"], "no parameters"),
        (None, [], "no parameters"),
    ],
)
def test_blocks_and_heads_that_do_not_fit_are_refused(blocks, head, why):
    with pytest.raises(PluginError) as caught:
        plan_freeze(conv_net(), 0.5, blocks=blocks, head=head, image_size=16)
    assert why in str(caught.value)


def test_a_model_without_a_layer_is_refused():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3, 5))

        def forward(self, images):
            return images.mean((2, 3)) @ self.weight

    with pytest.raises(PluginError, match="head cannot be told"):
        plan_freeze(Bare(), 1.0, image_size=8)


def test_a_model_that_does_not_run_is_refused_and_left_clean():
    model = conv_net()
    with pytest.raises(PluginError) as caught:
        plan_freeze(model, 0.5, image_size=2)
    assert "3x2x2" in str(caught.value)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(module.training for module in model.modules())


def test_a_plan_of_another_model_is_refused():
    plan = plan_freeze(conv_net(), 0.5, image_size=16)
    with pytest.raises(HarnessError, match="another model"):
        apply_freeze(nn.Linear(2, 2), plan)


class Answering(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
        self.answer = answer

    def forward(self, images):
        return self.answer(self.head(self.body(images).mean((2, 3))))


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (lambda logits: (logits, logits), "it returns tuple"),
        (lambda logits: {"logits": logits}, "it returns dict"),
        (lambda logits: logits.argmax(1), r"it returns torch.int64 \(2,\)"),
        (lambda logits: logits[..., None], r"it returns torch.float32 \(2, 2, 1\)"),
    ],
)
def test_a_backbone_that_gives_no_logits_is_named(answer, found):
    with pytest.raises(PluginError, match="gives no logits") as caught:
        plan_freeze(Answering(answer), 0.5, image_size=8)
    assert re.search(found, caught.value.why)
