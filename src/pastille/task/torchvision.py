"""Importing torchvision, which transformers and timm import too."""

from __future__ import annotations

from typing import Any

import torch

from pastille.errors import UsageError


def import_torchvision() -> Any:
    """Import torchvision, also where its compiled operators do not fit this build of torch.

    A torchvision built for CUDA fails to import beside a CPU build of torch, because it describes
    operators that its library then did not register. Declaring the two that are described at
    import is enough for every classification model; detection operators stay out of reach.

    Raises:
        UsageError: It is not installed.
    """
    try:
        return _torchvision_module()
    except ImportError:
        raise missing("torchvision", "vision") from None
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    library: Any = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _DECLARED.append(library)  # the declarations live as long as this object
    return _torchvision_module()


_DECLARED: list[Any] = []


def _torchvision_module() -> Any:
    import torchvision
    import torchvision.models

    return torchvision


def missing(package: str, extra: str) -> UsageError:
    """The error for a package of an extra that is not installed."""
    return UsageError(f"task.model: {package} is not installed; run: pip install 'pastille[{extra}]'")
