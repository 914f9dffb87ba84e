from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from harness.engine.compiled import compile_training, is_worth_compiling, keep_compiled
from harness.engine.fit import backward
from harness.engine.freeze import plan_freeze

GPU = torch.device("cuda:0")


@pytest.mark.parametrize(
    ("change", "worth"),
    [
        # ResNet-50 on 1.25 million images is; on a tenth of them it is not.
        ({}, True),
        ({"images": 120_000}, False),
        ({"frozen": 3}, False),
        ({"flops": None}, False),
        ({"device": torch.device("cpu")}, False),
        ({"device": torch.device("mps")}, False),
    ],
)
def test_long_trainings_of_everything_on_a_gpu_are_worth_compiling(change, worth):
    asked = {"device": GPU, "frozen": 0, "flops": 8.2e9, "images": 1_250_000, **change}
    assert is_worth_compiling(**asked) is worth


class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 3),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(36 * width, 3),
        )

    def forward(self, images):
        return self.layers(images)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Net()


IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def compile_it(model, backend="aot_eager", loss=None):
    plan = plan_freeze(model, 0.0, image_size=8)
    return compile_training(
        model, plan, loss or nn.CrossEntropyLoss(), [IMAGES], LABELS, "fp32", backend=backend
    )


def gradients(model, run):
    torch.manual_seed(1)
    model.train()
    model.zero_grad()
    value = backward(run, nn.CrossEntropyLoss(), [IMAGES], LABELS, 1, "fp32")
    return [value, *(parameter.grad.clone() for parameter in model.parameters())]


def test_a_compiled_pass_gives_the_gradients_of_the_model(model):
    run, execution = compile_it(model)
    assert execution == "compiled"
    expected = gradients(model, lambda inputs, training: model(inputs[0]))
    for found, wanted in zip(gradients(model, run), expected, strict=True):
        assert torch.allclose(found, wanted, atol=1e-6)


def test_trying_it_out_leaves_model_loss_and_random_numbers_as_they_were(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    compile_it(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_other_shapes_and_evaluation_run_as_the_model_is_written(model, monkeypatch):
    shapes = []

    def compiling(module, **options):
        def run(images):
            shapes.append(tuple(images.shape))
            return module(images)

        return run

    monkeypatch.setattr(torch, "compile", compiling)
    run, _ = compile_it(model)
    shapes.clear()
    assert run([IMAGES[:3]], True).shape == (3, 3)
    model.eval()
    assert run([IMAGES], False).shape == (6, 3)
    assert shapes == []
    run([IMAGES], True)
    assert shapes == [(6, 3, 8, 8)]


def fails_to_compile(graph, examples):
    raise RuntimeError("no such compiler (injected)")


def fails_to_run(graph, examples):
    def run(*values):
        raise torch.OutOfMemoryError("too much (injected)")

    return run


@pytest.mark.parametrize(
    ("backend", "why"), [(fails_to_compile, "no such compiler"), (fails_to_run, "too much")]
)
def test_what_cannot_be_compiled_trains_all_the_same_and_says_why(model, backend, why):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = gradients(model, lambda inputs, training: model(inputs[0]))
    model.load_state_dict(before)
    run, execution = compile_it(model, backend)
    assert execution.startswith("eager: ")
    assert why in execution
    for found, wanted in zip(gradients(model, run), expected, strict=True):
        assert torch.equal(found, wanted)


def test_a_loss_that_counts_its_calls_is_put_back(model):
    class Counting(nn.CrossEntropyLoss):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, logits, labels):
            self.calls += 1
            return super().forward(logits, labels)

    loss = Counting()
    compile_it(model, loss=loss)
    assert loss.calls == 0


def test_other_models_of_a_class_are_compiled_as_the_first_was():
    # What those before left behind counts against a limit, beyond which torch compiles nothing, and goes on.
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        assert [compile_it(Net(width), "eager")[1] for width in (4, 5, 6)] == ["compiled"] * 3


@pytest.mark.parametrize(("given", "kept"), [(None, True), ("torch", True), ("own", False)])
def test_what_is_compiled_is_kept_in_a_folder_unless_the_user_named_another(
    monkeypatch, tmp_path, given, kept
):
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    own = str(tmp_path / "own")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", own if given == "own" else default_cache_dir())
    if given is None:
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    keep_compiled(tmp_path / "compiled")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == (str(tmp_path / "compiled") if kept else own)
