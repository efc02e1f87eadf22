"""The logistics of a sweep: which cells, where, recorded how, compared how. It never touches a
tensor."""
