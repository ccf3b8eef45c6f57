"""Beginning of a recording in a Python interpreter that a followed program starts; see `talkerviz.cli.follow`."""

import importlib.machinery
import importlib.util
import os
import sys

_folder = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120  (pathlib takes a while to import)
sys.path[:] = [path for path in sys.path if path != _folder]
if (_spec := importlib.machinery.PathFinder.find_spec("sitecustomize")) is not None and _spec.loader is not None:
    # The environment's own.
    sys.modules["sitecustomize"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["sitecustomize"])
if "TALKERVIZ_FOLLOW" in os.environ:
    try:
        from talkerviz.cli.follow import begin_in_interpreter
    except ImportError:  # an interpreter of another environment
        pass
    else:
        begin_in_interpreter()
