"""Reverse-mode differentiation of an ONNX graph, in standard ONNX operators."""

from .add import add_gradients
from .registry import Rule, registered, stop, stops, vjp

__all__ = ["Rule", "add_gradients", "registered", "stop", "stops", "vjp"]
