"""Weights come from the table, the folder, the cache or the hub, in this order; or no study starts."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
import threading

import pytest
import safetensors.torch
import timm
import torch
from hub import Hub

from harness import WeightsError
from harness.documents import file_sha256
from harness.engine.weights import preflight, probe, resolve_weights
from harness.errors import PluginError, UsageError
from harness.records import Provider
from harness.registry import Component
from harness.specs import BackboneSpec, WeightsSpec

# Runs in a process of its own, because the hub's client reads its environment when it is imported.
SCRIPT = """
import json, sys
import torch
from harness import load_registry, HarnessError
from harness.engine.weights import preflight

backbones, out = load_registry(["no:terminal"]).backbones, {}
for name in sys.argv[1:]:
    component = backbones.get(name)
    try:
        found = preflight([component], init="pretrained", weights={}, weights_dir=None)[name]
        torch.manual_seed(0)
        model = component.spec.build(7, found.path, 64)
        out[name] = {
            "stem": model.conv1[0].weight.sum().item(),
            "head": list(model.fc.weight.shape),
            "head_std": model.fc.weight.std().item(),
            "source": found.record.source,
            "licence": found.record.licence,
            "sha256": found.record.sha256,
        }
    except HarnessError as error:
        out[name] = {"error": str(error), "code": error.exit_code}
print(json.dumps(out))
"""


def a_backbone(name, *, cached=None, fetch=None, probe_url="", weights=True):
    spec = WeightsSpec(
        source=f"someone/{name}",
        licence="apache-2.0",
        cached=lambda: cached,
        fetch=fetch or (lambda: pytest.fail("fetched")),
        probe_url=probe_url,
    )
    return Component(
        spec=BackboneSpec(name=name, summary="", build=lambda *_: None, weights=spec if weights else None),
        provider=Provider(name=name, plugin="p", distribution="d", version="1"),
    )


def a_file(path, text="weights"):
    """Write a small but sound file, another one for another text."""
    from safetensors.numpy import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({}, str(path), metadata={"text": text})
    return path


def look(backbone, **given):
    return resolve_weights(backbone, **{"init": "pretrained", "weights": {}, "weights_dir": None, **given})


def check(*backbones, **given):
    return preflight(backbones, **{"init": "pretrained", "weights": {}, "weights_dir": None, **given})


@pytest.fixture
def nowhere():
    """An address on which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/someone/net"


def test_the_table_goes_before_the_folder_and_the_folder_before_the_cache(tmp_path):
    table = a_file(tmp_path / "mine.safetensors", "table")
    folder = a_file(tmp_path / "dir" / "net.safetensors", "folder")
    backbone = a_backbone("net", cached=a_file(tmp_path / "cache", "cache"))

    first = look(backbone, weights={"net": table}, weights_dir=folder.parent)
    second = look(backbone, weights_dir=folder.parent)
    third = look(backbone)

    assert [found.path for found in (first, second, third)] == [table, folder, tmp_path / "cache"]
    assert first.record.sha256 == file_sha256(table)
    assert (first.record.source, first.record.licence) == ("file mine.safetensors", "unknown")
    assert (third.record.source, third.record.licence) == ("someone/net", "apache-2.0")


def test_a_name_with_signs_no_file_should_have_is_found_in_the_folder(tmp_path):
    file = a_file(tmp_path / "timm_net_a.safetensors")

    assert look(a_backbone("timm:net/a"), weights_dir=tmp_path).path == file


def test_scratch_needs_nothing():
    resolved = check(a_backbone("net", weights=False), init="scratch")["net"]

    assert resolved.path is None
    assert (resolved.record.init, resolved.record.sha256) == ("scratch", "")


def test_a_file_of_the_table_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        check(a_backbone("net"), weights={"net": tmp_path / "gone.safetensors"})


def test_a_table_entry_for_no_backbone_is_refused(tmp_path):
    with pytest.raises(UsageError, match="did you mean 'resnet18'"):
        check(a_backbone("resnet18"), weights={"resnet18s": a_file(tmp_path / "x")})


