"""Operators that have no rule because of what they are, and why; a list, so that errors can say so."""

from ..registry import refuse, stop

_SEQUENCE = "it handles a sequence of tensors, whose length is known at run time alone"
_OPTIONAL = "it handles a value that may be absent"

for _op in (
    "SequenceConstruct",
    "SequenceEmpty",
    "SequenceInsert",
    "SequenceErase",
    "SequenceMap",
    "SequenceAt",
    "SplitToSequence",
    "ConcatFromSequence",
):
    refuse(_op, _SEQUENCE)
refuse("Optional", _OPTIONAL)

stop("If", "it says which branch to take, not what to compute", wrt=["cond"])
