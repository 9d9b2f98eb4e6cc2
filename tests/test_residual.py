"""Residual convolutional networks: what a block is at first, where a doubled picture's places come from, any size."""

import json

import pytest
import torch

from lowerbound import nn, spec
from lowerbound.data import generator
from lowerbound.errors import UsageError

PICTURES = [(28, 28), (9, 6), (5, 5), (8, 13)]


def pictures(count: int, channels: int, picture: tuple[int, int]) -> torch.Tensor:
    return torch.randn(count, channels, *picture, generator=generator(0), dtype=torch.float64)


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("channels", [(4,), (4, 6), (3, 4, 5)])
def test_pictures_of_any_size_go_to_a_vector_and_back(picture, channels):
    down = nn.ResNetDown((2, *picture), channels, features=7).double()
    up = nn.ResNetUp((3,), picture, channels, features=7, planes=2).double()
    assert down(pictures(3, 2, picture)).shape == (3, *down.out_shape) == (3, 7)
    assert up(torch.randn(3, 3, dtype=torch.float64)).shape == (3, *up.out_shape) == (3, 2, *picture)


def test_each_example_is_mapped_by_itself_and_all_weights_take_part():
    torch.manual_seed(0)
    down = nn.ResNetDown((1, 12, 12), (4, 6), blocks=2, features=8).double()
    up = nn.ResNetUp((8,), (12, 12), (4, 6), blocks=2, features=8).double()
    x = pictures(5, 1, (12, 12))
    both = up(down(x))
    torch.testing.assert_close(up(down(x[2:3])), both[2:3], rtol=0, atol=1e-12)
    both.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in (*down.parameters(), *up.parameters()))


def test_a_fresh_block_adds_little_and_without_its_second_convolution_nothing():
    torch.manual_seed(0)
    block = nn.ResidualBlock(16, nn.GELU()).double()
    h = pictures(4, 16, (9, 9))
    assert (block(h) - h).std() < 0.1 * h.std()
    for parameter in block.outer.parameters():
        torch.nn.init.zeros_(parameter)
    assert torch.equal(block(h), h)


@pytest.mark.parametrize("size", [(6, 8), (5, 7)])
def test_doubled_places_come_from_the_four_channels_of_where_they_lie(size):
    doubled = nn.Doubled(2, 3, size).double()
    h = pictures(2, 2, (3, 4))
    four, grown = doubled.fourfold(h), doubled(h)
    assert grown.shape == (2, 3, *size)
    for i in range(size[0]):
        for j in range(size[1]):
            assert torch.equal(grown[:, :, i, j], four[:, i % 2 * 2 + j % 2 :: 4, i // 2, j // 2])


def test_the_layout_in_memory_is_kept_throughout_and_changes_no_number():
    torch.manual_seed(0)
    down = nn.ResNetDown((1, 12, 12), (4, 6), features=8)
    up = nn.ResNetUp((8,), (12, 12), (4, 6), features=8)
    x, seen = pictures(4, 1, (12, 12)).float(), []
    for network in (down, up):
        for module in network.levels:
            module.register_forward_hook(lambda _, __, h: seen.append(h))
    result = up(down(x))
    assert all(h.is_contiguous(memory_format=torch.channels_last) for h in seen)
    h = seen[len(down.levels) - 1]
    plain = down.levels(down.enter(x).contiguous())
    assert not plain.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(plain, h, rtol=0, atol=1e-5)
    assert result.shape == (4, 4, 12, 12)


def test_the_networks_are_built_again():
    parts = (
        nn.ResNetDown((1, 9, 6), (4, 6), blocks=2, features=8, activation=nn.ReLU()),
        nn.ResNetUp((3,), (9, 6), (4, 6), blocks=2, features=8, planes=1, activation=nn.ReLU()),
        nn.ResidualBlock(4, nn.ReLU()),
        nn.Doubled(4, 2, (9, 6)),
    )
    for part in parts:
        tree = json.loads(json.dumps(spec.describe(part)))
        assert spec.describe(spec.build(tree)) == tree
        with torch.device("meta"):
            assert spec.describe(spec.build(tree)) == tree


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.ResNetDown((7,), (4,)),
        lambda: nn.ResNetDown((1, 3, 3), (4, 4, 4, 4)),
        lambda: nn.ResNetDown((1, 8, 8), (4,), blocks=-1),
        lambda: nn.ResNetUp((3,), (8, 8), (4,), planes=0),
        lambda: nn.ResNetUp((3,), (2, 2), (4, 4, 4)),
    ],
)
def test_sizes_that_cannot_be_are_refused(build):
    with pytest.raises(UsageError):
        build()
