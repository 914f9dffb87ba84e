from __future__ import annotations

import http.server
import threading
import urllib.error
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from harness.data import fetch as module
from harness.data.fetch import fetch, folder_of, is_present, unreachable
from harness.errors import DataError, PluginError
from harness.specs import DatasetSpec, Sample

PIXELS = np.zeros((2, 2, 3), dtype=np.uint8)
NOWHERE = "http://127.0.0.1:9/archive.zip"


def spec(build: Callable[[Path, bool], Iterable[Sample]], url: str = NOWHERE) -> DatasetSpec:
    return DatasetSpec(
        name="beans",
        summary="",
        build=build,
        licence="MIT",
        url="http://127.0.0.1/beans",
        download_url=url,
        size="3 MB",
    )


def read(folder: Path, download: bool) -> list[Sample]:
    """A data set that unpacks `archive` and, like torchvision's, only asks whether the folder exists."""
    if not (folder / "images").is_dir():
        if not download:
            raise RuntimeError("Dataset not found. You can use download=True to download it")
        (folder / "images").mkdir(parents=True)
        (folder / "images" / "half").write_text("")
        if not (folder / "archive").exists():
            raise urllib.error.URLError(f"{folder}: Name or service not known")
    return [Sample(id="a", label="a", image=PIXELS)]


@pytest.fixture
def server() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(int(self.path.strip("/")))
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    thread.join()
    running.server_close()


def test_what_is_here_is_built_without_asking_the_network(tmp_path: Path) -> None:
    (folder_of("beans", tmp_path) / "images").mkdir(parents=True)
    assert [sample.id for sample in fetch(spec(read), tmp_path, download=True)] == ["a"]


def test_missing_data_without_a_network_say_what_to_do(tmp_path: Path) -> None:
    calls = []

    def build(folder: Path, download: bool) -> list[Sample]:
        calls.append(download)
        return read(folder, download)

    with pytest.raises(DataError, match="'beans' is not on this machine and could not be") as caught:
        fetch(spec(build), tmp_path, download=True)
    error = caught.value
    assert True not in calls
    assert error.where == str(folder_of("beans", tmp_path))
    assert error.why
    assert any("harness data get beans (3 MB)" in fix for fix in error.fixes)
    assert any("harness data check beans" in fix for fix in error.fixes)
    assert any(fix.endswith("harness study run") for fix in error.fixes)
    assert error.exit_code == 5
    assert not folder_of("beans", tmp_path).exists()


def test_nothing_is_downloaded_unasked(tmp_path: Path) -> None:
    def build(folder: Path, download: bool) -> list[Sample]:
        assert not download
        return read(folder, download)

    with pytest.raises(DataError, match="is not on this machine") as caught:
        fetch(spec(build), tmp_path, download=False)
    assert "could not be downloaded" not in caught.value.what
    assert caught.value.why == "no complete copy of its files is there"


def test_a_failed_download_leaves_nothing_that_confuses_the_next_run(tmp_path: Path, server: str) -> None:
    with pytest.raises(DataError) as caught:
        fetch(spec(read, f"{server}/200"), tmp_path, download=True)
    assert f"{folder_of('beans', tmp_path)}: Name or service not known" in caught.value.why
    assert not folder_of("beans", tmp_path).exists()
    assert not is_present(spec(read), tmp_path)
    with pytest.raises(DataError):
        fetch(spec(read), tmp_path, download=False)


@pytest.fixture
def killed(tmp_path: Path, server: str) -> Path:
    """What a download that was killed half-way leaves behind: the folder that it was building in."""
    parts = []

    def build(folder: Path, download: bool) -> list[Sample]:
        if download:
            parts.append(folder)
        raise RuntimeError("Dataset not found")

    with pytest.raises(DataError):
        fetch(spec(build, f"{server}/200"), tmp_path, download=True)
    (part,) = parts
    assert not part.exists()
    (part / "images").mkdir(parents=True)
    (part / "images" / "half").write_text("")
    (part / "archive").write_text("half")
    return part


def test_a_killed_download_is_cleaned_up_by_the_next_one(tmp_path: Path, server: str, killed: Path) -> None:
    assert not is_present(spec(read), tmp_path)
    with pytest.raises(DataError, match="not on this machine") as caught:
        fetch(spec(read), tmp_path, download=False)
    assert caught.value.why == "an earlier download was interrupted, or one is under way"

    def whole(folder: Path, download: bool) -> list[Sample]:
        assert not (folder / "images").exists()
        if download:
            (folder / "whole").write_text("")
        return [Sample(id="b", label=(folder / "whole").read_text() or "b", image=PIXELS)]

    assert [sample.id for sample in fetch(spec(whole, f"{server}/200"), tmp_path, download=True)] == ["b"]
    assert not killed.exists()
    assert [path.name for path in folder_of("beans", tmp_path).iterdir()] == ["whole"]


@pytest.mark.parametrize("url", [NOWHERE, "200"])
def test_files_put_there_after_a_killed_download_are_used_and_stay(
    tmp_path: Path, server: str, killed: Path, url: str
) -> None:
    folder = folder_of("beans", tmp_path)
    folder.mkdir(parents=True)
    (folder / "archive").write_text("mine")
    (folder / "other").write_text("mine too")
    place = f"{server}/200" if url == "200" else url
    assert [sample.id for sample in fetch(spec(read, place), tmp_path, download=True)] == ["a"]
    assert (folder / "archive").read_text() == "mine"
    assert (folder / "other").read_text() == "mine too"
    assert (folder / "images").is_dir()


