"""Post-training attention search: distil, score, select and train the choices of every site."""
