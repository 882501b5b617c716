"""Operators defined by simpler ones, where ONNX gives no definition of its own.

A definition is ONNX's text of a function body: what a QLinearConv computes, written with
DequantizeLinear, Conv and QuantizeLinear. :mod:`..expand` takes gradients and shapes through it.
"""

from . import attention, fused, normalization, quantized, recurrent
from .registry import Call, NoDefinition, defined, find, signature

__all__ = [
    "Call",
    "NoDefinition",
    "attention",
    "defined",
    "find",
    "fused",
    "normalization",
    "quantized",
    "recurrent",
    "signature",
]
