"""Golden outputs of the authors' implementation and the weights that they were computed with."""
