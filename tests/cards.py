"""Which tests see the machine's CUDA cards: those marked `cuda`, and no others.

The other tests compare results bit for bit and count the memory of the CPU, so the cards are hidden from them and from the
processes that they start. Tests that see a card run first: a library looks for cards once in a process.
"""

import os

import pytest

from lfx_local_runtimes.runtimes import devices

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_given = os.environ.get(_VISIBLE)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests on a card first; otherwise the order stays."""
    items.sort(key=lambda item: not _wants_card(item))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Show or hide the cards before any fixture is made."""
    wants = _wants_card(item)
    _show(wants)
    if wants and not devices.MACHINE.accelerators():
        pytest.skip("no CUDA card is seen on this machine")


def need_build_for_cuda(engine: str) -> None:
    """Skip the test if the library of an engine was not built for CUDA. A card is there."""
    if engine == "llama_cpp":
        import llama_cpp

        library, built = "llama-cpp-python", bool(llama_cpp.llama_supports_gpu_offload())
    else:
        import torch

        library, built = "torch", torch.cuda.is_available()
    if not built:
        pytest.skip(f"there is a card, but {library} was built without CUDA: run make cuda")


def _wants_card(item: pytest.Item) -> bool:
    return item.get_closest_marker("cuda") is not None


def _show(cards: bool) -> None:
    before = os.environ.get(_VISIBLE)
    if not cards:
        os.environ[_VISIBLE] = ""
    elif _given is None:
        os.environ.pop(_VISIBLE, None)
    else:
        os.environ[_VISIBLE] = _given
    if os.environ.get(_VISIBLE) != before:
        devices._cuda_cards.cache_clear()
