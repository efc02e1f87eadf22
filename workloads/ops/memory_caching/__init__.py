"""Memory caching: a recurrence whose states at segment ends are kept and read beside the state of
the moment (Behrouz et al. 2026, "Memory Caching: RNNs with Growing Memory").

`weights` holds what decides how much of each memory a token reads, `matrix` the form for matrix
memories (linear attention, Mamba-2), `vector` that for hidden vectors (LSTM, GRU), `mixers` the
sequence mixers made of them, `reference` the loops as the formulas read.
"""
