"""Print flags for a program that embeds this Python; with `path`, where its modules are."""

import sys
import sysconfig
from pathlib import Path

if sys.argv[1:] == ["path"]:
    print(":".join([str(Path.cwd()), *(path for path in sys.path[1:] if path)]))
else:
    names = ("LIBDIR", "LDVERSION")
    folder, version = (str(sysconfig.get_config_var(name)) for name in names)
    include = sysconfig.get_path("include")
    print(f"-I{include} -L{folder} -Wl,-rpath,{folder} -lpython{version} -lm -ldl")
