"""What a run found, for people: plots, the page, the table."""
