"""Model families behind one seam: `api.Model`, a NamedTuple of pure functions."""
