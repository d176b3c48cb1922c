"""Library behind the notebooks: sparse autoencoders on downstream tasks, re-run with error bars."""

import atexit
import os
import shutil
import tempfile
import warnings
from pathlib import Path

# Progress bars are for terminals; in a notebook their absence needs no warning. Fits' processes end by themselves.
warnings.filterwarnings("ignore", message="IProgress not found")
warnings.filterwarnings("ignore", message="A worker stopped while some jobs were given to the executor")

# Numba keeps compiled loops beside the code or at home. Else in a folder of this process and its children: it runs what it finds.
_KEPT = any(os.access(folder, os.W_OK) for folder in (Path(__file__).parent, os.path.expanduser("~")))
if not _KEPT and "NUMBA_CACHE_DIR" not in os.environ:
    os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, os.environ["NUMBA_CACHE_DIR"], ignore_errors=True)
