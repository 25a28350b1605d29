"""ARNAS: search, train and certify image classifiers that are accurate and withstand adversarial attack."""

__version__ = "0.1.0"
