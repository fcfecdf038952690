"""A project on MMEngine that has never heard of olor_mm: a registry scope, a model, data and a train script."""
