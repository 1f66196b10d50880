"""One thread, a seed for every test, and the global generator left as it was."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

# Times on a shared machine say nothing about a property.
settings.register_profile(
    "suite",
    deadline=None,
    derandomize=True,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("suite")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(autouse=True)
def products_as_exact_as_before() -> Iterator[None]:
    """A benchmark's run sets how exact products are, for the whole process."""
    products = torch.backends.mkldnn.matmul
    before = products.fp32_precision
    yield
    if products.fp32_precision != before:
        torch.set_float32_matmul_precision("highest")
        products.fp32_precision = before
