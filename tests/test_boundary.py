from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch

from harness.engine.boundary import Boundary, Count, CutError, Fixed, Rows

CPU = torch.device("cpu")


class Pair(NamedTuple):
    left: Any
    right: Any


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def both(make):
    """Return the boundary of what `make` gives for two images and for three others."""
    return Boundary.between([make(2)], [make(3)])


def there_and_back(make, images=5):
    """Store what `make` gives as the store does, and return it with what comes back."""
    boundary = both(make)
    value = make(images)
    stored = [rows.contiguous().clone() for rows in boundary.pack([value])]
    assert [len(rows) for rows in stored] == [images] * len(stored)
    assert [tuple(rows.shape[1:]) for rows in stored] == [rows.shape for rows in boundary.rows]
    return value, boundary.unpack(stored, images, CPU)[0]


LAYOUTS = {
    "contiguous": lambda n: random(n, 4, 3, 5),
    "channels last": lambda n: random(n, 4, 3, 5).contiguous(memory_format=torch.channels_last),
    "permuted": lambda n: random(n, 4, 3, 5).permute(0, 2, 3, 1),
    "images second": lambda n: random(3, n, 5),
    "images last": lambda n: random(3, 5, n),
    "images inside": lambda n: random(4, n, 3).transpose(0, 1),
    "windows": lambda n: random(n * 4, 3, 5),
    "windows, permuted": lambda n: random(n, 2, 3, 2, 5).permute(0, 1, 3, 2, 4).flatten(0, 2),
    "windows, transposed": lambda n: random(n * 4, 3, 5).transpose(1, 2),
    "windows second": lambda n: random(3, n * 2, 5),
    "one number an image": lambda n: random(n),
    "channels of one pixel": lambda n: random(n, 6, 1, 1),
    "channels of one pixel, last": lambda n: random(n, 1, 1, 6).permute(0, 3, 1, 2),
    "one channel": lambda n: random(n, 1, 5, 5),
    "one channel, last": lambda n: random(n, 5, 5, 1).permute(0, 3, 1, 2),
    "one token, transposed": lambda n: random(n, 5, 1).transpose(1, 2),
}


@pytest.mark.parametrize("make", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("images", [5, 1])
def test_a_tensor_comes_back_with_its_values_and_its_memory_layout(make, images):
    value, back = there_and_back(make, images)
    assert torch.equal(value, back)
    # Of dimensions of one entry too: kernels are chosen by them.
    assert value.stride() == back.stride()


@pytest.mark.parametrize("name", ["channels last", "permuted", "windows, transposed", "images inside"])
def test_dropout_draws_the_same_mask_on_what_comes_back(name):
    value, back = there_and_back(LAYOUTS[name])
    dropped = []
    for tensor in (value, back):
        torch.manual_seed(0)
        dropped.append(torch.nn.functional.dropout(tensor, 0.5))
    assert torch.equal(*dropped)
    torch.manual_seed(0)
    plain = torch.nn.functional.dropout(value.contiguous(), 0.5)
    assert not torch.equal(plain, dropped[0])  # the trap is there


def test_rows_of_an_expanded_tensor_are_stored_once_an_image_in_the_layout_torch_makes_of_them():
    token = random(1, 3, 4)
    value, back = there_and_back(lambda n: token.expand(n, -1, -1))
    assert torch.equal(value, back)
    assert back.stride() == torch.empty_like(value).stride()


def test_a_slice_is_stored_without_what_lies_around_it():
    value, back = there_and_back(lambda n: random(n, 5, 4)[:, 2])
    assert torch.equal(value, back)
    assert back.is_contiguous()


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]
)
def test_any_type_of_number_is_stored_as_it_is(dtype):
    value, back = there_and_back(lambda n: (random(n, 4) * 3).to(dtype))
    assert back.dtype == dtype
    assert torch.equal(value, back)


def test_windows_of_an_image_are_one_row():
    boundary = both(lambda n: random(n * 4, 3, 5))
    (rows,) = boundary.rows
    assert (rows.dim, rows.times, rows.shape) == (0, 4, (4, 3, 5))


@pytest.mark.parametrize(("each", "more"), [(1, 0), (4, 0), (1, 2), (3, -1), (-1, 7)])
def test_a_whole_number_that_grows_with_the_batch_is_worked_out_again(each, more):
    boundary = both(lambda n: each * n + more)
    assert boundary.parts == (Count(each=each, more=more),)
    assert boundary.rows == ()
    assert boundary.unpack([], 7, CPU) == [each * 7 + more]


