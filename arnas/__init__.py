"""ARNAS: search, train and certify image classifiers that are accurate and withstand adversarial attack."""

import os

__version__ = "0.1.0"

# Waiting OpenMP threads spin, by default so long that two processes on the same cores stall each other for minutes.
# Read when torch is loaded; a value that is set already stays.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
