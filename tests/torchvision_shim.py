"""torchvision and what stands on it, imported beside a torch of another build.

torchvision's compiled operators are missing beside a torch that it was not built for (the CPU build,
often); its import then fails, because it registers fake kernels for them. The models need none.
Only while it is imported, registering a fake kernel for an operator that does not exist does nothing.
"""

import contextlib
import importlib
import warnings
from types import ModuleType

import pytest


def import_torchvision() -> ModuleType:
    """torchvision, or skip the test where it or torch is not installed."""
    torch = pytest.importorskip("torch")
    register_fake = torch.library.register_fake

    def tolerant(*args, **kwargs):
        register = register_fake(*args, **kwargs)

        def decorate(function):
            try:
                return register(function)
            except RuntimeError as e:
                if "does not exist" not in str(e):
                    raise
                return function

        return decorate

    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message="Failed to load image Python extension")
        torch.library.register_fake = tolerant
        stack.callback(setattr, torch.library, "register_fake", register_fake)
        return pytest.importorskip("torchvision", exc_type=ModuleNotFoundError)


def import_pytorch_grad_cam() -> ModuleType:
    """pytorch-grad-cam (PyPI: grad-cam), or skip the test where it is not installed."""
    import_torchvision()
    pytest.importorskip("pytorch_grad_cam", exc_type=ModuleNotFoundError)
    return importlib.import_module("pytorch_grad_cam")
