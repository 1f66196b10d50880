"""Random numbers by a hash: pure in what they are for, whoever keeps which part of a matrix."""

import torch

from torch_xgb.formulas.streams import Field

CPU = torch.device("cpu")
WHOLE = slice(0, 256)


def fractions(field: Field) -> torch.Tensor:
    return (field.bits(WHOLE, WHOLE, CPU).double() + (1 << 15)) / (1 << 16)


def test_a_part_has_the_numbers_of_the_whole() -> None:
    field = Field.of(0, 3, "a")
    part = field.bits(slice(40, 90), slice(7, 11), CPU)
    assert torch.equal(part, field.bits(WHOLE, WHOLE, CPU)[40:90, 7:11])


def test_seeds_boosters_and_purposes_differ() -> None:
    fields = [Field.of(0, 0, "a"), Field.of(1, 0, "a"), Field.of(0, 1, "a"), Field.of(0, 0, "b")]
    found = [fractions(field) - 0.5 for field in fields]
    for i, one in enumerate(found):
        for other in found[:i]:  # of independent numbers 12 times the mean of products, ± 1/256
            assert abs(float((one * other).mean())) * 12 < 5 / 256


def test_they_are_uniform_by_row_by_column_and_beside_each_other() -> None:
    u = fractions(Field.of(0, 0, "thresholds/w"))
    counts = torch.histc(u.float(), 64, 0, 1)
    assert float(((counts - 1024) ** 2 / 1024).sum()) < 63 + 5 * (2 * 63) ** 0.5
    centred = u - 0.5
    for dim in (0, 1):
        assert float(centred.mean(dim).abs().max()) < 5 / (12 * 256) ** 0.5
    for a, b in ((centred[1:], centred[:-1]), (centred[:, 1:], centred[:, :-1])):
        assert abs(float((a * b).mean())) * 12 < 5 / 256


def test_they_have_no_direction() -> None:
    """No sum over rows and columns is larger than independent numbers would let it be."""
    centred = fractions(Field.of(0, 0, "thresholds/w")) - 0.5
    expected = 2 * (256 / 12) ** 0.5  # the largest singular value of such, for many of them
    assert float(torch.linalg.matrix_norm(centred, 2)) < 1.2 * expected
    sums = fractions(Field.of(0, 0, "a")) + fractions(Field.of(0, 0, "b")).mT[:1]
    assert float(torch.linalg.matrix_norm(sums - sums.mean(), 2)) > 1.2 * expected
