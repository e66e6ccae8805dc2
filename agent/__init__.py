"""The service on each host: capture, match, report and ship; the command ``vedette-agent``."""

import os

# NumPy's library starts threads when it is imported: of no use here, and a thread that runs before
# rights are given up keeps its own.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
