from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

import harness
from harness.config import DEFAULT_STUDY
from harness_builtin.formula import bundled, classes, pretrain, render, ship

MANIFEST = bundled.read_manifest()
SPECS = {spec.name: spec for spec in bundled.harness_backbones()}
# A recipe of seconds: it learns its few images by heart.
TINY = {"steps": 6, "images": 64, "held_out": 64, "batch": 32, "small_side": 32}


@pytest.fixture(scope="module")
def renderer():
    return render.Renderer(classes.draw_classes())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which the images of the tiny recipe are drawn already."""
    folder = tmp_path_factory.mktemp("pretrained")
    for split in ("train", "val"):
        pretrain.draw_images(folder, split, 64, torch.device("cpu"))
    return folder


def digest(*arrays):
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()[
        :16
    ]


def test_classes_and_latents_never_change():
    # Golden values: what the shipped weights were trained on. Raise VERSION with them.
    assert classes.VERSION == 1
    drawn = classes.draw_classes()
    labels, latents = classes.draw_latents("train", 998, 4)
    assert labels.tolist() == [998, 999, 0, 1]
    assert digest(*drawn.uniform.values()) == "d6c1c04cf24977c7"
    assert digest(latents) == "6001bc3e75046a87"


def test_splits_do_not_share_latents():
    train, val = (classes.draw_latents(split, 0, 50)[1] for split in ("train", "val"))
    assert not set(train[:, 0]) & set(val[:, 0])
    assert ((train >= 0) & (train < 1)).all()


def test_an_iterated_function_system_obeys_the_sigma_factor_rule():
    drawn = classes.draw_classes()
    for affine, share in zip(drawn.affine, drawn.share, strict=True):
        count = int((share > 0).sum())
        assert 2 <= count <= 8
        singular = np.linalg.svd(affine[:count, :, :2], compute_uv=False)
        assert singular.max() <= 1 + 1e-9
        factor = (singular[:, 0] + 2 * singular[:, 1]).sum()
        assert (5 + count) / 2 - 1e-9 <= factor <= (6 + count) / 2 + 1e-9
        assert share.sum() == pytest.approx(1)
        assert not affine[count:].any()


def test_images_look_as_they_did_when_the_weights_were_trained(renderer):
    labels = torch.tensor([3, 500, 750, 900])
    images = renderer.render(labels, torch.as_tensor(classes.draw_latents("train", 0, 4)[1]))
    assert images.shape == (4, 3, 64, 64)
    assert images.dtype == torch.uint8
    # Coarse, and with a tolerance: sines and sums may differ in their last bits between machines.
    thumbnails = torch.nn.functional.avg_pool2d(images.float(), 32).flatten(1).round().int()
    golden = torch.tensor(
        [
            [158, 169, 157, 144, 153, 168, 156, 142, 130, 130, 150, 138],
            [187, 182, 148, 136, 128, 151, 169, 163, 115, 101, 120, 145],
            [122, 112, 140, 97, 198, 194, 226, 173, 165, 102, 159, 90],
            [160, 161, 162, 159, 204, 204, 205, 204, 125, 122, 128, 121],
        ]
    )
    assert (thumbnails - golden).abs().max() <= 2


def test_an_image_does_not_depend_on_the_batch_it_is_drawn_in(renderer):
    latents = torch.as_tensor(classes.draw_latents("train", 0, 20)[1])
    labels = torch.arange(0, 1000, 50)
    together = renderer.render(labels, latents)
    alone = torch.cat([renderer.render(labels[i : i + 1], latents[i : i + 1]) for i in range(20)])
    assert (together.int() - alone.int()).abs().float().mean() < 0.01


@pytest.mark.parametrize("label", [7, 555, 777, 888])
def test_classes_differ_and_so_do_the_images_of_one(renderer, label):
    latents = torch.as_tensor(classes.draw_latents("train", 0, 6)[1])
    same = renderer.render(torch.full((6,), label), latents)
    assert len({image.numpy().tobytes() for image in same}) == 6
    other = renderer.render(torch.full((6,), label + 1), latents)
    assert (same.int() - other.int()).abs().float().mean() > 5


def test_pretraining_resumes_within_an_epoch_to_the_same_weights(folder, tmp_path):
    # Three batches an epoch, and a checkpoint every second step.
    recipe = pretrain.Recipe(backbone="test_efficientnet", **{**TINY, "batch": 21, "steps": 8})
    device = torch.device("cpu")
    data = pretrain.draw_images(folder, "train", 64, device)

    def run(name):
        return pretrain._Run(recipe, tmp_path / name, device)

    whole = run("whole")
    list(whole.train(data, data))
    assert next(run("half").train(data, data))["step"] == 2
    torch.rand(3)
    again = run("half")
    again.resume()
    assert next(again.train(data, data))["step"] == 4
    list(again.train(data, data))
    for key, value in whole.average.state_dict().items():
        assert torch.equal(value, again.average.state_dict()[key]), key


def test_a_size_that_a_network_does_not_take_is_refused_before_anything_is_drawn(tmp_path):
    recipe = pretrain.Recipe(backbone="test_vit", small_side=40)
    with pytest.raises(pretrain.click.ClickException, match="does not work with images of 40 px"):
        pretrain.pretrain(recipe, tmp_path, torch.device("cpu"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("asked", "used"), [("auto", "fp32"), ("bf16", "bf16")])
def test_pretraining_learns_and_leaves_weights_that_a_study_can_use(folder, asked, used):
    tiny = {**TINY, "steps": 32, "ema": 0.9, "crop": 1.0, "precision": asked}
    recipe = pretrain.Recipe(backbone="test_efficientnet", **tiny)
    (folder / "test_efficientnet.checkpoint.pt").unlink(missing_ok=True)
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain.click, "echo", lambda line: lines.append(json.loads(line)))
        report = pretrain.pretrain(recipe, folder, torch.device("cpu"))
    # Guessing among a thousand classes costs 6.9.
    assert lines[-1]["loss"] < 0.75 * lines[0]["loss"]
    assert report["samples"] == 32 * 32
    assert report["precision"] == used
    state = load_file(folder / "test_efficientnet.safetensors")
    assert not any(key.startswith("classifier") for key in state)
    spec = bundled.describe_bundled("test_efficientnet.formula1", report)
    model = spec.build(5, folder / "test_efficientnet.safetensors", 64)
    assert torch.equal(model.conv_stem.weight, state["conv_stem.weight"].float())


def test_another_recipe_does_not_go_on_from_a_checkpoint(folder, tmp_path):
    device = torch.device("cpu")
    recipe = pretrain.Recipe(backbone="test_efficientnet", **TINY)
    run = pretrain._Run(recipe, tmp_path / "checkpoint", device)
    run._save()
    other = pretrain._Run(
        pretrain.Recipe(backbone="test_efficientnet", seed=1), tmp_path / "checkpoint", device
    )
    with pytest.raises(pretrain.click.ClickException, match="another recipe"):
        other.resume()


def shipped(folder, content=b"weights", transfer=()):
    (folder / "net.safetensors").write_bytes(content)
    (folder / "net.json").write_text(json.dumps({"recipe": {"backbone": "net"}, "source_accuracy": 0.5}))
    return ship.ship(folder, dict(transfer), folder / "package")


def test_shipping_copies_weights_and_says_what_they_are(tmp_path):
    manifest = shipped(tmp_path, transfer={"net.formula1": [{"target": "digits"}]})
    entry = manifest["backbones"]["net.formula1"]
    assert entry["sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert entry["transfer"] == [{"target": "digits"}]
    assert (tmp_path / "package" / "weights" / "net.formula1.safetensors").read_bytes() == b"weights"
    assert json.loads((tmp_path / "package" / "manifest.json").read_text()) == manifest


def test_shipping_keeps_evidence_of_the_same_weights_only_and_removes_what_is_dropped(tmp_path):
    shipped(tmp_path, transfer={"net.formula1": [{"target": "digits"}]})
    (tmp_path / "package" / "weights" / "old.formula1.safetensors").touch()
    assert shipped(tmp_path)["backbones"]["net.formula1"]["transfer"] == [{"target": "digits"}]
    assert shipped(tmp_path, b"others")["backbones"]["net.formula1"]["transfer"] == []
    assert [file.name for file in (tmp_path / "package" / "weights").iterdir()] == [
        "net.formula1.safetensors"
    ]


def test_shipping_refuses_what_is_too_large_or_missing(tmp_path):
    result = CliRunner().invoke(ship.main, [str(tmp_path)])
    assert result.exit_code == 1
    assert "holds no *.safetensors" in result.output
    (tmp_path / "net.safetensors").touch()
    assert "has no report" in CliRunner().invoke(ship.main, [str(tmp_path)]).output
    (tmp_path / "net.safetensors").write_bytes(bytes(1_000_001))
    assert "1,000,001 bytes" in CliRunner().invoke(ship.main, [str(tmp_path)]).output


@pytest.mark.parametrize("name", SPECS)
def test_a_bundled_backbone_is_what_its_manifest_says(name):
    entry = MANIFEST["backbones"][name]
    file = SPECS[name].weights.cached()
    content = file.read_bytes()
    assert hashlib.sha256(content).hexdigest() == entry["sha256"]
    assert len(content) == entry["bytes"] < ship.LARGEST
    assert entry["recipe"]["formula"] == MANIFEST["formula"] == classes.VERSION
    assert entry["samples"] == entry["recipe"]["steps"] * entry["recipe"]["batch"]
    # A hundred times chance.
    assert entry["source_accuracy"] > 0.1
    for field in ("hardware", "versions", "seconds"):
        assert entry[field]
    for key, value in load_file(file).items():
        assert value.dtype == (torch.float16 if value.is_floating_point() else torch.int64), key
        assert value.isfinite().all(), key


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize(
    ("target", "arm", "metric", "gain"),
    [
        ("cifar10, 100 a class", "linear probe", "accuracy", 0.10),
        ("cifar10, 100 a class", "full", "accuracy", 0.04),
        ("petals", "full", "f1", 0.10),
    ],
)
def test_what_is_shipped_was_measured_to_be_worth_it(name, target, arm, metric, gain):
    score = {
        row["init"]: row[metric]
        for row in MANIFEST["backbones"][name]["transfer"]
        if (row["target"], row["arm"]) == (target, arm) and row["seeds"] >= 3
    }
    assert score["pretrained"] >= score["scratch"] + gain


@pytest.mark.parametrize("name", SPECS)
def test_a_bundled_backbone_loads_without_network_and_knows_its_source_task(name, renderer):
    spec = SPECS[name]
    assert spec.weights.licence == "Apache-2.0"
    assert spec.weights.fetch() == spec.weights.cached()
    assert not spec.weights.probe_url
    model = spec.build(10, spec.weights.cached(), 64).eval()
    labels, latents = (torch.as_tensor(part) for part in classes.draw_latents("val", 0, 3))
    labels = torch.tensor([3, 3, 500])
    images = renderer.render(labels, latents).float() / 127.5 - 1
    with torch.no_grad():
        features = torch.nn.functional.normalize(
            model.forward_head(model.forward_features(images), pre_logits=True)
        )
    assert features[0] @ features[1] > features[0] @ features[2]


def test_the_default_study_is_of_all_bundled_backbones():
    assert set(DEFAULT_STUDY["space"]["backbone"]) == set(SPECS)
    for name, entry in MANIFEST["backbones"].items():
        assert name == f"{entry['recipe']['backbone']}.formula1"
    assert {file.stem for file in (bundled.FOLDER / "weights").iterdir()} == set(SPECS)


def test_a_study_starts_from_the_bundled_weights(monkeypatch):
    from harness.engine.weights import preflight

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    registry = harness.load_registry(["no:terminal"])
    backbones = [registry.backbones.get(name) for name in SPECS]
    resolved = preflight(backbones, init="pretrained", weights={}, weights_dir=None)
    for name, weights in resolved.items():
        assert weights.record.sha256 == MANIFEST["backbones"][name]["sha256"]
        assert weights.record.licence == "Apache-2.0"