def test_a_folder_that_lacks_files_names_all_of_them(tmp_path):
    a_file(tmp_path / "one.safetensors")

    with pytest.raises(WeightsError) as caught:
        check(a_backbone("one"), a_backbone("two"), a_backbone("fam:three"), weights_dir=tmp_path)

    assert "two.safetensors" in caught.value.what
    assert "fam_three.safetensors" in caught.value.what
    assert "one.safetensors" not in caught.value.what


def test_a_folder_that_does_not_exist_is_said_to_be_missing(tmp_path):
    with pytest.raises(WeightsError, match="no such folder"):
        check(a_backbone("one"), weights_dir=tmp_path / "gone")


def test_a_backbone_without_pretrained_weights_is_refused_unless_it_starts_from_scratch(tmp_path):
    with pytest.raises(WeightsError, match="--init scratch") as caught:
        check(a_backbone("bare", weights=False))
    assert "bare" in caught.value.what

    file = a_file(tmp_path / "bare.safetensors")
    assert check(a_backbone("bare", weights=False), weights_dir=tmp_path)["bare"].path == file


def test_what_is_missing_is_fetched_and_what_is_cached_is_not(tmp_path):
    file = a_file(tmp_path / "fetched")
    cached = a_backbone("old", cached=a_file(tmp_path / "cached"))

    resolved = check(a_backbone("new", fetch=lambda: file), cached)

    assert resolved["new"].path == file
    assert resolved["new"].record.sha256 == file_sha256(file)
    assert resolved["old"].path == tmp_path / "cached"


def test_without_network_all_missing_backbones_and_the_fixes_are_named(nowhere, tmp_path):
    with pytest.raises(WeightsError) as caught:
        check(
            a_backbone("net-a", probe_url=nowhere),
            a_backbone("net-b", probe_url=nowhere),
            a_backbone("here", cached=a_file(tmp_path / "cached"), probe_url=nowhere),
        )

    assert caught.value.exit_code == 5
    assert "net-a, net-b" in caught.value.what
    assert "here" not in caught.value.what
    assert "refused" in caught.value.why
    told = " ".join(caught.value.fixes)
    for word in ("connect", "HF_HOME", "--weights", "net-a.safetensors", "HF_ENDPOINT", "--init scratch"):
        assert word in told


