"""Data sets, and the image sets that stages share."""
