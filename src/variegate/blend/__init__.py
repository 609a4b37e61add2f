"""Pure maths on finished adapters: several as one, another size, out of two models, into one.

`together` blends and resizes by the formulas in `methods`, on `products` that are never larger than
they must be; `extract` and `merge` go from whole models to an adapter and back; `soup` picks who
goes into a mean; `cast` reads the file of an ensemble, which samples and is not blended at all.
"""
