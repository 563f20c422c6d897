"""Keeps what protobuf imports but never uses out of a daemon's start.

Generated code imports protobuf's implementation of messages in Python, and with it the text format
and the pure encoders: an eighth of a daemon's start. Where protobuf runs on its C implementation
none of it is called, so that module is put in place unloaded; it loads when first looked into.
Imported by ``skate_rpc.gen``, so that it comes before any generated module.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys

from google.protobuf.internal import api_implementation

_PACKAGE = "google.protobuf.internal"
_MODULE = "python_message"


def defer_python_messages() -> bool:
    """Put the module in place unloaded. False: it is in use, or there already."""
    name = f"{_PACKAGE}.{_MODULE}"
    if api_implementation.Type() != "upb" or name in sys.modules:
        return False
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        return False
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    # Without this, ``from google.protobuf.internal import python_message`` would look into it.
    setattr(importlib.import_module(_PACKAGE), _MODULE, module)
    return True


defer_python_messages()
