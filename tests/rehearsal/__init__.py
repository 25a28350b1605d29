"""A run of a compiled pipeline on a real Kubernetes API server and a real Argo, but without a node and without KFP.

What KFP's services would do to the pipeline is told here after the sources of 2.17: `compiler` makes the workflow that
the API server makes, `driver` resolves a task's inputs and its pod as the driver does. `node` stands for a node: it
runs the programs of pods as processes of this machine, and loses pods when told to. Where this and KFP differ, KFP is
right.
"""