def test_a_download_joins_what_was_put_there_by_hand(tmp_path: Path, server: str) -> None:
    def build(folder: Path, download: bool) -> list[Sample]:
        if download:
            assert (folder / "inner" / "first").read_text() == "mine"
            (folder / "inner" / "damaged").write_text("whole")
            (folder / "inner" / "images").mkdir()
            (folder / "inner" / "images" / "a").write_text("")
        image = folder / "inner" / "images" / "a"
        return [Sample(id=image.read_text() or "a", label="a", image=image)]

    folder = folder_of("beans", tmp_path)
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "first").write_text("mine")
    (folder / "inner" / "damaged").write_text("half")
    (sample,) = fetch(spec(build, f"{server}/200"), tmp_path, download=True)
    assert sample.image == folder / "inner" / "images" / "a"
    assert (folder / "inner" / "first").read_text() == "mine"
    assert (folder / "inner" / "damaged").read_text() == "whole"
    assert sorted(path.name for path in folder.parent.iterdir()) == [".beans.lock", "beans"]


def test_a_download_that_is_interrupted_has_not_written_over_the_users_file(
    tmp_path: Path, server: str
) -> None:
    def build(folder: Path, download: bool) -> list[Sample]:
        if download:
            with (folder / "archive").open("w") as file:
                file.write("ha")
            raise KeyboardInterrupt
        raise RuntimeError("Dataset not found")

    folder = folder_of("beans", tmp_path)
    folder.mkdir(parents=True)
    (folder / "archive").write_text("mine")
    with pytest.raises(KeyboardInterrupt):
        fetch(spec(build, f"{server}/200"), tmp_path, download=True)
    assert (folder / "archive").read_text() == "mine"


def test_a_folder_that_is_a_link_is_filled_where_it_leads_to(tmp_path: Path, server: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    folder = folder_of("beans", tmp_path)
    folder.parent.mkdir()
    folder.symlink_to(disk)
    parts = []

    def build(folder: Path, download: bool) -> list[Sample]:
        if download:
            parts.append(folder.parent)
            (folder / "a").write_text("")
        return [Sample(id=(folder / "a").read_text() or "a", label="a", image=PIXELS)]

    fetch(spec(build, f"{server}/200"), tmp_path, download=True)
    assert parts == [disk.parent]
    assert folder.is_symlink()
    assert [path.name for path in disk.iterdir()] == ["a"]


def test_files_put_there_by_hand_suffice_without_a_network_and_survive(tmp_path: Path) -> None:
    folder = folder_of("beans", tmp_path)
    folder.mkdir(parents=True)
    (folder / "archive").write_text("mine")
    assert [sample.id for sample in fetch(spec(read), tmp_path, download=True)] == ["a"]
    assert (folder / "images" / "half").exists()

    (folder / "archive").rename(folder / "other")
    (folder / "images" / "half").unlink()
    (folder / "images").rmdir()
    with pytest.raises(DataError):
        fetch(spec(read), tmp_path, download=True)
    assert [path.name for path in folder.iterdir()] == ["other"]


def test_an_interrupt_passes_through_and_cleans_up(tmp_path: Path, server: str) -> None:
    def build(folder: Path, download: bool) -> list[Sample]:
        if not download:
            raise RuntimeError("Dataset not found")
        (folder / "half").write_text("")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(spec(build, f"{server}/200"), tmp_path, download=True)
    assert not folder_of("beans", tmp_path).exists()


def test_a_broken_plugin_is_named_as_such(tmp_path: Path) -> None:
    def broken(folder: Path, download: bool) -> list[Sample]:
        raise TypeError("no")

    with pytest.raises(PluginError, match="'beans'"):
        fetch(spec(broken), tmp_path, download=True)
    with pytest.raises(PluginError, match="yields str"):
        fetch(spec(lambda folder, download: ["a.jpg"]), tmp_path, download=True)
    with pytest.raises(PluginError, match="no samples"):
        fetch(spec(lambda folder, download: []), tmp_path, download=True)


def test_a_sample_that_is_not_what_it_should_be_is_the_plugins_fault(tmp_path: Path) -> None:
    def build(folder: Path, download: bool) -> Iterator[Sample]:
        yield Sample(id="a", label="a", image=PIXELS, split="validation")  # type: ignore[arg-type]

    with pytest.raises(PluginError, match="'beans' cannot be built") as caught:
        fetch(spec(build), tmp_path, download=True)
    assert "sample 'a' has the split 'validation'" in caught.value.why


def test_what_a_data_set_prints_stays_off_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def build(folder: Path, download: bool) -> list[Sample]:
        print("Files already downloaded and verified")
        return [Sample(id="a", label="a", image=PIXELS)]

    fetch(spec(build), tmp_path, download=True)
    assert capsys.readouterr().out == ""


def test_a_generated_set_is_always_present(tmp_path: Path) -> None:
    assert is_present(spec(read, ""), tmp_path)
    assert not is_present(spec(read), tmp_path)


@pytest.mark.parametrize(
    ("code", "answers"), [(200, True), (405, True), (403, True), (404, False), (410, False)]
)
def test_a_server_that_answers_is_reachable(server: str, code: int, answers: bool) -> None:
    assert (unreachable(f"{server}/{code}") == "") is answers


@pytest.mark.parametrize("url", [NOWHERE, "not an address", "http://name.invalid/x"])
def test_an_address_that_does_not_answer_is_unreachable(url: str) -> None:
    assert unreachable(url)


def test_a_name_lookup_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def hang(*_: object, **__: object) -> None:
        released.wait(30)
        raise OSError("released")

    monkeypatch.setattr(module.urllib.request, "urlopen", hang)
    try:
        assert unreachable("http://127.0.0.1/x", 0.05) == "no answer within 0.05 seconds"
    finally:
        released.set()
