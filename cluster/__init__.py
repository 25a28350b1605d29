"""What talks to Kubernetes: whether a cluster is ready for a run, and jobs over several nodes."""
