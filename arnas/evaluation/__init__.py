"""How accurate and how robust a trained network is."""
