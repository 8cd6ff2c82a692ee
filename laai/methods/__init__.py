"""Methods to compare, one file each: a new file here is a new method."""

import pkgutil
from importlib import import_module

from laai.methods.registry import METHODS, Setting, build, register

__all__ = ["METHODS", "Setting", "build", "register"]

for _found in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_found.name}")
