from __future__ import annotations

import dataclasses
import errno
import math
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch
from filelock import FileLock, Timeout
from safetensors import safe_open

from harness.engine import activations
from harness.engine import store as module
from harness.engine.store import ActivationStore, EntrySpec, TensorSpec, default_budget
from harness.errors import StorageError

LARGE = 10**9
DTYPES = [
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]
needs_fork = pytest.mark.skipif(sys.platform == "win32", reason="forks")


def spec_of(key: str, rows: int = 4, width: int = 8, seconds: float = 0.0) -> EntrySpec:
    tensors = {"x": TensorSpec(shape=(width,), dtype=torch.float32)}
    return EntrySpec(key=key, rows=rows, tensors=tensors, facts={}, seconds=seconds)


def values(rows: int = 4, width: int = 8) -> torch.Tensor:
    return torch.arange(rows * width, dtype=torch.float32).reshape(rows, width)


def put(store: ActivationStore, spec: EntrySpec, seconds: float = 1.0, age: float = 0.0) -> None:
    """Write an entry, last used `age` seconds ago, and leave it unpinned; all others give way to it."""
    with store.fill([dataclasses.replace(spec, seconds=math.inf)]) as filling:
        assert filling.missing == {spec.key}
        filling.write(spec.key, "x", 0, values(spec.rows, spec.tensors["x"].shape[0]))
        filling.seconds[spec.key] = seconds
    store.release(spec.key)
    then = time.time() - age
    os.utime(store.folder / f"{spec.key}.safetensors", (then, then))


