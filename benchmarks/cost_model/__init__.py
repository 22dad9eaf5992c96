"""The predictions of the cost model, on operations that it has not seen."""
