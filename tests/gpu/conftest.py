"""Each test of this folder runs on the CPU in the usual suite, and again on a GPU where there is one.

So nothing here is run for the first time on the day that a GPU is there.
"""

from collections.abc import Iterator

import pytest
import torch

CUDA = pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.fixture(params=["cpu", CUDA])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, then the GPU."""
    return there(request.param)


def there(name: str) -> torch.device:
    """A device by name; a test without it is skipped."""
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(name)


@pytest.fixture(autouse=True)
def full_float32() -> Iterator[None]:
    """Convolutions and products in float32; TF32, which cuDNN takes by default, keeps 10 of its 23 bits."""
    kept = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = kept