def test_when_the_user_switched_the_hub_off_nobody_is_asked(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with Hub({}) as hub, pytest.raises(WeightsError, match="HF_HUB_OFFLINE is set"):
        check(a_backbone("net", probe_url=f"{hub.url}/someone/net"))

    assert hub.requests == []


def test_one_request_per_hub_tells_whether_it_can_be_reached(tmp_path):
    file = a_file(tmp_path / "fetched")
    with Hub({}) as hub:
        check(*(a_backbone(name, fetch=lambda: file, probe_url=f"{hub.url}/x/{name}") for name in "abc"))

    assert len(hub.requests) == 1
    assert hub.requests[0].startswith("HEAD ")


@pytest.mark.parametrize(
    "path", ["/someone/net/resolve/main/model.safetensors", "/someone/gone", "/gated/net/resolve/main/x"]
)
def test_any_answer_shows_that_a_hub_is_there(path):
    files = {"someone/net/model.safetensors": b"x"}
    with Hub(files, refused={"gated/net": 403}) as hub:
        assert probe(hub.url + path) == ""


def test_a_probe_gives_up_on_a_host_that_never_answers():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert "no answer" in probe(f"http://127.0.0.1:{silent.getsockname()[1]}/", timeout=0.2)


def test_a_probe_gives_up_on_a_name_resolution_that_hangs(monkeypatch):
    release, over = threading.Event(), []

    def hang(*_, **__):
        release.wait(60)
        over.append(True)
        raise socket.gaierror("late")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    try:
        assert "no answer" in probe("http://hub.invalid/", timeout=0.2)
        assert not over
    finally:
        release.set()


def test_a_name_that_cannot_be_resolved_is_said_to_be_that(monkeypatch):
    def fail(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert "resolved" in probe("http://hub.invalid/")


def test_a_download_that_fails_in_a_plugins_own_way_is_a_weights_error():
    def fetch():
        raise KeyError("surprise")

    with pytest.raises(WeightsError, match="surprise") as caught:
        check(a_backbone("net", fetch=fetch))
    assert "someone/net" in caught.value.where


def test_a_plugin_that_cannot_tell_of_its_weights_is_named(tmp_path):
    def fail():
        raise KeyError("surprise")

    for cached, why in ((fail, "KeyError: 'surprise'"), (lambda: "net.pt", "'net.pt', neither the Path")):
        backbone = a_backbone("net")
        weights = dataclasses.replace(backbone.spec.weights, cached=cached)
        backbone = dataclasses.replace(backbone, spec=dataclasses.replace(backbone.spec, weights=weights))
        with pytest.raises(PluginError, match="backbone 'net' cannot say whether its weights") as caught:
            check(backbone)
        assert why in caught.value.why
        assert caught.value.where == "plugin p (d 1)"


def test_a_download_that_gives_no_file_is_a_weights_error():
    with pytest.raises(WeightsError, match=r"fetch\(\) returned 'net.pt'"):
        check(a_backbone("net", fetch=lambda: "net.pt"))


def run_script(hub_url, cache, *names, **environment):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *names],
        env={
            **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
            "HF_ENDPOINT": hub_url,
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "OMP_NUM_THREADS": "1",
            **environment,
        },
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    """What two processes make of a hub: the first finds an empty cache, the second a full one."""
    folder = tmp_path_factory.mktemp("downloads")
    torch.manual_seed(1)
    model = timm.create_model("test_resnet", pretrained=False, num_classes=1000)
    safetensors.torch.save_file(model.state_dict(), folder / "served.safetensors")
    content = (folder / "served.safetensors").read_bytes()
    files = {
        "timm/test_resnet.r160_in1k/model.safetensors": content,
        "timm/test_vit2.r160_in1k/README.md": b"no weights here",
    }
    with Hub(files, refused={"timm/test_vit.r160_in1k": 403}) as hub:
        first = run_script(hub.url, folder / "hf", "test_resnet", "test_vit", "test_vit2", "test_byobnet")
        downloaded = hub.asked_for("GET /timm/test_resnet")
        hub.requests.clear()
        second = run_script(hub.url, folder / "hf", "test_resnet")
        again = hub.asked_for("/timm/")
    return {
        "model": model,
        "sha256": file_sha256(folder / "served.safetensors"),
        "first": first,
        "second": second,
        "downloaded": downloaded,
        "again": again,
    }


@pytest.mark.slow
def test_weights_of_a_hub_are_downloaded_and_loaded_without_their_head(downloads):
    got = downloads["first"]["test_resnet"]

    assert len(downloads["downloaded"]) == 1
    assert got["stem"] == pytest.approx(downloads["model"].conv1[0].weight.sum().item())
    assert got["head"][0] == 7
    assert 0 < got["head_std"] < 1
    assert got["source"] == "timm/test_resnet.r160_in1k"
    assert got["licence"] == "apache-2.0"
    assert got["sha256"] == downloads["sha256"]


@pytest.mark.slow
def test_the_second_run_takes_the_cache_and_asks_nobody(downloads):
    assert downloads["second"] == {"test_resnet": downloads["first"]["test_resnet"]}
    assert downloads["again"] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "status"), [("test_vit", "HTTP 403"), ("test_vit2", "HTTP 404"), ("test_byobnet", "HTTP 404")]
)
def test_a_hub_that_refuses_is_quoted_with_its_status(downloads, name, status):
    told = downloads["first"][name]

    assert told["code"] == 5
    assert status in told["error"]
    assert f"timm/{name}.r160_in1k" in told["error"]


def test_a_damaged_file_is_refused_before_any_trial(tmp_path):
    file = tmp_path / "net.safetensors"
    file.write_bytes(b"junk")
    with pytest.raises(WeightsError, match="cannot be read") as caught:
        look(a_backbone("net"), weights_dir=tmp_path)
    assert str(file) in str(caught.value)
