"""How fast the networks are, against the published formulation, the public code and a plain CNN."""
