"""The predictions of the cost model for whole models under many plans."""