@pytest.mark.parametrize("value", [3, 2.5, True, None, "name", torch.float32, slice(1, None), (1, "a")])
def test_what_no_image_changes_is_not_stored(value):
    boundary = both(lambda n: value)
    assert boundary.pack([value]) == []
    assert boundary.unpack([], 4, CPU) == [value]


def test_a_tensor_without_a_dimension_for_images_is_kept_once():
    bias = random(4, 4)
    boundary = both(lambda n: bias)
    assert boundary.rows == ()
    assert boundary.holds_tensors
    assert boundary.pack([bias]) == []
    (first,) = boundary.unpack([], 9, CPU)
    assert torch.equal(first, bias)
    # The suffix may change it in place.
    first.zero_()
    assert torch.equal(boundary.unpack([], 9, CPU)[0], bias)
    assert bias.abs().sum() > 0


def test_constants_follow_the_rows_to_their_device():
    boundary = both(lambda n: [random(4), torch.device("cpu")])
    tensor, device = boundary.unpack([], 2, torch.device("meta"))[0]
    assert tensor.device == device == torch.device("meta")


def test_tuples_lists_dicts_named_tuples_and_none_come_back_as_they_were():
    def make(n):
        nested = {"a": random(n, 2), "b": [n, None, (random(n * 2, 3), "x")]}
        return Pair(nested, torch.Size([n, 7])), random(4)

    value, back = there_and_back(make)
    pair, constant = back
    assert type(pair) is Pair and type(pair.right) is torch.Size
    assert pair.right == value[0].right == (5, 7)
    assert torch.equal(pair.left["a"], value[0].left["a"])
    number, nothing, (windows, text) = pair.left["b"]
    assert (number, nothing, text) == (5, None, "x")
    assert torch.equal(windows, value[0].left["b"][2][0])
    assert torch.equal(constant, value[1])
    boundary = both(make)
    assert len(boundary.rows) == 2
    assert boundary.holds_tensors


def test_what_torch_returns_as_a_named_tuple_comes_back_as_one():
    value, back = there_and_back(lambda n: torch.max(random(n, 4), dim=1))
    assert type(back) is type(value)
    assert torch.equal(back.indices, value.indices)


class Odd:
    def __eq__(self, other):
        raise RuntimeError("which one is ambiguous")

    __hash__ = None


@pytest.mark.parametrize(
    ("two", "three", "why"),
    [
        (random(4), random(4, seed=1), "no dimension for them"),
        (random(2, 2), random(3, 3), "for two and three images"),
        (random(2, 4), random(3, 5), "for two and three images"),
        (random(3, 4), random(4, 4), "for two and three images"),
        (random(2), random(3, 1), "for two and three images"),
        (random(2, 4), 3.0, "Tensor or float"),
        (0.5, 0.25, "float changes with the images"),
        (True, False, "bool changes with the images"),
        ("a", "b", "str changes"),
        ([1], [1, 2], "another length"),
        ({"a": 1}, {"b": 1}, "other keys"),
        (object(), object(), "object changes"),
        (Odd(), Odd(), "cannot be compared"),
        (torch.zeros(2, 0), torch.zeros(3, 0), "cannot be stored"),
        (torch.zeros(2, dtype=torch.complex64), torch.zeros(3, dtype=torch.complex64), "cannot be stored"),
    ],
)
def test_what_no_row_of_an_image_can_hold_is_refused(two, three, why):
    with pytest.raises(CutError, match=why):
        Boundary.between([two], [three])


def test_values_of_several_nodes_keep_their_order():
    boundary = Boundary.between([2, random(2, 3), None, random(2, 5)], [3, random(3, 3), None, random(3, 5)])
    assert boundary.parts[0] == Count(each=1, more=0)
    assert boundary.parts[2] == Fixed(value=None)
    assert [type(part) for part in boundary.parts[1::2]] == [Rows, Rows]
    values = [4, random(4, 3), None, random(4, 5)]
    back = boundary.unpack(boundary.pack(values), 4, CPU)
    assert back[0] == 4 and back[2] is None
    assert torch.equal(back[1], values[1]) and torch.equal(back[3], values[3])
