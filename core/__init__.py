"""The engine: fields, rule languages, tables, ring reader and process table. It does no I/O.

Compiled modules of a checkout lie in ``build/<flavour>/vedette/core``; the flavour is chosen by
``VEDETTE_BUILD`` (release, trace or sanitize) both when building and when importing. An installed
wheel has them in this folder and no build folder beside it.
"""

import os
from pathlib import Path

_built = (
    Path(__file__).resolve().parent.parent
    / "build"
    / os.environ.get("VEDETTE_BUILD", "release")
    / "vedette"
    / "core"
)
if _built.is_dir():
    __path__.append(str(_built))
