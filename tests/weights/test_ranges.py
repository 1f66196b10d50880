"""Which positions a process keeps: as DTensor cuts them, evenly or not, one way after another."""

import pytest
import torch

from torch_xgb.weights.ranges import cut, taken


def kept(size: int, *ways: tuple[int, int, int]) -> list[int]:
    return [i for one in cut(size, ways) for i in one]


@pytest.mark.parametrize("size", [1, 3, 7, 8, 10])
@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_a_part_is_what_chunk_gives(size: int, parts: int) -> None:
    wanted = [chunk.tolist() for chunk in torch.arange(size).chunk(parts)]
    wanted += [[]] * (parts - len(wanted))
    assert [kept(size, (parts, i, 1)) for i in range(parts)] == wanted


@pytest.mark.parametrize("size", [4, 7, 8, 10, 12])
def test_strides_are_cut_each(size: int) -> None:
    """FSDP2 over rows that tensor parallelism has cut: two by two, and three by two."""
    for data in (2, 3):
        for rows in (2, 4):
            each = [
                kept(size, (data, i, rows), (rows, j, 1)) for j in range(rows) for i in range(data)
            ]
            assert sum(each, []) == list(range(size)), (data, rows, each)


def test_packed_maps_keep_a_part_of_each() -> None:
    assert cut(12, ((2, 1, 2),)) == (range(3, 6), range(9, 12))
    x = torch.arange(24).view(12, 2)
    assert taken(x, 0, cut(12, ((2, 1, 2),))).tolist() == x[[3, 4, 5, 9, 10, 11]].tolist()
    assert taken(x, 0, cut(12, ((1, 0, 2),))) is x
    assert taken(x, 1, cut(2, ((2, 1, 1),))).data_ptr() == x[:, 1:].data_ptr()
    assert taken(x, 1, ()).shape == (12, 0)