def names(folder: Path) -> list[str]:
    """What is in a folder apart from the locks."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


@contextmanager
def process(target: Callable[..., None], *arguments: object) -> Iterator[multiprocessing.process.BaseProcess]:
    # A fork has torch imported already.
    child = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    child.start()
    try:
        yield child
    finally:
        child.kill()
        child.join()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} never came"
        time.sleep(0.01)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ActivationStore]:
    store = ActivationStore(tmp_path / "activations", LARGE)
    yield store
    store.close()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_rows_come_back_in_any_order(
    store: ActivationStore, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    content = (torch.randn(7, *shape, generator=torch.Generator().manual_seed(0)) * 50).to(dtype)
    spec = EntrySpec(key="k", rows=7, tensors={"x": TensorSpec(shape=shape, dtype=dtype)}, facts={})
    with store.fill([spec]) as filling:
        filling.write("k", "x", 4, content[4:])
        filling.write("k", "x", 0, content[:4])
    entry = store.open("k")
    assert entry is not None
    rows = [6, 0, 3, 3]
    for asked in (rows, torch.tensor(rows)):
        found = entry.gather("x", asked)
        assert found.dtype == dtype
        assert torch.equal(found, content[rows])
    assert entry.gather("x", []).shape == (0, *shape)


def test_special_numbers_keep_their_bits(store: ActivationStore) -> None:
    content = torch.tensor([float("nan"), float("inf"), -0.0, 1e-40]).bfloat16()
    spec = EntrySpec(key="k", rows=4, tensors={"x": TensorSpec(shape=(), dtype=torch.bfloat16)}, facts={})
    with store.fill([spec]) as filling:
        filling.write("k", "x", 0, content)
    found = store.open("k").gather("x", range(4))
    assert torch.equal(found.view(torch.int16), content.view(torch.int16))


def test_an_entry_is_a_safetensors_file(store: ActivationStore) -> None:
    tensors = {
        "small": TensorSpec(shape=(3,), dtype=torch.uint8),
        "wide": TensorSpec(shape=(), dtype=torch.float64),
        "half": TensorSpec(shape=(1, 5), dtype=torch.bfloat16),
    }
    spec = EntrySpec(key="k", rows=5, tensors=tensors, facts={"backbone": "tiny-nét"})
    content = {name: (torch.rand(5, *one.shape) * 9).to(one.dtype) for name, one in tensors.items()}
    with store.fill([spec]) as filling:
        for name, tensor in content.items():
            filling.write("k", name, 0, tensor)
        filling.seconds["k"] = 2.5
    path = store.folder / "k.safetensors"
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == set(content)
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in content.items())
        metadata = file.metadata()
    assert metadata["backbone"] == "tiny-nét"
    assert float(metadata["seconds"]) == 2.5
    entry = store.open("k")
    assert entry.facts == {"backbone": "tiny-nét"}
    assert entry.rows == 5
    assert entry.bytes == path.stat().st_size == spec.bytes


def test_a_gathered_tensor_is_an_own_copy(store: ActivationStore) -> None:
    put(store, spec_of("k"))
    entry = store.open("k")
    entry.gather("x", range(4)).zero_()
    first = entry.gather("x", range(4))
    store.close()
    assert torch.equal(first, values())


def test_any_layout_in_memory_is_written_by_rows(store: ActivationStore) -> None:
    content = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    tensors = {"x": TensorSpec(shape=(3, 4, 5), dtype=torch.float32)}
    with store.fill([EntrySpec(key="k", rows=2, tensors=tensors, facts={})]) as filling:
        filling.write("k", "x", 0, content)
    assert torch.equal(store.open("k").gather("x", [1, 0]), content.detach()[[1, 0]])


@pytest.mark.parametrize("rows", [[4], [-1], [0.5], [[0]], torch.tensor([True, False, True, False])], ids=str)
def test_rows_that_are_not_there_are_refused(store: ActivationStore, rows: object) -> None:
    put(store, spec_of("k"))
    entry = store.open("k")
    with pytest.raises(IndexError):
        entry.gather("x", rows)
    with pytest.raises(KeyError):
        entry.gather("y", [0])


def test_a_closed_entry_gives_no_rows(store: ActivationStore) -> None:
    put(store, spec_of("k"))
    entry = store.open("k")
    store.close()
    with pytest.raises(KeyError):
        entry.gather("x", [0])


def test_nothing_is_opened_where_nothing_is(store: ActivationStore) -> None:
    assert store.open("k") is None
    assert not store.folder.exists()


@pytest.mark.parametrize("key", ["", "../k", "a/b", ".lock", "k" * 129])
def test_a_key_must_name_a_file(key: str) -> None:
    with pytest.raises(ValueError, match="cannot name a file"):
        spec_of(key)


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": 0},
        {"tensors": {}},
        {"facts": {"seconds": "1"}},
        {"tensors": {"__metadata__": TensorSpec(shape=(), dtype=torch.int8)}},
    ],
    ids=str,
)
def test_an_impossible_entry_is_refused(changes: dict[str, object]) -> None:
    given = {"key": "k", "rows": 1, "tensors": spec_of("k").tensors, "facts": {}, **changes}
    with pytest.raises(ValueError, match="entry k"):
        EntrySpec(**given)


@pytest.mark.parametrize(("shape", "dtype"), [((0,), torch.float32), ((2,), torch.complex64)])
def test_an_impossible_tensor_is_refused(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="cannot be stored"):
        TensorSpec(shape=shape, dtype=dtype)


@pytest.mark.parametrize(
    ("key", "name", "first", "tensor"),
    [
        ("other", "x", 0, values()),
        ("k", "other", 0, values()),
        ("k", "x", 1, values()),
        ("k", "x", -1, values(1)),
        ("k", "x", 0, values(4, 9)),
        ("k", "x", 0, values().double()),
    ],
)
def test_rows_that_were_not_announced_are_refused(
    store: ActivationStore, key: str, name: str, first: int, tensor: torch.Tensor
) -> None:
    refused = pytest.raises(ValueError, match=r"is to be written|does not fit")
    with refused, store.fill([spec_of("k")]) as filling:
        filling.write(key, name, first, tensor)
    assert names(store.folder) == []


def test_an_incomplete_fill_is_refused(store: ActivationStore) -> None:
    with pytest.raises(ValueError, match="1 of 4 rows of 'x'"), store.fill([spec_of("k")]) as filling:
        filling.write("k", "x", 0, values(1))
        filling.write("k", "x", 2, values(2))
    assert names(store.folder) == []
    assert store.open("k") is None


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("not ours"), RuntimeError])
def test_an_error_leaves_nothing(store: ActivationStore, error: type[BaseException] | BaseException) -> None:
    kind = error if isinstance(error, type) else type(error)
    with pytest.raises(kind) as caught, store.fill([spec_of("k"), spec_of("l")]) as filling:
        filling.write("k", "x", 0, values())
        raise error
    assert not isinstance(caught.value, StorageError)
    assert names(store.folder) == []
    put(store, spec_of("k"))  # the locks are free again


def test_what_is_complete_is_not_computed_again(store: ActivationStore) -> None:
    put(store, spec_of("a"))
    with store.fill([spec_of("a"), spec_of("b")]) as filling:
        assert filling.missing == {"b"}
        filling.write("b", "x", 0, values())
    other = ActivationStore(store.folder, LARGE)
    with other.fill([spec_of("a"), spec_of("b")]) as filling:
        assert filling.missing == filling.refused == set()
    other.close()


def test_the_time_of_a_fill_is_kept(store: ActivationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 107.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock, 107.0))
    with store.fill([spec_of("a"), spec_of("b")]) as filling:
        for key in ("a", "b"):
            filling.write(key, "x", 0, values())
        filling.seconds["b"] = 0.25
    assert activations.read_seconds(store.folder / "a.safetensors") == 7.0
    assert activations.read_seconds(store.folder / "b.safetensors") == 0.25


def test_a_use_is_marked_on_the_file(store: ActivationStore) -> None:
    put(store, spec_of("k"), age=1000)
    path = store.folder / "k.safetensors"
    before = path.stat().st_mtime
    store.open("k")
    assert path.stat().st_mtime > before + 900


def _damage_header(content: bytes) -> bytes:
    return content[:8] + b"#" + content[9:]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[:-1],
    "longer": lambda content: content + b"\0",
    "empty": lambda content: b"",
    "no header": _damage_header,
    "zeros": lambda content: bytes(len(content)),
    "other schema": lambda content: content.replace(b"harness.activations/1", b"harness.activations/0"),
    "other json": lambda content: (2).to_bytes(8, "little") + b"[]",
    "other rows": lambda content: content.replace(b'"shape":[4,8]', b'"shape":[5,8]'),
    "other dtype": lambda content: content.replace(b'"F32"', b'"F39"'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_computed_again(store: ActivationStore, damage: str) -> None:
    put(store, spec_of("k"))
    path = store.folder / "k.safetensors"
    content = path.read_bytes()
    path.write_bytes(DAMAGES[damage](content))
    assert path.read_bytes() != content
    assert store.open("k") is None
    assert not path.exists()
    put(store, spec_of("k"))
    assert torch.equal(store.open("k").gather("x", range(4)), values())


def test_a_damaged_entry_goes_first(tmp_path: Path) -> None:
    size = spec_of("a").bytes
    store = ActivationStore(tmp_path, 2 * size)
    put(store, spec_of("bad"), seconds=100)
    (tmp_path / "bad.safetensors").write_bytes(b"#" * size)
    put(store, spec_of("a"), seconds=1)
    put(store, spec_of("b"), seconds=1)
    assert names(tmp_path) == ["a.safetensors", "b.safetensors"]


def _no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this platform has no such call")
def test_a_disk_that_is_full_shows_before_the_work(
    store: ActivationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", _no_space)
    with pytest.raises(StorageError, match="No space left") as caught, store.fill([spec_of("a")]):
        pytest.fail("the body ran")
    assert caught.value.where == str(store.folder)
    assert names(store.folder) == []


def test_a_disk_that_fills_up_is_a_storage_error(
    store: ActivationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StorageError, match="No space left"), store.fill([spec_of("a")]) as filling:
        monkeypatch.setattr(activations.Part, "_write", _no_space)
        filling.write("a", "x", 0, values())
    assert names(store.folder) == []


def test_a_file_system_that_cannot_reserve_space_works(
    store: ActivationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported, raising=False)
    put(store, spec_of("a"))
    assert torch.equal(store.open("a").gather("x", range(4)), values())


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError), ActivationStore(tmp_path / "file" / "a", LARGE).fill([spec_of("a")]):
        pass


def test_the_entry_of_least_value_goes_first(tmp_path: Path) -> None:
    small, wide = spec_of("small").bytes, spec_of("wide", width=64).bytes
    store = ActivationStore(tmp_path, 3 * small + wide)
    day = 24 * 3600
    put(store, spec_of("stale"), seconds=3, age=2 * day)  # worth 0.75 by size
    put(store, spec_of("fresh"), seconds=1)
    put(store, spec_of("slow"), seconds=16, age=2 * day)  # worth 4
    put(store, spec_of("wide", width=64), seconds=3)  # worth 3 / several sizes
    assert wide > 3 * small  # so that it is worth less than all others
    gone = []
    for new in ("n1", "n2", "n3"):
        before = set(names(tmp_path))
        put(store, spec_of(new, width=64) if new == "n1" else spec_of(new), seconds=1000)
        gone.append(sorted(before - set(names(tmp_path))))
    assert gone == [["wide.safetensors"], ["stale.safetensors"], ["fresh.safetensors"]]
    assert store.info().bytes <= store.budget


def test_trials_that_read_more_views_than_fit_find_again_those_that_do(tmp_path: Path) -> None:
    store = ActivationStore(tmp_path, 3 * spec_of("0").bytes)
    written = []
    for _ in range(4):
        for view in range(5):
            # Later views take a little longer to compute than earlier ones.
            seconds = 1 + 0.1 * view
            with store.fill([spec_of(str(view), seconds=seconds)]) as filling:
                for key in filling.missing:
                    filling.write(key, "x", 0, values())
                    filling.seconds[key] = seconds
                    written.append(key)
            store.release(str(view))
        store.close()
    assert written == ["0", "1", "2"]


def test_what_recent_trials_read_gives_way_to_what_is_worth_twice_as_much_or_when_it_is_old(
    tmp_path: Path,
) -> None:
    store = ActivationStore(tmp_path, spec_of("a").bytes)

    def wins(key: str, seconds: float) -> bool:
        with store.fill([spec_of(key, seconds=seconds)]) as filling:
            for missing in filling.missing:
                filling.write(missing, "x", 0, values())
                filling.seconds[missing] = seconds
        store.release(key)
        return not filling.refused

    assert wins("a", 1.0)
    assert not wins("b", 1.9)
    assert wins("c", 2.1)
    store.close()
    assert not wins("d", 2.1), "the trial before read it"
    store.close()
    assert wins("e", 0.1), "the trials since have not"
    other = ActivationStore(tmp_path, spec_of("a").bytes)
    put(other, spec_of("f"), seconds=0.0)
    assert names(tmp_path) == ["f.safetensors"], "another process has its own trials"


def test_nothing_goes_in_vain(tmp_path: Path) -> None:
    size = spec_of("a").bytes
    store = ActivationStore(tmp_path, 2 * size)
    put(store, spec_of("a"))
    put(store, spec_of("b"))
    store.open("b")
    with store.fill([spec_of("c", rows=40)]) as filling:
        assert (filling.missing, filling.refused) == (set(), {"c"})
    assert names(tmp_path) == ["a.safetensors", "b.safetensors"]
    assert store.open("c") is None
    store.close()


def test_of_several_entries_those_that_fit_are_written(tmp_path: Path) -> None:
    store = ActivationStore(tmp_path, 2 * spec_of("a").bytes)
    put(store, spec_of("a"))
    with store.fill([spec_of("a"), spec_of("b"), spec_of("c")]) as filling:
        assert (filling.missing, filling.refused) == ({"b"}, {"c"})
        filling.write("b", "x", 0, values())
        with pytest.raises(ValueError, match="is to be written"):
            filling.write("c", "x", 0, values())
    assert names(tmp_path) == ["a.safetensors", "b.safetensors"]
    store.close()


def test_an_entry_that_is_open_elsewhere_stays(tmp_path: Path) -> None:
    reader, writer = (ActivationStore(tmp_path, spec_of("a").bytes) for _ in range(2))
    put(reader, spec_of("a"), seconds=0)
    entry = reader.open("a")
    with writer.fill([spec_of("b")]) as filling:
        assert filling.refused == {"b"}
    assert writer.info().pinned == 1
    assert writer.clear() == 0
    assert torch.equal(entry.gather("x", [2]), values()[[2]])
    reader.close()
    assert writer.info().pinned == 0
    put(writer, spec_of("b"))
    assert names(tmp_path) == ["b.safetensors"]


def test_what_was_just_written_is_pinned(tmp_path: Path) -> None:
    store = ActivationStore(tmp_path, LARGE)
    with store.fill([spec_of("a")]) as filling:
        filling.write("a", "x", 0, values())
    assert ActivationStore(tmp_path, LARGE).clear() == 0
    assert store.open("a") is not None
    store.close()


def test_nobody_makes_room_before_a_new_entry_is_pinned(
    store: ActivationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Path.replace

    def replace(path: Path, target: Path) -> Path:
        with pytest.raises(Timeout):
            FileLock(store.folder / ".lock").acquire(timeout=0)
        return original(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    put(store, spec_of("a"))


@needs_fork
def test_an_entry_that_goes_while_it_is_opened_is_absent(
    store: ActivationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    put(store, spec_of("a"))
    lock = fcntl.flock

    def removed_first(file: IO[bytes], how: int) -> None:
        (store.folder / "a.safetensors").unlink()
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", removed_first)
    assert store.open("a") is None


def test_parts_being_written_count_towards_the_budget(tmp_path: Path) -> None:
    first, second = (ActivationStore(tmp_path, spec_of("a").bytes) for _ in range(2))
    with first.fill([spec_of("a")]) as filling:
        with second.fill([spec_of("b")]) as other:
            assert other.refused == {"b"}
        assert second.info().parts == 1
        assert second.clear() == 0
        filling.write("a", "x", 0, values())
    assert names(tmp_path) == ["a.safetensors"]
    first.close()


def test_info_and_clear_of_a_store_that_is_not_there(store: ActivationStore) -> None:
    info = store.info()
    assert (info.entries, info.bytes, info.parts, info.pinned, info.budget) == (0, 0, 0, 0, LARGE)
    assert store.clear() == 0
    assert not store.folder.exists()


def test_clear_says_what_it_freed(store: ActivationStore) -> None:
    put(store, spec_of("a"))
    put(store, spec_of("b", width=9))
    store.open("a")
    assert store.info().entries == 2
    assert store.info().bytes == spec_of("a").bytes + spec_of("b", width=9).bytes
    assert store.clear() == spec_of("b", width=9).bytes
    assert names(store.folder) == ["a.safetensors"]
    store.close()
    assert store.clear() == spec_of("a").bytes


def test_the_default_budget_is_a_share_of_the_free_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [1000]
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": free[0]}))
    assert default_budget(tmp_path / "not" / "there") == 200
    (tmp_path / "k.safetensors").write_bytes(bytes(500))
    assert default_budget(tmp_path) == 300
    free[0] = 10**12
    assert default_budget(tmp_path) == 50 * 10**9


def _fill_and_report(folder: Path, number: int) -> None:
    store = ActivationStore(folder / "store", LARGE)
    specs = [spec_of("a"), spec_of("b")]
    with store.fill(specs if number % 2 else specs[::-1]) as filling:
        for key in filling.missing:
            with (folder / "computed").open("a") as file:
                file.write(key)
            time.sleep(0.05)
            filling.write(key, "x", 0, values())
    found = store.open("a").gather("x", range(4)).numpy()
    np.save(folder / f"{number}.npy", found)


@needs_fork
def test_one_of_many_processes_computes(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=_fill_and_report, args=(tmp_path, number)) for number in range(6)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 6
    assert sorted((tmp_path / "computed").read_text()) == ["a", "b"]
    assert all(np.array_equal(np.load(tmp_path / f"{number}.npy"), values().numpy()) for number in range(6))
    assert names(tmp_path / "store") == ["a.safetensors", "b.safetensors"]


def _stop_in_a_fill(folder: Path, budget: int) -> None:
    with ActivationStore(folder / "store", budget).fill([spec_of("a")]) as filling:
        filling.write("a", "x", 0, values(2))
        (folder / "half").touch()
        signal.pause()


@needs_fork
def test_a_killed_fill_leaves_no_entry(tmp_path: Path) -> None:
    size = spec_of("a").bytes
    store = ActivationStore(tmp_path / "store", size)
    with process(_stop_in_a_fill, tmp_path, size):
        wait_for(tmp_path / "half")
    assert names(store.folder) == [".a.part"]
    assert store.open("a") is None
    put(store, spec_of("a"))
    assert names(store.folder) == ["a.safetensors"]


@needs_fork
def test_the_part_of_a_killed_process_makes_room(tmp_path: Path) -> None:
    size = spec_of("a").bytes
    store = ActivationStore(tmp_path / "store", size)
    with process(_stop_in_a_fill, tmp_path, size):
        wait_for(tmp_path / "half")
        with store.fill([spec_of("b")]) as filling:
            assert filling.refused == {"b"}
    put(store, spec_of("b"))
    assert names(store.folder) == ["b.safetensors"]


@needs_fork
def test_clear_removes_the_part_of_a_killed_process(tmp_path: Path) -> None:
    store = ActivationStore(tmp_path / "store", LARGE)
    with process(_stop_in_a_fill, tmp_path, LARGE):
        wait_for(tmp_path / "half")
    assert store.clear() == spec_of("a").bytes
    assert names(store.folder) == []


def _stop_with_a_pin(folder: Path) -> None:
    store = ActivationStore(folder / "store", LARGE)
    assert store.open("a") is not None
    (folder / "pinned").touch()
    signal.pause()


@needs_fork
def test_a_pin_dies_with_its_process(tmp_path: Path) -> None:
    store = ActivationStore(tmp_path / "store", spec_of("a").bytes)
    put(store, spec_of("a"))
    with process(_stop_with_a_pin, tmp_path):
        wait_for(tmp_path / "pinned")
        assert store.info().pinned == 1
        with store.fill([spec_of("b")]) as filling:
            assert filling.refused == {"b"}
    assert store.info().pinned == 0
    put(store, spec_of("b"))
    assert names(store.folder) == ["b.safetensors"]


def _use_often(folder: Path, key: str) -> None:
    store = ActivationStore(folder, spec_of("a").bytes)
    for _ in range(40):
        with store.fill([spec_of(key)]) as filling:
            for missing in filling.missing:
                filling.write(missing, "x", 0, values())
            refused = bool(filling.refused)
        entry = store.open(key)
        assert refused or entry is not None
        assert entry is None or torch.equal(entry.gather("x", range(4)), values())
        store.close()


@needs_fork
def test_opening_and_evicting_at_once_is_safe(tmp_path: Path) -> None:
    with process(_use_often, tmp_path, "a") as one, process(_use_often, tmp_path, "b") as two:
        one.join()
        two.join()
        assert (one.exitcode, two.exitcode) == (0, 0)
    assert ActivationStore(tmp_path, LARGE).info().bytes <= spec_of("a").bytes
