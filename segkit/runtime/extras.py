"""Packages of the extras in pyproject.toml, and the message if one is not installed."""

from __future__ import annotations

_EXTRAS = {
    "runtime": ("onnxruntime",),
    "predict": ("torch", "torchvision", "segmentation_models_pytorch", "timm", "safetensors"),
    "train": ("albumentations", "cv2", "lightning", "sklearn"),
    "report": ("bokeh", "jinja2", "markupsafe", "PIL"),
    "cluster": ("dask", "distributed", "toolz"),
    "indices": ("spyndex",),
    "excel": ("openpyxl",),
    "tensorboard": ("tensorboard",),
    "xarray": ("rioxarray", "xarray"),
    "onnx": ("onnx", "onnxscript"),
    "openvino": ("openvino",),
}
EXTRA_OF_PACKAGE = {package: extra for extra, packages in _EXTRAS.items() for package in packages}


def describe_missing_package(error: ModuleNotFoundError) -> str | None:
    """Say which extra installs the package that an import did not find; None if it is no package of an extra."""
    package = (error.name or "").partition(".")[0]
    if package not in EXTRA_OF_PACKAGE:
        return None
    extra = EXTRA_OF_PACKAGE[package]
    return f'this needs {package}, which is not installed; install the extra: pip install "landcover-segkit[{extra}]"'
