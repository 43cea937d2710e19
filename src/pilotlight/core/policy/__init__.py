"""How choices are made: each module is a few pure functions over the model; the machines call them."""
